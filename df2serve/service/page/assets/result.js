// One result: pictures, what the scores say, files.
import { read, save } from "./api.js";
import { bytes, count, guarded, h, legend, percent, score, svg } from "./dom.js";
import { viewer } from "./viewer.js";
import { explain, ranked, TITLES, toneOf } from "./words.js";

const FILES = [
  ["mask", "Mask"], ["answer", "Everything"], ["uncertainty", "Uncertainty map"], ["labels", "Objects as labels"],
  ["instances", "Table of objects"], ["overlay", "Outlines"], ["picture", "Picture of the uncertainty"],
];
const SUFFIXES = { "image/tiff": "tif", "application/zip": "zip", "image/png": "png", "text/csv": "csv" };

/** Show an image of a job, and the ways to the next ones of its review list. */
export async function showResult(content, signal, id, number) {
  const [job, { items }] = await Promise.all([
    read(`/v1/jobs/${id}`, { signal }),
    read(`/v1/jobs/${id}/results`, { signal }),
  ]);
  const order = ranked(items);
  const place = order.findIndex(({ index }) => index === Number(number));
  if (place < 0) throw new Error("This image has no result.");
  const link = (step, text, rel) => order[place + step] && h("a", { class: "button", rel, href: `#/jobs/${id}/${order[place + step].index}` }, text);
  content.append(
    h("nav", { class: "steps", "aria-label": "Review list" },
      h("a", { href: `#/jobs/${id}` }, `← Review list of ${count(items.length, "image")}`),
      h("span", { class: "fine" }, `rank ${place + 1} of ${order.length}`),
      link(-1, "More doubtful", "prev") ?? null, link(1, "Less doubtful", "next") ?? null),
    h("h1", {}, order[place].name));
  const room = h("div", {});
  content.append(room);
  await fillResult(room, job, order[place], signal);
}

/** Show a result in a place. */
export async function fillResult(place, job, item, signal) {
  const address = `${job.links.results}/${item.index}`;
  const [info, model] = await Promise.all([
    read(`${address}/result`, { signal }),
    read(`/v1/models/${encodeURIComponent(job.model)}`, { signal }).catch(() => null),
  ]);
  const sameModel = model?.sha256 === info.model.sha256 ? model : null;
  const pictures = await viewer(`${address}/overlay`, `${address}/picture`, {
    largest: info.largest_uncertainty, legend: legend(info.classes), signal,
  });
  place.replaceChildren(
    h("div", { class: "result" },
      pictures,
      h("div", { class: "beside" }, verdict(info, sameModel), numbers(info), files(item, address), details(info))));
}

function verdict(info, model) {
  const tone = toneOf(info.quality);
  return h("section", { class: `verdict ${tone}`, "aria-label": "Verdict" },
    h("h2", {}, TITLES[tone]),
    h("p", { class: "big" }, "U = ", h("strong", {}, score(info.quality.uncertainty_score))),
    strip(info, model),
    h("ul", {}, explain(info, model).map((text) => h("li", {}, text))));
}

/** Draw U among those of the reference images, with the threshold. */
function strip({ quality: { uncertainty_score: u, u_min: threshold }, largest_uncertainty: largest }, model) {
  const references = model?.references?.scores ?? [];
  if (u === null) return null;
  const at = (value) => `${(100 * Math.min(value, largest)) / largest}%`;
  const text = [`U is ${score(u)}`, references.length && `${count(references.length, "reference")} from ${score(references[0])} to ${score(references.at(-1))}`, threshold !== null && `the threshold is ${score(threshold)}`];
  return h("figure", { class: "strip" },
    svg("svg", { width: "100%", height: 52, role: "img", "aria-label": `${text.filter(Boolean).join("; ")}.` },
      svg("rect", { class: "ground", x: 0, y: 16, width: "100%", height: 20, rx: 3 }),
      threshold !== null && svg("rect", { class: "doubtful", x: at(threshold), y: 16, width: `${100 - Number.parseFloat(at(threshold))}%`, height: 20, rx: 3 }),
      references.map((value) => svg("line", { class: "reference", x1: at(value), x2: at(value), y1: 19, y2: 33 })),
      threshold !== null && svg("line", { class: "threshold", x1: at(threshold), x2: at(threshold), y1: 12, y2: 40 }),
      svg("svg", { class: "own", x: at(u), y: 0, overflow: "visible" }, svg("path", { d: "M-7 2h14l-7 12z" }), svg("line", { y1: 14, y2: 38 }))),
    h("figcaption", { class: "key" },
      h("span", {}, h("i", { class: "mark own" }), "this image"),
      references.length > 0 && h("span", {}, h("i", { class: "mark reference" }), "references"),
      threshold !== null && h("span", {}, h("i", { class: "mark threshold" }), "threshold")));
}

function numbers({ quality, classes, class_fractions: shares, instances }) {
  const told = [
    instances && ["Objects", instances.kept.toLocaleString("en"), instances.removed ? `${instances.removed.toLocaleString("en")} smaller ones left out` : null],
    ...classes.slice(1).map(({ name }, index) => [name, percent(shares[index + 1]), "of the pixels"]),
    quality.one_minus_expected_dice !== null && ["Expected Dice", (1 - quality.one_minus_expected_dice).toFixed(2), "as the probabilities promise"],
  ].filter(Boolean);
  return h("dl", { class: "tiles" }, told.map(([name, value, more]) => h("div", {}, h("dt", {}, name), h("dd", {}, value), more && h("dd", { class: "fine" }, more))));
}

function files(item, address) {
  const stem = item.name.replace(/\.[^.]*$/, "");
  const offered = FILES.map(([name, title]) => [title, item.artifacts.find((file) => file.name === name)]).filter(([, file]) => file);
  return h("section", { class: "downloads", "aria-label": "Downloads" },
    offered.map(([title, { name, media_type: type, size, href }], place) => {
      const suffix = SUFFIXES[type] ?? "bin";
      return h("button", { type: "button", class: place < 2 ? "main" : null, onclick: guarded(() => save(href, `${stem}-${name === "answer" ? "result" : name}.${suffix}`)) },
        `${title} `, h("small", {}, `${suffix.toUpperCase()}, ${bytes(size)}`));
    }),
    h("button", { type: "button", onclick: guarded(() => save(`${address}/result`, `${stem}-result.json`)) }, "Record ", h("small", {}, "JSON")));
}

function details({ input, model, software, timing, config }) {
  const rows = [
    ["Image", `${input.shape.join(" × ")} ${input.dtype}, ${input.format}${input.axes ? `, axes ${input.axes}` : ""}`],
    ["Pixel size", input.pixel_size_um ? `${input.pixel_size_um.y_um} × ${input.pixel_size_um.x_um} µm` : "not stated"],
    ["Model", `${model.name}, revision ${model.revision}, ${count(model.members, "network")}`],
    ["Settings", `${config.views} views, tiles of ${config.tile_shape?.join(" × ")} pixels, ${config.precision}`],
    ["Computed", `df2serve ${software.df2serve}, ${software.backend} on ${software.device}, ${timing.infer.toFixed(2)} s`],
    ["Image SHA-256", input.sha256],
    ["Model SHA-256", model.sha256],
  ];
  return h("details", {}, h("summary", {}, "Where this comes from"),
    h("dl", { class: "facts" }, rows.filter(([, value]) => value).flatMap(([name, value]) => [h("dt", {}, name), h("dd", {}, value)])));
}
