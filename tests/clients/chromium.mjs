// A real browser's EventSource, on a page of the stream's own origin that no server has to serve.
import { createRequire } from "node:module";
import { names, say, url } from "./said.mjs";

const { chromium } = createRequire(new URL("../page/page.mjs", import.meta.url))("playwright-core");

const browser = await chromium.launch({ executablePath: process.argv[4], args: ["--no-sandbox"] });
try {
  const page = await browser.newPage();
  const blank = new URL("/blank", url).href;
  await page.route(blank, (route) => route.fulfill({ contentType: "text/html", body: '<link rel="icon" href="data:,">' }));
  await page.goto(blank);
  await page.unrouteAll();
  let end;
  const ended = new Promise((resolve) => (end = resolve));
  await page.exposeFunction("said", say);
  await page.exposeFunction("ended", end);
  await page.evaluate(([url, names]) => {
    const source = new EventSource(url);
    const told = (event) => window.said(event.lastEventId, event.type, event.data);
    for (const name of [...names, "message"]) source.addEventListener(name, told);
    source.addEventListener("error", () => source.readyState === EventSource.CLOSED && window.ended());
  }, [url, names]);
  await ended;
} finally {
  await browser.close();
}
