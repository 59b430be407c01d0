// Drives a report in Chromium and prints what was seen as JSON: node browse_report.mjs CHROMIUM PAGE
// playwright-core is looked up in the folder that NODE_PATH names.
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

const { chromium } = createRequire(`${process.env.NODE_PATH}/`)("playwright-core");
const [executablePath, file] = process.argv.slice(2);
const quiet = [
  "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
  "--disable-background-networking", "--disable-component-update", "--disable-sync",
];
const browser = await chromium.launch({ executablePath, args: quiet });
const page = await browser.newPage({ viewport: { width: 1360, height: 900 } });
const complaints = [];
page.on("console", (message) => ["error", "warning"].includes(message.type()) && complaints.push(message.text()));
page.on("pageerror", (error) => complaints.push(String(error)));
page.on("request", (request) => !/^(data|file):/.test(request.url()) && complaints.push(request.url()));
page.on("dialog", (dialog) => { complaints.push(`dialog ${dialog.message()}`); dialog.dismiss(); });

// milliseconds until something is seen, the best of three: other programs may be running
const paints = [];
for (let run = 0; run < 3; run++) {
  await page.goto(pathToFileURL(file).href);
  paints.push(await page.evaluate(() => new Promise((done) => {
    new PerformanceObserver((list) => {
      const paint = list.getEntriesByName("first-contentful-paint");
      if (paint.length) done(paint[0].startTime);
    }).observe({ type: "paint", buffered: true });
  })));
}
const firstPaint = Math.min(...paints);

// milliseconds of work of the page's thread, whatever else the machine does, until an action is drawn
const client = await page.context().newCDPSession(page);
await client.send("Performance.enable", { timeDomain: "threadTicks" });
const worked = async () => {
  const { metrics } = await client.send("Performance.getMetrics");
  return 1000 * metrics.find(({ name }) => name === "TaskDuration").value;
};
const drawn = () => page.evaluate(
  () => new Promise((done) => requestAnimationFrame(() => setTimeout(done))),
);
const measured = async (act) => {
  await drawn();
  const start = await worked();
  await act();
  await drawn();
  return (await worked()) - start;
};
const timed = async (id, before, after) => {
  const runs = [];
  const set = (value) => page.evaluate(([id, value]) => {
    const node = document.getElementById(id);
    node.value = value;
    node.dispatchEvent(new Event("input", { bubbles: true }));
  }, [id, value]);
  for (let run = 0; run < 3; run++) {
    await set(before);
    runs.push(await measured(() => set(after)));
  }
  return Math.min(...runs);
};
const shown = () => page.evaluate(() =>
  [...document.querySelectorAll(".card:not([hidden]) h3 bdi")].map((node) => node.textContent));
const told = (selector) => page.textContent(selector);

const times = {
  slider: await timed("slider", "0.9", "0.3"),
  number: await timed("number", "0.9", "0.4"),
  filter: await timed("query", "", "1"),
  clear: await timed("query", "1", ""),
  sort: await timed("order", "review list", "name"),
};
const byName = await shown();
await page.selectOption("#order", "review list");
await page.fill("#number", "0.4");
const reviewed = { count: await told("[data-count]"), level: await told("[data-level]"), tile: await told("[data-reviewed]") };
await page.selectOption("#state", "review");
const toReview = await shown();
await page.selectOption("#state", "");
await page.fill("#query", "no such name");
const none = { shown: await shown(), told: await told("#nothing") };
await page.click("#clear");
const all = await shown();

await page.locator("#image-1 .pictures").scrollIntoViewIfNeeded();
times.details = await measured(() => page.$eval("#image-1 .pictures", (node) => node.click()));
await page.keyboard.press("ArrowRight");
const second = await told("#details-title bdi");
const [width, height] = await page.$eval("#stage img", (node) => [node.clientWidth, node.clientHeight]);
await page.keyboard.press("o");
const outlines = await page.$eval("#stage .outline", (node) => getComputedStyle(node).visibility);
await page.keyboard.press("Escape");
const closed = await page.$eval("#details", (node) => !node.open);
const focus = await page.evaluate(() => document.activeElement.closest(".card").id);

await browser.close();
console.log(JSON.stringify({
  complaints, firstPaint, times, byName, reviewed, toReview, none, all, second, size: [width, height],
  outlines, closed, focus,
}));
