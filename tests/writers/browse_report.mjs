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

await page.goto(pathToFileURL(file).href);
await page.waitForTimeout(300);
const firstPaint = await page.evaluate(
  () => performance.getEntriesByName("first-contentful-paint")[0].startTime,
);

// milliseconds from an input until the frame that shows it has been drawn, the best of three
const timed = async (change) => {
  const runs = [];
  for (let run = 0; run < 3; run++) {
    runs.push(await page.evaluate(async ([id, values]) => {
      const node = document.getElementById(id);
      const drawn = () => new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
      const set = async (value) => {
        node.value = value;
        node.dispatchEvent(new Event("input", { bubbles: true }));
        await drawn();
      };
      await set(values[0]);
      await drawn();
      const start = performance.now();
      await set(values[1]);
      return performance.now() - start;
    }, change));
  }
  return Math.min(...runs);
};
const shown = () => page.evaluate(() =>
  [...document.querySelectorAll(".card:not([hidden]) h3 bdi")].map((node) => node.textContent));
const told = (selector) => page.textContent(selector);

const times = {
  slider: await timed(["slider", ["0.9", "0.3"]]),
  number: await timed(["number", ["0.9", "0.4"]]),
  filter: await timed(["query", ["", "1"]]),
  clear: await timed(["query", ["1", ""]]),
  sort: await timed(["order", ["review list", "name"]]),
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

const start = await page.evaluate(() => performance.now());
await page.click("#image-1 .pictures");
await page.waitForSelector("#details[open]");
times.details = (await page.evaluate(() => performance.now())) - start;
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
