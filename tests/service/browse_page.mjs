// Drives the page of the service in Chromium and prints what was seen as JSON:
// node browse_page.mjs CHROMIUM ADDRESS FOLDER KEY [SCREENSHOTS]
// FOLDER has images in few/, and in many/ those of a job that takes long enough to be cancelled.
// playwright-core is looked up in the folder that NODE_PATH names.
import { createHash } from "node:crypto";
import { readdirSync, readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { join } from "node:path";

const { chromium } = createRequire(`${process.env.NODE_PATH}/`)("playwright-core");
const [executablePath, address, folder, key, pictures] = process.argv.slice(2);
const files = (name) => readdirSync(join(folder, name)).sort().map((file) => join(folder, name, file));
const quiet = [
  "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
  "--disable-background-networking", "--disable-component-update", "--disable-sync",
];
const browser = await chromium.launch({ executablePath, args: quiet });
const context = await browser.newContext({ viewport: { width: 1360, height: 900 } });
const page = await context.newPage();
page.setDefaultTimeout(60000);
const complaints = [];
page.on("console", (message) => {
  const isRefusal = message.text().includes("401"); // the browser notes that a key is asked for
  if (["error", "warning"].includes(message.type()) && !isRefusal) complaints.push(message.text());
});
page.on("pageerror", (error) => complaints.push(String(error)));
page.on("request", (request) => {
  if (!request.url().startsWith(address) && !request.url().startsWith("blob:")) complaints.push(request.url());
});
page.on("dialog", (dialog) => dialog.accept());
const shoot = async (name) => pictures && page.screenshot({ path: join(pictures, `${name}.png`) });
const seen = {};

// the key is asked for once, and kept for the tab only
await page.goto(`${address}/`);
await page.getByLabel("API key", { exact: true }).fill("wrong");
await page.keyboard.press("Enter");
await page.getByText("The key in use is not valid.").waitFor();
await page.getByLabel("API key", { exact: true }).fill(key);
await shoot("key");
await page.keyboard.press("Enter");
await page.getByRole("heading", { level: 1 }).waitFor();
seen.stored = await page.evaluate(() => [Object.values(sessionStorage), localStorage.length, document.cookie]);
await shoot("start");

// one image
await page.getByLabel("Find and count objects").check();
await page.locator("#images").setInputFiles(files("few")[0]);
await page.locator(".verdict .big").waitFor();
seen.verdict = await page.locator(".verdict h2").textContent();
seen.told = await page.locator(".verdict li").allTextContents();
seen.u = await page.locator(".verdict .big strong").textContent();
seen.objects = await page.locator(".result .tiles div").first().innerText();
seen.sizes = await page.locator(".well img").evaluateAll((all) => all.map((one) => [one.naturalWidth, one.naturalHeight]));
await page.locator(".well").last().hover({ position: { x: 60, y: 60 } });
seen.readout = await page.locator(".readout").textContent();
await page.getByRole("button", { name: "Larger" }).click();
await page.getByRole("button", { name: "Larger" }).click();
seen.moved = await page.locator(".well img").evaluateAll((all) => all.map((one) => one.style.transform));
await page.getByRole("button", { name: "Show the whole image" }).click();
const saved = page.waitForEvent("download");
await page.getByRole("button", { name: /^Mask/ }).click();
const download = await saved;
const digest = createHash("sha256").update(readFileSync(await download.path())).digest("hex");
seen.mask = [download.suggestedFilename(), digest];
await shoot("result");

// several images become a review list
await page.goto(`${address}/#/`);
await page.locator("#images").setInputFiles(files("few"));
await page.waitForURL(/jobs\/[0-9a-f]{32}$/);
await page.getByRole("status").getByText("The job is done.").waitFor({ state: "attached" });
seen.job = page.url().split("/").at(-1);
seen.ranking = await page.locator(".ranking tbody th a").allTextContents();
seen.verdicts = await page.locator(".ranking .badge").allTextContents();
seen.failures = await page.locator(".failures li").allTextContents();
await page.waitForFunction(() => [...document.querySelectorAll(".thumb img")].every((one) => one.naturalWidth > 0));
await shoot("ranking");
await page.getByLabel("Only images to review").check();
seen.review = await page.locator(".ranking tbody tr:visible").count();
await page.getByLabel("Only images to review").uncheck();
await page.locator(".ranking tbody th a").first().focus();
await page.keyboard.press("Enter");
await page.locator(".verdict .big").waitFor();
seen.focused = await page.evaluate(() => document.activeElement.id);
seen.first = await page.getByRole("heading", { level: 1 }).textContent();
await page.getByRole("link", { name: "Less doubtful" }).click();
await page.waitForFunction((first) => document.querySelector("h1").textContent !== first, seen.first);
seen.second = await page.getByRole("heading", { level: 1 }).textContent();
await page.locator(".well img").first().waitFor();

if (pictures) {
  await shoot("review");
  for (const [name, size, scheme] of [["phone", { width: 390, height: 844 }, "light"], ["dark", { width: 1360, height: 900 }, "dark"]]) {
    await page.setViewportSize(size);
    await page.emulateMedia({ colorScheme: scheme });
    await shoot(`${name}-result`);
    for (const [view, place] of [["start", "#/"], ["ranking", `#/jobs/${seen.job}`]]) {
      await page.goto(`${address}/${place}`);
      await page.waitForTimeout(1500);
      await shoot(`${name}-${view}`);
    }
    await page.goto(`${address}/#/jobs/${seen.job}/0`);
    await page.locator(".verdict .big").waitFor();
  }
  await page.emulateMedia({ colorScheme: "light" });
  await page.setViewportSize({ width: 1360, height: 900 });
}

// nothing is wider than a phone
await page.setViewportSize({ width: 360, height: 780 });
seen.widths = [];
for (const place of ["#/", "#/jobs", `#/jobs/${seen.job}`, `#/jobs/${seen.job}/0`]) {
  await page.goto(`${address}/${place}`);
  await page.waitForFunction((place) => location.hash === place && document.querySelector("h1"), place);
  seen.widths.push(await page.evaluate(() => document.documentElement.scrollWidth));
}
await page.setViewportSize({ width: 1360, height: 900 });

// a job is cancelled while its progress is shown
await page.goto(`${address}/#/`);
await page.locator("#images").setInputFiles(files("many"));
await page.waitForURL(/jobs\/[0-9a-f]{32}$/);
await page.goto(`${address}/#/jobs`);
const row = page.locator(".jobs li").first();
await row.getByText(/running/).waitFor();
await shoot("jobs");
seen.bar = await row.locator("progress").isVisible();
await row.getByRole("button", { name: /^Cancel/ }).click();
await row.getByText("cancelled").waitFor();
seen.cancelled = await row.locator(".badge").textContent();
const before = await page.locator(".jobs li").count();
await row.getByRole("button", { name: /^Remove/ }).click();
await page.waitForFunction((before) => document.querySelectorAll(".jobs li").length === before - 1, before);

// the reference
await page.goto(`${address}/docs`);
await page.locator(".operation").first().waitFor();
seen.operations = await page.locator(".contents a").allTextContents();
await shoot("docs");

await browser.close();
process.stdout.write(JSON.stringify({ ...seen, complaints }));
