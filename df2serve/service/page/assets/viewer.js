// Two pictures of one image side by side, which are moved and magnified together.
import { request } from "./api.js";
import { h, score } from "./dom.js";

const LARGEST_SCALE = 32;
const STEP = 1.5;
const MOVES = { ArrowLeft: [0.1, 0], ArrowRight: [-0.1, 0], ArrowUp: [0, 0.1], ArrowDown: [0, -0.1] };

/** Show an overlay and the uncertainty beside it, whose colors are told by `largest`. */
export async function viewer(overlay, uncertainty, { largest, legend, signal }) {
  const [left, right] = await Promise.all([loaded(overlay, signal), loaded(uncertainty, signal)]);
  left.picture.alt = "The image with the outlines of what was found";
  right.picture.alt = "Uncertainty of every pixel; brighter is more doubtful";
  const levels = palette(new Uint8Array(await right.blob.arrayBuffer()));
  const value = h("output", { class: "readout" }, "");
  const panes = [pane(left.picture, "Outlines"), pane(right.picture, "Uncertainty")];
  const zoom = zoomed(panes);
  const levelAt = reader(right.picture, levels);
  for (const { well } of panes) {
    well.addEventListener("pointermove", (event) => {
      const level = levelAt(...zoom.position(well, event));
      value.textContent = level === undefined ? "" : `uncertainty here: ${score((level / 255) * largest)}`;
    });
    well.addEventListener("pointerleave", () => { value.textContent = ""; });
  }
  return h("section", { class: "viewer", "aria-label": "Pictures" },
    h("div", { class: "panes" },
      h("figure", {}, panes[0].well, h("figcaption", {}, h("strong", {}, "What was found"), h("span", { class: "key" }, legend))),
      h("figure", {}, panes[1].well, h("figcaption", {}, h("strong", {}, "How doubtful it is"), colorBar(levels, largest)))),
    h("div", { class: "tools" }, zoom.buttons, value));
}

async function loaded(path, signal) {
  const blob = await (await request(path, { signal })).blob();
  const address = URL.createObjectURL(blob);
  signal.addEventListener("abort", () => URL.revokeObjectURL(address));
  const picture = h("img", { src: address, draggable: "false" });
  await picture.decode();
  return { picture, blob };
}

function pane(picture, name) {
  const well = h("div", { class: "well", tabindex: 0, role: "group", "aria-label": `${name}; plus and minus magnify, arrows move` }, picture);
  well.style.aspectRatio = `${picture.naturalWidth} / ${picture.naturalHeight}`;
  return { well, picture };
}

/** Return the colors of the levels 0 to 255, red, green and blue each, of the bytes of a PNG file. */
function palette(file) {
  const view = new DataView(file.buffer);
  for (let at = 8; at < file.length; at += view.getUint32(at) + 12) {
    if (view.getUint32(at + 4) === 0x504c5445) return file.subarray(at + 8, at + 8 + view.getUint32(at));
  }
  throw new Error("The picture of the uncertainty has no palette.");
}

/** Return a function that tells the level of a pixel, whose place is given in [0, 1]. */
function reader(picture, levels) {
  const canvas = h("canvas", { width: picture.naturalWidth, height: picture.naturalHeight });
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(picture, 0, 0);
  const known = new Map();
  for (let level = levels.length / 3 - 1; level >= 0; level--) known.set(levels.subarray(3 * level, 3 * level + 3).join(), level);
  return (x, y) => {
    if (x < 0 || y < 0 || x >= 1 || y >= 1) return undefined;
    const [red, green, blue] = context.getImageData(Math.floor(x * canvas.width), Math.floor(y * canvas.height), 1, 1).data;
    return known.get(`${red},${green},${blue}`);
  };
}

function colorBar(levels, largest) {
  const bar = h("canvas", { width: 256, height: 1, role: "img", "aria-label": `Colors from 0, dark, to ${largest.toFixed(2)}, bright` });
  const context = bar.getContext("2d");
  for (let level = 0; level < 256; level++) {
    context.fillStyle = `rgb(${levels.subarray(3 * level, 3 * level + 3).join()})`;
    context.fillRect(level, 0, 1, 1);
  }
  return h("span", { class: "scale" }, h("span", {}, "0 certain"), bar, h("span", {}, `${Number(largest.toFixed(2))} most doubtful`));
}

/** Move and magnify all panes together. */
function zoomed(panes) {
  let [scale, left, top] = [1, 0, 0]; // of the upper left corner, in sides of the pane
  const show = () => {
    left = Math.min(0, Math.max(1 - scale, left));
    top = Math.min(0, Math.max(1 - scale, top));
    for (const { well, picture } of panes) {
      picture.style.transform = `translate(${100 * left}%, ${100 * top}%) scale(${scale})`;
      picture.style.imageRendering = scale > 3 ? "pixelated" : "auto";
      well.classList.toggle("magnified", scale > 1);
    }
    factor.textContent = `${scale.toFixed(1)}×`;
  };
  const magnify = (by, x = 0.5, y = 0.5) => {
    const next = Math.min(LARGEST_SCALE, Math.max(1, scale * by));
    left = x - ((x - left) * next) / scale;
    top = y - ((y - top) * next) / scale;
    scale = next;
    show();
  };
  const move = (x, y) => {
    left += x;
    top += y;
    show();
  };
  const inPane = (well, { clientX, clientY }) => {
    const { x, y, width, height } = well.getBoundingClientRect();
    return [(clientX - x) / width, (clientY - y) / height];
  };
  for (const { well } of panes) {
    well.addEventListener("keydown", (event) => {
      if (event.key in MOVES) move(...MOVES[event.key]);
      else if (event.key === "+" || event.key === "=") magnify(STEP);
      else if (event.key === "-") magnify(1 / STEP);
      else return;
      event.preventDefault();
    });
    well.addEventListener("wheel", (event) => {
      if (!event.ctrlKey && !event.metaKey) return;
      event.preventDefault();
      magnify(Math.exp(-event.deltaY / 200), ...inPane(well, event));
    }, { passive: false });
    well.addEventListener("dblclick", (event) => magnify(2, ...inPane(well, event)));
    well.addEventListener("pointerdown", (event) => well.setPointerCapture(event.pointerId));
    well.addEventListener("pointermove", (event) => {
      if (event.buttons) move(event.movementX / well.clientWidth, event.movementY / well.clientHeight);
    });
  }
  const button = (text, label, act) => h("button", { type: "button", "aria-label": label, onclick: act }, text);
  const factor = h("span", { class: "fine" });
  const buttons = h("span", { class: "zoom" },
    button("−", "Smaller", () => magnify(1 / STEP)), factor, button("+", "Larger", () => magnify(STEP)),
    button("Whole image", "Show the whole image", () => magnify(0)));
  show();
  return {
    buttons,
    position(well, event) {
      const [x, y] = inPane(well, event);
      return [(x - left) / scale, (y - top) / scale];
    },
  };
}
