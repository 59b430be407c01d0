"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const $ = (id) => document.getElementById(id);
  const make = (tag, properties = {}, ...children) => {
    const node = Object.assign(document.createElement(tag), properties);
    node.append(...children);
    return node;
  };
  const fixed = (value) => (value === null ? "undefined" : value.toFixed(3));
  const percent = (share) => `${(100 * share).toFixed(share < 0.0995 ? 1 : 0)}%`;

  const gallery = $("gallery");
  const images = data.images.map((facts) => {
    const card = $(`image-${facts.rank}`);
    return { ...facts, card, review: card.classList.contains("review"), text: facts.name.toLowerCase() };
  });
  let shown = images;
  let threshold = data.threshold;

  // -- threshold -------------------------------------------------------------------------------

  const needsReview = (image) => threshold !== null && (image.u === null || image.u >= threshold);
  const slider = $("slider");
  const number = $("number");
  const line = document.querySelector(".line line");

  const promise = () => {
    if (threshold === null) return "";
    const failing = data.references.filter((point) => point[1]);
    const caught = failing.filter((point) => point[0] >= threshold).length;
    const part = caught === failing.length ? `All ${caught}` : `${caught} of the ${failing.length}`;
    const tried = failing.length ? `${part} reference images that failed would be seen. ` : "";
    if (!data.levels.length) return tried;
    const level = data.levels.find(([value]) => threshold <= value);
    return level
      ? `${tried}Of new images that fail in the same way (${data.failure}), at most ${percent(level[1])} would escape.`
      : `${tried}So high, a threshold promises nothing.`;
  };

  const setThreshold = (value) => {
    threshold = value;
    let count = 0;
    for (const image of images) {
      const review = needsReview(image);
      count += review;
      if (image.review !== review) {
        image.review = review;
        image.card.classList.toggle("review", review);
      }
    }
    const known = threshold !== null;
    if ($("reset")) $("reset").hidden = threshold === data.threshold;
    for (const node of document.querySelectorAll("[data-reviewed]")) node.textContent = known ? count : "–";
    document.querySelector("[data-count]").replaceChildren(
      ...(known ? [make("b", { textContent: `${count} of ${images.length}` }), " images"] : ["choose a threshold to mark images"]),
    );
    document.querySelector("[data-level]").textContent = promise();
    line.parentNode.style.visibility = known ? "" : "hidden";
    if (known) {
      const place = `${2 + (96 * Math.min(threshold, data.axis)) / data.axis}%`;
      line.setAttribute("x1", place);
      line.setAttribute("x2", place);
      slider.value = threshold;
      slider.setAttribute("aria-valuetext", `${fixed(threshold)}, ${count} of ${images.length} images`);
      if (document.activeElement !== number) number.value = threshold.toFixed(3);
    }
    if ($("state").value) arrange();
  };
  slider.addEventListener("input", () => setThreshold(Number(slider.value)));
  number.addEventListener("input", () => number.value !== "" && setThreshold(Number(number.value)));
  $("reset")?.addEventListener("click", () => setThreshold(data.threshold));

  // -- filter and order ------------------------------------------------------------------------

  const scoreOf = (title) => (image) => image.scores.find((score) => score.title === title)?.value ?? Infinity;
  const share = (image) => image.shares.reduce((sum, [, part]) => sum + part, 0);
  const collator = new Intl.Collator("en", { numeric: true });
  const descending = (key) => (a, b) => key(b) - key(a) || a.rank - b.rank;
  const orders = new Map([
    ["review list", (a, b) => a.rank - b.rank],
    ["name", (a, b) => collator.compare(a.text, b.text)],
  ]);
  for (const title of new Set(images.flatMap((image) => image.scores.map((score) => score.title)))) {
    orders.set(title, descending(scoreOf(title)));
  }
  orders.set("foreground, most first", descending(share));
  if (images.some((image) => image.counted !== null)) {
    orders.set("objects, most first", descending((image) => image.counted ?? -1));
  }
  if (images.some((image) => image.quality)) {
    orders.set("Dice, worst first", (a, b) => (a.quality?.dice ?? 2) - (b.quality?.dice ?? 2) || a.rank - b.rank);
  }
  $("order").append(...[...orders.keys()].map((name) => make("option", { textContent: name })));

  const fits = () => {
    const query = $("query").value.trim().toLowerCase();
    const state = $("state").value;
    const chosen = $("class").value;
    return (image) =>
      image.text.includes(query) &&
      (!state || needsReview(image) === (state === "review")) &&
      (!chosen || (chosen === "0" ? share(image) === 0 : image.shares[chosen - 1]?.[1] > 0));
  };

  const arrange = () => {
    shown = images.filter(fits()).sort(orders.get($("order").value));
    const visible = new Set(shown);
    for (const image of images) {
      if (image.card.hidden === visible.has(image)) image.card.hidden = !image.card.hidden;
    }
    let previous = null;
    for (const { card } of shown) {
      const place = previous ? previous.nextElementSibling : gallery.firstElementChild;
      if (place !== card) gallery.insertBefore(card, place);
      previous = card;
    }
    $("shown").textContent = `${shown.length} of ${images.length} images`;
    $("nothing").hidden = shown.length > 0;
  };
  $("controls").addEventListener("input", (event) => event.target.id !== "outlines" && arrange());
  $("controls").addEventListener("submit", (event) => event.preventDefault());
  $("clear").addEventListener("click", () => {
    $("controls").reset();
    showOutlines(true);
    arrange();
    $("query").focus();
  });

  const showOutlines = (on) => {
    document.body.classList.toggle("no-outlines", !on);
    $("outlines").checked = $("outlines-large").checked = on;
  };
  for (const id of ["outlines", "outlines-large"]) {
    $(id).addEventListener("change", (event) => showOutlines(event.target.checked));
  }

  // -- one image -------------------------------------------------------------------------------

  const dialog = $("details");
  let current = null;

  const layer = (image, kind) => {
    const copy = image.card.querySelector(`img.${kind}`).cloneNode();
    copy.loading = "eager";
    return copy;
  };

  const fillStages = (image) => {
    const plain = make("div", {}, layer(image, "plain"), layer(image, "outline"));
    if ($("blend").checked) {
      const map = layer(image, "map");
      map.classList.add("over");
      plain.insertBefore(map, plain.lastChild);
    }
    $("stage").replaceChildren(plain);
    $("stage-map").replaceChildren(make("div", {}, layer(image, "map")));
    const { width, height } = layer(image, "plain");
    for (const stage of dialog.querySelectorAll(".stage > div")) {
      // small images are magnified
      stage.style.width = `min(100%, ${(62 * width) / height}dvh)`;
      stage.style.aspectRatio = `${width} / ${height}`;
    }
  };

  const showBox = (image, object) => {
    const [top, left, bottom, right] = object.slice(5).map(Number);
    const [, height, width] = image.shape;
    for (const stage of dialog.querySelectorAll(".stage > div")) {
      stage.querySelector(".box")?.remove();
      const box = make("div", { className: "box" });
      box.style.top = `${(100 * top) / height}%`;
      box.style.left = `${(100 * left) / width}%`;
      box.style.height = `${(100 * (bottom - top)) / height}%`;
      box.style.width = `${(100 * (right - left)) / width}%`;
      stage.append(box);
    }
  };

  const cell = (text, number = false) => make("td", { textContent: text, className: number ? "number" : "" });

  const fillObjects = (image) => {
    $("objects-section").hidden = image.counted === null;
    const rest = image.counted - image.objects.length;
    $("objects-note").textContent = !image.counted
      ? "No objects."
      : `${rest > 0 ? `The ${image.objects.length} most doubtful of ${image.counted} objects` : "Most doubtful first"}; choose one to see where it is.`;
    const rows = image.objects.map((object) => {
      const [label, name, area, u, probability] = object;
      const show = () => showBox(image, object);
      const row = make("tr", { tabIndex: 0, onclick: show, onfocus: show });
      row.append(cell(label), cell(name), cell(Number(area).toLocaleString("en")), cell(fixed(Number(u))), cell(fixed(Number(probability))));
      return row;
    });
    $("objects").tBodies[0].replaceChildren(...rows);
  };

  const fillScores = (image) => {
    const rows = image.scores.map((score) => {
      const name = make("th", { scope: "row", textContent: score.title });
      name.append(make("span", { className: "meaning", textContent: score.meaning }));
      return make("tr", {}, name, cell(fixed(score.value)), cell(score.place || "–"));
    });
    if (image.quality) {
      const { dice, worst, best } = image.quality;
      const experts = worst === null ? "–" : `experts ${worst.toFixed(2)} to ${best.toFixed(2)}`;
      const name = make("th", { scope: "row", textContent: "Dice" });
      name.append(make("span", { className: "meaning", textContent: "beside the truth; higher is better" }));
      rows.push(make("tr", {}, name, cell(fixed(dice)), cell(experts)));
    }
    $("scores").tBodies[0].replaceChildren(...rows);
  };

  const fillStrip = (image) => {
    const strip = $("strip");
    strip.replaceChildren(...document.querySelector(".chart .points").cloneNode(true).childNodes);
    if (image.u === null) return;
    const place = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    place.setAttribute("x", `${2 + (96 * Math.min(image.u, data.axis)) / data.axis}%`);
    place.setAttribute("y", "22");
    place.setAttribute("overflow", "visible");
    const mark = document.createElementNS("http://www.w3.org/2000/svg", "path");
    mark.setAttribute("d", "M0 10-7 0H7z");
    mark.setAttribute("class", "own");
    place.append(mark);
    strip.append(place);
  };

  const fillFacts = (image) => {
    const row = (name, ...content) => make("div", {}, make("dt", { textContent: name }), make("dd", {}, ...content));
    const rows = Object.entries(image.facts).map(([name, text]) => row(name, text));
    for (const [name, part] of image.shares) rows.push(row(`share of ${name}`, percent(part)));
    const files = Object.entries(image.files).flatMap(([kind, path], index) => {
      const href = path.split("/").map(encodeURIComponent).join("/");
      return [index ? ", " : "", data.beside ? make("a", { href, textContent: kind, title: path }) : `${kind}: ${path}`];
    });
    rows.push(row("files", ...files));
    $("facts").replaceChildren(...rows);
  };

  const open = (image) => {
    current = image;
    const title = $("details-title");
    title.querySelector(".rank").textContent = image.rank;
    title.querySelector("bdi").textContent = image.name;
    fillStages(image);
    $("why").replaceChildren(...image.reasons.map((reason) => make("li", { textContent: reason })));
    fillScores(image);
    fillObjects(image);
    fillStrip(image);
    fillFacts(image);
    if (!dialog.open) dialog.showModal();
    dialog.scrollTop = 0;
  };

  const step = (distance) => {
    const place = shown.indexOf(current) + distance;
    if (place >= 0 && place < shown.length) open(shown[place]);
  };
  gallery.addEventListener("click", (event) => {
    const card = event.target.closest(".pictures")?.closest(".card");
    if (card) open(images[Number(card.id.slice(6)) - 1]);
  });
  $("previous").addEventListener("click", () => step(-1));
  $("next").addEventListener("click", () => step(1));
  $("close").addEventListener("click", () => dialog.close());
  $("blend").addEventListener("change", () => fillStages(current));
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
  dialog.addEventListener("close", () => current.card.querySelector(".pictures").focus());
  dialog.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "ArrowLeft") step(-1);
    else if (event.key === "ArrowRight") step(1);
    else if (event.key.toLowerCase() === "o") showOutlines(!$("outlines").checked);
    else if (event.key.toLowerCase() === "u") $("blend").click();
  });

  // lazy pictures would be missing on paper
  addEventListener("beforeprint", () => {
    for (const picture of gallery.querySelectorAll("img")) picture.loading = "eager";
  });

  setThreshold(threshold);
  arrange();
})();
