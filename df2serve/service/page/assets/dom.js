// Elements without markup in texts, and how numbers and times are written.

/** Make an element; properties that begin with "on" are listeners, null and false are left out. */
export function h(tag, properties = {}, ...children) {
  return fill(document.createElement(tag), properties, children);
}

/** Make an element of a drawing. */
export function svg(tag, properties = {}, ...children) {
  return fill(document.createElementNS("http://www.w3.org/2000/svg", tag), properties, children);
}

function fill(element, properties, children) {
  for (const [name, value] of Object.entries(properties)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

/** Tell people who listen to the page what has changed. */
export function tell(text) {
  document.getElementById("told").textContent = text;
}

let hiding;

/** Show what went wrong for a while. */
export function alarm(error) {
  if (error.name === "AbortError") return;
  const place = document.getElementById("alarm");
  place.textContent = error.message;
  clearTimeout(hiding);
  hiding = setTimeout(() => place.replaceChildren(), 12000);
}

/** Return a listener that shows what goes wrong in it. */
export const guarded = (work) => (event) => Promise.resolve(work(event)).catch(alarm);

export const score = (value) => (value === null ? "–" : value.toFixed(3));

export const percent = (share) =>
  share.toLocaleString("en", { style: "percent", maximumFractionDigits: share < 0.1 ? 1 : 0 });

export const count = (number, noun) =>
  `${number.toLocaleString("en")} ${noun}${number === 1 ? "" : "s"}`;

export function bytes(size) {
  const units = ["bytes", "kB", "MB", "GB"];
  const power = Math.min(3, Math.floor(Math.log10(Math.max(size, 1)) / 3));
  return `${(size / 1000 ** power).toFixed(power && size / 1000 ** power < 10 ? 1 : 0)} ${units[power]}`;
}

export function duration(seconds) {
  if (seconds < 90) return count(Math.max(1, Math.round(seconds)), "second");
  if (seconds < 5400) return count(Math.round(seconds / 60), "minute");
  return count(Math.round(seconds / 3600), "hour");
}

export function ago(time) {
  const date = new Date(time);
  const seconds = (Date.now() - date) / 1000;
  const text = seconds < 5 ? "just now" : seconds < 86400 ? `${duration(seconds)} ago` : date.toLocaleString("en");
  return h("time", { datetime: time, title: date.toLocaleString("en") }, text);
}

/** Classes with their colors, without the background. */
export function legend(classes) {
  return classes.slice(1).map(({ name, color }) => {
    const patch = h("span", { class: "patch", "aria-hidden": "true" });
    patch.style.background = color;
    return h("span", {}, patch, name);
  });
}
