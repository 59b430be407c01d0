// The first view: images go in.
import { read, request, upload } from "./api.js";
import { alarm, bytes, count, guarded, h, legend, tell } from "./dom.js";
import { jobList } from "./jobs.js";
import { modelFacts } from "./words.js";

const TYPES = ".tif,.tiff,.png,.jpg,.jpeg,.npy,.npz,.zip";
const OUTPUTS = "mask,uncertainty,overlay,picture";

export async function showStart(content, signal) {
  const { models, default: first } = await read("/v1/models", { signal });
  content.append(h("h1", {}, "Segment images, and see which results to doubt"));
  if (!models.length) {
    content.append(h("p", { class: "panel" }, "The service has no models. Start it with one: ", h("code", {}, "df2serve serve ENSEMBLE"), "."));
    return;
  }
  const settings = settingsOf(models, first);
  const send = (files) => submit(files, settings.parameters(), place, signal);
  const place = dropZone(send);
  content.append(h("div", { class: "start" }, place.element, settings.element));
  const example = exampleButton(settings, send);
  settings.element.append(example);
  settings.changed(({ has_example: exists }) => { example.hidden = !exists; });
  const jobs = h("section", { "aria-labelledby": "recent" }, h("h2", { id: "recent" }, "Recent jobs"));
  content.append(jobs);
  jobs.append(await jobList(signal, 5));
  dropAnywhere(place, signal);
}

/** Make a job of images, and go to it. */
async function submit(files, parameters, place, signal) {
  if (!files.length || place.isBusy()) return;
  const form = new FormData();
  for (const file of files) form.append("image", file, file.name);
  const stopping = new AbortController();
  place.sending(files, () => stopping.abort());
  signal.addEventListener("abort", () => stopping.abort());
  try {
    const job = await upload(`/v1/jobs?${parameters}`, form, { progressed: place.progressed, signal: stopping.signal });
    location.hash = `#/jobs/${job.id}`;
  } finally {
    place.waiting();
  }
}

/** Where images are dropped or chosen. */
function dropZone(send) {
  const input = h("input", {
    type: "file", multiple: true, accept: TYPES, id: "images", "aria-describedby": "images-hint",
    onchange: guarded(() => send([...input.files])),
  });
  const invitation = h("label", { for: "images" },
    h("span", { class: "arrow", "aria-hidden": "true" }, "↥"),
    h("strong", {}, "Drop images here, or choose them"));
  const hint = h("p", { id: "images-hint", class: "fine" },
    "TIFF, OME-TIFF, PNG, JPEG, NPY, NPZ or a zipped OME-Zarr. One image shows its result; several become a review list, the most doubtful first.");
  const bar = h("progress", { max: 1, value: 0, "aria-label": "Sent" });
  const label = h("span", {});
  const stop = h("button", { type: "button" }, "Cancel");
  const sent = h("div", { class: "sending", hidden: true }, label, bar, stop);
  const element = h("section", { class: "drop", "aria-label": "Images" }, input, invitation, hint, sent);
  const busy = (is) => {
    sent.hidden = !is;
    invitation.hidden = hint.hidden = input.disabled = is;
  };
  return {
    element,
    send,
    isBusy: () => !sent.hidden,
    progressed(done, total) {
      bar.value = total ? done / total : 0;
      if (done === total) label.textContent = "Sent; waiting for the service …";
    },
    sending(files, cancel) {
      const size = files.reduce((sum, file) => sum + file.size, 0);
      label.textContent = `Sending ${count(files.length, "image")}, ${bytes(size)}`;
      stop.onclick = cancel;
      bar.value = 0;
      busy(true);
      stop.focus();
      tell(label.textContent);
    },
    waiting() {
      input.value = "";
      busy(false);
    },
  };
}

/** Take images wherever on the page they are dropped. */
function dropAnywhere({ element, send }, signal) {
  let depth = 0;
  const over = (change) => (event) => {
    if (!event.dataTransfer?.types.includes("Files")) return;
    event.preventDefault();
    depth = Math.max(0, depth + change);
    element.classList.toggle("over", depth > 0);
  };
  addEventListener("dragenter", over(1), { signal });
  addEventListener("dragleave", over(-1), { signal });
  addEventListener("dragover", over(0), { signal });
  addEventListener("drop", (event) => {
    event.preventDefault();
    depth = 0;
    element.classList.remove("over");
    Promise.resolve(send([...event.dataTransfer.files])).catch(alarm);
  }, { signal });
}

/** What is computed, by which model. */
function settingsOf(models, first) {
  const facts = h("dl", { class: "facts" });
  const about = h("p", { class: "fine" });
  const classes = h("p", { class: "key" });
  const model = h("select", { id: "model", onchange: () => watchers.forEach((act) => act(chosen())) },
    models.map(({ name, title }) => h("option", { value: name, selected: name === first }, title && title !== name ? `${title} (${name})` : name)));
  const chosen = () => models.find(({ name }) => name === model.value);
  const objects = h("input", { type: "checkbox", id: "objects", onchange: () => { kinds.hidden = !objects.checked; } });
  const method = h("select", { id: "instances" },
    h("option", { value: "watershed" }, "are divided"),
    h("option", { value: "components" }, "are one object"));
  const smallest = h("input", { id: "min_size", type: "number", min: 0, step: 1, placeholder: "0" });
  const kinds = h("div", { class: "pair", hidden: true }, field("Those that touch", method), field("Smallest, in pixels", smallest));
  const preset = h("select", { id: "preset" },
    h("option", { value: "" }, "of the model"), ["accurate", "fast", "deepflash2"].map((name) => h("option", {}, name)));
  const more = ["axes", "channels", "pixel_size"].map((id) => h("input", { id, autocomplete: "off", spellcheck: "false" }));
  const [axes, channels, size] = more;
  axes.placeholder = "CYX";
  channels.placeholder = "0,2";
  size.placeholder = "0.25";

  const watchers = [];
  const changed = (act) => {
    watchers.push(act);
    act(chosen());
  };
  changed((model) => {
    facts.replaceChildren(...modelFacts(model).flatMap(([name, value]) => [h("dt", {}, name), h("dd", {}, value)]));
    about.textContent = model.description;
    classes.replaceChildren(...legend(model.classes));
  });
  return {
    chosen,
    changed,
    element: h("section", { class: "panel settings", "aria-label": "Settings" },
      field("Model", model), about, classes, facts,
      h("label", { class: "check" }, objects, "Find and count objects"),
      kinds,
      h("details", {}, h("summary", {}, "More settings"),
        h("div", { class: "pair" },
          field("Computation", preset), field("Axes of the file", axes),
          field("Channels, from 0", channels), field("Pixel size in µm", size)))),
    parameters() {
      const given = { model: model.value, preset: preset.value, axes: axes.value.trim().toUpperCase(), channels: channels.value.trim(), pixel_size: size.value.trim(), outputs: OUTPUTS };
      if (objects.checked) Object.assign(given, { instances: method.value, min_size: smallest.value, outputs: `${OUTPUTS},labels,instances` });
      return new URLSearchParams(Object.entries(given).filter(([, value]) => value));
    },
  };
}

const field = (label, input) => h("label", { class: "field", for: input.id }, h("span", {}, label), input);

/** Return a button that tries the chosen model with the image that it brings along. */
function exampleButton(settings, send) {
  return h("button", {
    type: "button",
    onclick: guarded(async () => {
      const { name } = settings.chosen();
      const answer = await request(`/v1/models/${encodeURIComponent(name)}/example`);
      await send([new File([await answer.blob()], `${name}-example.npy`)]);
    }),
  }, "Try the model’s example image");
}
