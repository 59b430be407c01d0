// Jobs: their list with live progress, and the review list of one of them.
import { events, read, request, save, show } from "./api.js";
import { alarm, ago, count, duration, guarded, h, score, tell } from "./dom.js";
import { fillResult } from "./result.js";
import { BADGES, ranked, reason, toneOf } from "./words.js";

const STREAMS = 3; // browsers open six connections to a service at a time
const LIST_MS = 5000;
const RESULTS_MS = 1000;
const STATES = { accepted: "waiting", running: "running", successful: "done", failed: "failed", dismissed: "cancelled" };

const isOver = ({ ended }) => ended !== null;

// -- list -----------------------------------------------------------------------------------------

export async function showJobs(content, signal) {
  content.append(h("h1", {}, "Jobs"), await jobList(signal, 100));
}

/** List the newest jobs, and keep the list up to date until `signal` is aborted. */
export async function jobList(signal, limit) {
  const list = h("ul", { class: "jobs" });
  const rows = new Map();
  const followed = new Set();

  async function refresh() {
    const { jobs } = await read(`/v1/jobs?limit=${limit}`, { signal });
    for (const job of jobs) {
      if (!rows.has(job.id)) rows.set(job.id, jobRow(refresh));
      rows.get(job.id).update(job);
    }
    const known = jobs.map(({ id }) => rows.get(id).element);
    if (known.length !== list.children.length || known.some((row, place) => row !== list.children[place])) list.replaceChildren(...known);
    if (!jobs.length) list.replaceChildren(h("li", { class: "fine" }, "No jobs yet."));
    for (const job of jobs.filter((job) => !isOver(job))) {
      if (followed.size < STREAMS && !followed.has(job.id)) follow(job).catch(alarm);
    }
    return jobs.some((job) => !isOver(job));
  }

  async function follow({ id, links }) {
    followed.add(id);
    try {
      for await (const job of events(links.events, signal)) rows.get(id).update(job);
    } finally {
      followed.delete(id);
    }
    if (!signal.aborted) await refresh();
  }

  await refresh();
  const timer = setInterval(() => refresh().catch(() => {}), LIST_MS);
  signal.addEventListener("abort", () => clearInterval(timer));
  return list;
}

function jobRow(changed) {
  const title = h("a", {});
  const facts = h("span", { class: "fine" });
  const state = h("span", { class: "badge" });
  const bar = h("progress", { max: 1 });
  const button = h("button", { type: "button" });
  const element = h("li", {}, h("div", { class: "grow" }, title, " ", facts), bar, state, button);
  return {
    element,
    update(job) {
      title.textContent = count(job.images.total, "image");
      title.href = `#/jobs/${job.id}`;
      facts.replaceChildren(`${job.model}, `, ago(job.created), ...(job.images.failed ? [`, ${job.images.failed} failed`] : []));
      showProgress(job, bar, state);
      endButton(job, button, changed);
    },
  };
}

function showProgress(job, bar, state) {
  const { images, progress, eta_seconds: left } = job;
  const share = images.total === 1 && progress.total ? progress.done / progress.total : (images.successful + images.failed) / images.total;
  bar.hidden = isOver(job);
  bar.value = share;
  bar.setAttribute("aria-label", `Progress of ${count(images.total, "image")}`);
  state.className = `badge ${job.state}`;
  state.textContent = STATES[job.state] + (left !== null && !isOver(job) ? `, about ${duration(left)} left` : "");
}

/** Let a button cancel a job, or remove it with its results once it has ended. */
function endButton(job, button, done) {
  const over = isOver(job);
  button.textContent = over ? "Remove" : "Cancel";
  button.setAttribute("aria-label", `${button.textContent} the job of ${count(job.images.total, "image")}`);
  button.onclick = guarded(async () => {
    if (over && !confirm("Remove this job with all its results?")) return;
    await request(job.links.self, { method: "DELETE" });
    tell(over ? "The job was removed." : "The job was cancelled.");
    await done();
  });
}

// -- one job --------------------------------------------------------------------------------------

export async function showJob(content, signal, id) {
  const first = await read(`/v1/jobs/${id}`, { signal });
  const place = h("div", { class: "view" });
  const title = h("h1", {}, count(first.images.total, "image"));
  const facts = h("p", { class: "fine" }, `Model ${first.model}, `, ago(first.created));
  const bar = h("progress", { max: 1 });
  const state = h("span", { class: "badge" });
  const button = h("button", { type: "button" });
  const status = h("div", { class: "status" }, bar, state, button);
  content.append(h("div", { class: "title" }, h("div", {}, title, facts), status), place);

  const list = reviewList(first, signal);
  let isShown = false;
  async function update(job) {
    showProgress(job, bar, state);
    endButton(job, button, async () => {
      if (isOver(job)) location.hash = "#/jobs";
    });
    const { items } = await read(job.links.results, { signal });
    if (items.length > 1) {
      list.update(job, items);
      if (!isShown) place.replaceChildren(list.element);
      isShown = true;
      return;
    }
    const [item] = items;
    title.textContent = item.name;
    if (item.state === "successful" && !isShown) {
      isShown = true;
      await fillResult(place, job, item, signal);
    } else if (item.state === "failed") {
      place.replaceChildren(h("section", { class: "verdict review" }, h("h2", {}, item.problem.title), h("p", {}, item.problem.detail)));
    } else if (!isShown) {
      place.replaceChildren(h("p", { class: "waiting" }, job.state === "dismissed" ? "The job was cancelled before it had a result." : "The result appears here when it is there."));
    }
  }
  await update(first);
  if (!isOver(first)) follow(first, signal, update).catch(alarm);
}

/** Follow a job to its end, but ask for results at most once a second. */
async function follow(job, signal, update) {
  let asked = 0;
  for await (const event of events(job.links.events, signal)) {
    if (!isOver(event) && Date.now() - asked < RESULTS_MS) continue;
    await update(event);
    asked = Date.now();
    if (isOver(event)) tell(`The job is ${STATES[event.state]}.`);
  }
}

// -- review list ----------------------------------------------------------------------------------

function reviewList(job, signal) {
  const tiles = h("dl", { class: "tiles" });
  const only = h("input", { type: "checkbox", onchange: () => element.classList.toggle("only-review", only.checked) });
  const body = h("tbody", {});
  const failures = h("ul", { class: "failures" });
  const table = h("div", { class: "scroll" }, h("table", { class: "ranking" },
    h("caption", { class: "hidden" }, "Images by decreasing uncertainty"),
    h("thead", {}, h("tr", {}, ["Rank", "Picture", "Image", "U", "Verdict"].map((name) => h("th", { scope: "col" }, name)))),
    body));
  const download = h("button", { type: "button", onclick: guarded(() => save(job.links.ranking, "ranking.csv", { Accept: "text/csv" })) }, "Download the list (CSV)");
  const element = h("div", {}, tiles, h("div", { class: "controls" }, h("label", { class: "check" }, only, "Only images to review"), download), table, failures);
  const rows = new Map();
  const thumbnails = lazily(signal);
  return {
    element,
    update(job, items) {
      const order = ranked(items);
      const review = order.filter(({ quality }) => quality.needs_review).length;
      const failed = items.filter(({ state }) => state === "failed");
      const told = [["to review", review, review > 0], ["fine", order.filter(({ quality }) => quality.needs_review === false).length], ["failed", failed.length, failed.length > 0], ["to come", isOver(job) ? 0 : items.length - order.length - failed.length]];
      tiles.replaceChildren(...told.filter(([, number]) => number).map(([name, number, stands]) => h("div", { class: stands ? "stands" : null }, h("dt", {}, name), h("dd", {}, String(number)))));
      download.hidden = only.parentElement.hidden = !order.length;
      table.hidden = !order.length;
      const largest = Math.max(...order.map(({ quality }) => quality.uncertainty_score ?? 0), 1e-9);
      order.forEach((item, place) => {
        if (!rows.has(item.index)) rows.set(item.index, rankedRow(job, item, thumbnails));
        const row = rows.get(item.index);
        row.rank.textContent = String(place + 1);
        row.meter.max = Math.max(largest, item.quality.u_min ?? 0);
        if (body.children[place] !== row.element) body.insertBefore(row.element, body.children[place] ?? null);
      });
      failures.replaceChildren(...failed.map(({ name, problem }) => h("li", {}, h("strong", {}, name), ` – ${problem.title}. ${problem.detail}`)));
    },
  };
}

function rankedRow(job, item, thumbnails) {
  const { quality } = item;
  const tone = toneOf(quality);
  const rank = h("td", { class: "rank" });
  const meter = h("meter", { min: 0, value: quality.uncertainty_score ?? 0, "aria-hidden": "true" });
  const picture = h("img", { alt: "", width: 96, height: 72 });
  thumbnails(picture, `${job.links.results}/${item.index}/thumbnail`);
  const place = `#/jobs/${job.id}/${item.index}`;
  const element = h("tr", { class: tone }, rank,
    h("td", { class: "thumb" }, h("a", { href: place, tabindex: -1, "aria-hidden": "true" }, picture)),
    h("th", { scope: "row" }, h("a", { href: place }, item.name), h("span", { class: "fine" }, reason(quality))),
    h("td", { class: "u" }, score(quality.uncertainty_score), meter),
    h("td", {}, h("span", { class: `badge ${tone}` }, BADGES[tone])));
  return { element, rank, meter };
}

/** Return a function that fetches a picture when it comes into sight. */
function lazily(signal) {
  const places = new WeakMap();
  const observer = new IntersectionObserver((entries) => {
    for (const { target, isIntersecting } of entries) {
      if (!isIntersecting) continue;
      observer.unobserve(target);
      show(target, places.get(target), signal).catch(() => target.classList.add("missing"));
    }
  }, { rootMargin: "300px" });
  signal.addEventListener("abort", () => observer.disconnect());
  return (picture, place) => {
    places.set(picture, place);
    observer.observe(picture);
  };
}
