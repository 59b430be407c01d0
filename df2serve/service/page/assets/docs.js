// The reference of the HTTP interface, made of /openapi.json.
import { h } from "./dom.js";

const METHODS = ["get", "head", "post", "put", "patch", "delete", "options"];
const main = document.getElementById("main");

async function draw() {
  const answer = await fetch("/openapi.json");
  if (!answer.ok) throw new Error(`The service answers ${answer.status}.`);
  const api = await answer.json();
  const operations = Object.entries(api.paths).flatMap(([path, item]) =>
    METHODS.filter((method) => item[method]).map((method) => ({ path, method, ...item[method] })));
  const tags = [...new Set(operations.flatMap(({ tags }) => tags ?? ["other"]))];
  const of = (tag) => operations.filter(({ tags }) => (tags ?? ["other"]).includes(tag));
  const schemas = Object.entries(api.components?.schemas ?? {});
  main.replaceChildren(h("div", {},
    h("nav", { class: "contents", "aria-label": "Contents" },
      tags.map((tag) => [h("h2", {}, tag), h("ul", {}, of(tag).map((operation) => h("li", {}, h("a", { href: `#${operation.operationId}` }, method(operation.method), h("span", {}, operation.path)))))]).flat(),
      h("h2", {}, "answers"),
      h("ul", {}, schemas.map(([name]) => h("li", {}, h("a", { href: `#schema-${name}` }, name))))),
    h("div", { class: "operations" },
      h("div", {}, h("h1", {}, `API of ${api.info.title} ${api.info.version}`), h("p", { class: "fine" }, `${api.info.summary ?? ""} `, h("a", { href: "/openapi.json" }, "openapi.json"), " is for programs.")),
      operations.map(operationPanel),
      schemas.map(schemaPanel))));
  document.getElementById(decodeURIComponent(location.hash.slice(1)))?.scrollIntoView();
}

const method = (name) => h("span", { class: `method ${name}` }, name.toUpperCase());

function operationPanel({ operationId: id, method: name, path, summary, description, parameters = [], requestBody, responses, security }) {
  return h("section", { class: "panel operation", id, "aria-label": `${name} ${path}` },
    h("h3", {}, method(name), path),
    prose(description ?? summary),
    security && h("p", { class: "fine" }, "Needs a key where the service has keys."),
    table("Parameters", parameters.map(({ name, in: place, required, schema, description }) => [name, [typeOf(schema), h("br"), `${place}${required ? ", required" : ""}`], description ?? schema.description])),
    requestBody && table("Body", Object.entries(requestBody.content).map(([type, { schema }]) => [type, typeOf(schema), fieldsOf(schema)])),
    table("Answers", Object.entries(responses).map(([status, { description, content = {} }]) => [status, answers(content), description === "Successful Response" ? "" : description])));
}

/** Tell what an answer is, with links to the schemas of JSON. */
function answers(content) {
  return Object.entries(content).flatMap(([type, { schema }]) => [schema?.$ref || schema?.title ? typeOf(schema) : type, h("br")]).slice(0, -1);
}

function schemaPanel([name, { description, properties = {}, required = [], ...rest }]) {
  return h("section", { class: "panel operation", id: `schema-${name}`, "aria-label": name },
    h("h3", {}, name),
    prose(description),
    Object.keys(properties).length
      ? table("Members", Object.entries(properties).map(([member, schema]) => [member, [typeOf(schema), !required.includes(member) && " (may be absent)"], schema.description]))
      : h("p", {}, typeOf(rest)));
}

function table(title, rows) {
  if (!rows.length) return null;
  const cell = (content) => h("td", {}, typeof content === "string" ? coded(content) : content ?? "");
  return [h("h4", {}, title), h("div", { class: "scroll-x" }, h("table", { class: "fields" }, h("tbody", {}, rows.map(([name, type, text]) => h("tr", {}, h("th", { scope: "row" }, h("code", {}, name)), cell(type), cell(text))))))];
}

const prose = (text = "") => text.split("\n\n").map((part) => h("p", {}, coded(part)));

/** Show what stands between backquotes as code. */
const coded = (text) => text.split(/`{1,2}([^`]+)`{1,2}/).map((part, index) => (index % 2 ? h("code", {}, part) : part));

function fieldsOf({ properties }) {
  if (!properties) return "";
  return Object.entries(properties).flatMap(([name, { description }]) => [h("code", {}, name), description ? `: ${description}` : "", h("br")]);
}

/** Write a JSON schema as a short type. */
function typeOf(schema = {}) {
  if (schema.$ref) {
    const name = schema.$ref.split("/").at(-1);
    return [h("a", { href: `#schema-${name}` }, name)];
  }
  const union = schema.anyOf ?? schema.oneOf;
  if (union) return union.flatMap((part, index) => (index ? [" or ", ...typeOf(part)] : typeOf(part)));
  if ("const" in schema) return [JSON.stringify(schema.const)];
  if (schema.enum) return [schema.enum.map((value) => JSON.stringify(value)).join(" | ")];
  if (schema.type === "array") return ["array of ", ...(schema.prefixItems ? typeOf(schema.prefixItems[0]) : typeOf(schema.items))];
  return [`${schema.type ?? "anything"}${limits(schema)}`];
}

function limits({ minimum, maximum, exclusiveMinimum, pattern, format }) {
  const parts = [];
  if (minimum !== undefined) parts.push(`≥ ${minimum}`);
  if (exclusiveMinimum !== undefined) parts.push(`> ${exclusiveMinimum}`);
  if (maximum !== undefined) parts.push(`≤ ${maximum}`);
  if (pattern) parts.push(`like ${pattern}`);
  if (format) parts.push(format);
  return parts.length ? ` (${parts.join(", ")})` : "";
}

draw().catch((error) => main.replaceChildren(h("p", {}, error.message)));
