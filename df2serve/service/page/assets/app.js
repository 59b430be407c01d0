// Which view is shown: the part of the address after "#" decides.
import { askForKey, changeKey, hasKey } from "./api.js";
import { alarm, guarded, h } from "./dom.js";
import { showJob, showJobs } from "./jobs.js";
import { showResult } from "./result.js";
import { showStart } from "./start.js";

const VIEWS = [
  [/^#\/jobs\/([0-9a-f]{32})\/(\d+)$/, showResult],
  [/^#\/jobs\/([0-9a-f]{32})$/, showJob],
  [/^#\/jobs$/, showJobs],
  [/^(?:#\/)?$/, showStart],
];
const main = document.getElementById("main");
let leaving = new AbortController();
let isFirst = true;

async function route() {
  const { hash } = location;
  if (hash && !hash.startsWith("#/")) return; // a place on the page
  leaving.abort();
  leaving = new AbortController();
  const { signal } = leaving;
  const [pattern, view] = VIEWS.find(([pattern]) => pattern.test(hash)) ?? VIEWS.at(-1);
  for (const link of document.querySelectorAll(".bar nav a")) {
    const place = link.getAttribute("href").slice(1);
    const isHere = place === "#/" ? view === showStart : place === "#/jobs" && view !== showStart;
    link.toggleAttribute("aria-current", isHere);
    if (isHere) link.setAttribute("aria-current", "page");
  }
  const content = h("div", { class: "view" });
  try {
    await view(content, signal, ...(pattern.exec(hash)?.slice(1) ?? []));
  } catch (error) {
    if (signal.aborted) return;
    content.replaceChildren(trouble(error));
  }
  if (signal.aborted) return;
  main.replaceChildren(content);
  document.title = `${content.querySelector("h1")?.textContent ?? "df2serve"} · df2serve`;
  if (!isFirst) {
    scrollTo(0, 0);
    main.focus({ preventScroll: true });
  }
  isFirst = false;
}

function trouble(error) {
  return h("section", { class: "panel" },
    h("h1", {}, "That did not work"),
    h("p", {}, error.message),
    h("p", { class: "actions" },
      error.status === 401 && h("button", { class: "main", onclick: async () => (await askForKey()) && route() }, "Enter a key"),
      h("button", { onclick: route }, "Try again"),
      h("a", { href: "#/" }, "Start")));
}

const button = document.getElementById("key-button");
button.hidden = !hasKey();
button.addEventListener("click", guarded(async () => (await changeKey()) && route()));
addEventListener("hashchange", () => route().catch(alarm));
route().catch(alarm);
