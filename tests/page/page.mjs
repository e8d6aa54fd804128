// node page.mjs BASE_URL SCENARIO [CHROMIUM]: one thing that must be true of the page, seen in a real browser. Exit 0
// when it is. Those before the line below use only what the demo agent does, so they run against every server.
import assert from "node:assert/strict";
import { chromium } from "playwright-core";

const [base, name, executablePath = "/usr/bin/chromium"] = process.argv.slice(2);
const WAIT_MS = 30_000; // a machine that runs other tests on every core, too
const THIRTY = Array.from({ length: 30 }, (_, i) => String(i + 1));

const words = (text) => text.match(/\b\d+\b/g) ?? [];
const reply = (page) => page.locator(".turn").last().locator(".said");
const replyText = async (page) => (await reply(page).allTextContents()).join("\n");
const status = (page) => page.locator("#status");

async function say(page, text) {
  await page.fill("#message", text);
  await page.press("#message", "Enter");
}

async function seen(page, text) {
  await page.waitForFunction((t) => [...document.querySelectorAll(".said")].some((e) => e.textContent.includes(t)), text);
}

const idle = (page) => page.waitForFunction(() => document.getElementById("stop").hidden && !document.querySelector("[aria-busy]"));

async function storedText(page) {
  return page.evaluate(async () => {
    const sid = location.hash.slice(4);
    const { messages } = await (await fetch(`v1/sessions/${sid}`)).json();
    return messages.filter((m) => m.role === "assistant").map((m) => m.content).join("\n");
  });
}

const SCENARIOS = {
  async a_turn_streams(page) {
    await page.waitForSelector("#agent option", { state: "attached" });
    await say(page, "count to 30 slowly");
    await page.waitForSelector(".said");
    const early = words(await replyText(page));
    await page.locator("#stop").waitFor();
    await page.waitForFunction(() => /Running/.test(document.getElementById("status").textContent));
    await seen(page, "30");
    await idle(page);
    const late = words(await replyText(page));
    assert.ok(early.length < late.length, "the text came at once");
    assert.deepEqual(late.slice(0, 30), THIRTY);
    assert.match(page.url(), /#\/s\/[0-9a-f]{12}$/);
    assert.equal(await page.inputValue("#message"), "");
    assert.match(await page.textContent(".meta summary"), /seal \d · process \d+/);
    assert.match(await page.textContent("#seal-summary"), /Seal \d/);
    await page.locator("#announce").getByText("30").waitFor({ state: "attached" });
  },

  async a_reload_in_the_middle_shows_the_same_text(page) {
    await say(page, "count to 30 slowly");
    await seen(page, "5");
    await page.fill("#message", "a draft that stays");
    await page.reload();
    await seen(page, "5");
    assert.equal(await page.inputValue("#message"), "a draft that stays");
    assert.equal(await page.locator(".user .text").count(), 1);
    await seen(page, "30");
    await idle(page);
    const live = await replyText(page);
    assert.deepEqual(words(live).slice(0, 30), THIRTY);
    await page.reload();
    await seen(page, "30");
    assert.equal((await replyText(page)).replace(/\s+/g, " ").trim(), live.replace(/\s+/g, " ").trim());
    assert.equal((await storedText(page)).replace(/\s+/g, ""), live.replace(/\s+/g, ""));
    assert.equal(await page.locator(".turn").count(), 1);
  },

  async an_approval_is_answered_by_click(page) {
    await say(page, "run echo hi");
    const prompt = page.locator(".prompt");
    await prompt.waitFor();
    assert.match(await prompt.textContent(), /echo hi/);
    assert.match(await status(page).textContent(), /Waiting for you/);
    assert.match(await page.title(), /^Waiting for you/);
    const [posted] = await Promise.all([
      page.waitForRequest((r) => r.method() === "POST" && r.url().includes("/approvals/")),
      page.click('[data-choice="once"]'),
    ]);
    assert.deepEqual(posted.postDataJSON(), { choice: "once" });
    await prompt.waitFor({ state: "detached" });
    await idle(page);
    assert.match(await page.locator(".turn").last().textContent(), /allowed once/);
    assert.match(await page.textContent('.tool[data-state="finished"] pre'), /hi/);
  },

  async an_approval_is_denied_by_keyboard_after_a_reload(page) {
    await say(page, "run echo hi");
    await page.locator(".prompt").waitFor();
    await page.reload();
    await page.locator(".prompt").waitFor();
    await page.waitForTimeout(600); // the keys are armed 500 ms after the prompt appears
    await page.focus(".prompt");
    await page.keyboard.press("4");
    await idle(page);
    assert.match(await page.locator(".turn").last().textContent(), /denied/);
  },

  async stop_keeps_what_was_said(page) {
    await say(page, "count to 30 slowly");
    await seen(page, "3");
    await page.click("#stop");
    await page.locator(".verdict.cancelled").waitFor();
    await idle(page);
    const said = words(await replyText(page));
    assert.deepEqual(said, THIRTY.slice(0, said.length));
    assert.ok(said.length >= 3 && said.length < 30, `said ${said.length}`);
    await page.reload();
    await page.locator(".verdict.cancelled").waitFor();
    assert.deepEqual(words(await replyText(page)), said);
  },

  async two_tabs_show_the_same_turn_live(page, context) {
    await say(page, "count to 3");
    await idle(page);
    const other = await context.newPage();
    watch(other);
    await other.goto(page.url());
    await seen(other, "3");
    await say(page, "count to 30 slowly");
    await other.waitForFunction(() => document.querySelectorAll(".turn").length === 2 && document.querySelector("[aria-busy] .said"));
    await Promise.all([seen(page, "30"), seen(other, "30")]);
    await Promise.all([idle(page), idle(other)]);
    assert.equal(await replyText(page), await replyText(other));
    assert.equal(await other.locator(".user .text").last().textContent(), "count to 30 slowly");
  },

  async text_is_never_markup(page) {
    const evil = '<img src=x onerror="document.title=1"><script>window.pwned=1</script>';
    await say(page, evil);
    await page.waitForSelector(".said");
    await idle(page);
    assert.equal(await page.textContent(".user .text"), evil);
    assert.equal(await page.evaluate(() => window.pwned), undefined);
    assert.equal(await page.locator("main img").count(), 0);
    await page.reload();
    await page.waitForSelector(".said");
    await page.locator("#sessions a").first().waitFor();
    assert.equal(await page.locator("#sessions img").count(), 0);
  },

  async a_busy_session_shows_its_turn_and_keeps_what_was_typed(page, context) {
    await say(page, "count to 3");
    await idle(page);
    await page.waitForLoadState("networkidle"); // it has read the session after the turn's end
    // As if this page had not heard yet that another one has started a turn.
    await page.route("**/v1/sessions?*", (route) => route.abort());
    await page.evaluate(async () => {
      const started = await fetch(`v1/sessions/${location.hash.slice(4)}/turns`, {
        method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify({ message: "count to 30 slowly" }),
      });
      if (!started.ok) throw new Error(await started.text());
    });
    await say(page, "my own words");
    await page.locator("#send-problem .problem").waitFor();
    assert.equal(await page.inputValue("#message"), "my own words");
    await seen(page, "5");
    assert.equal(await page.locator(".user .text").last().textContent(), "count to 30 slowly");
    await page.click("#stop");
    await idle(page);
    assert.equal(await page.inputValue("#message"), "my own words");
  },

  async sessions_are_renamed_archived_found_and_deleted(page) {
    await say(page, "count to 3");
    await idle(page);
    await page.click("#manage summary");
    await page.click("#do-rename");
    await page.fill("#rename", "A name of mine <b>");
    await page.press("#rename", "Enter");
    await page.locator("#title", { hasText: "A name of mine <b>" }).waitFor();
    await page.fill("#search", "mine");
    const row = page.locator("#sessions a", { hasText: "A name of mine <b>" });
    await row.waitFor();
    await page.fill("#search", "zzzunknown");
    await page.locator("#list-empty", { hasText: "Nothing found" }).waitFor();
    await page.fill("#search", "");
    await row.waitFor();
    await page.click("#manage summary");
    await page.click("#do-archive");
    await row.waitFor({ state: "detached" });
    await page.check("#archived");
    await row.waitFor();
    await page.click("#manage summary");
    await page.click("#do-delete");
    await page.locator("#confirm").waitFor();
    await page.keyboard.press("Escape"); // keeps it
    await page.click("#manage summary");
    await page.click("#do-delete");
    await page.click("#confirm-yes");
    await page.locator("#start").waitFor();
    await row.waitFor({ state: "detached" });
  },

  async an_unknown_session_says_so(page) {
    await page.goto(`${base}/#/s/000000000000`);
    await page.reload();
    await page.locator("#session-problem .hint").waitFor();
  },

  async a_phone_has_no_sideways_scroll(page) {
    await page.setViewportSize({ width: 390, height: 844 });
    await say(page, "run echo hi " + "wide".repeat(60));
    await page.locator(".prompt").waitFor();
    assert.ok(await page.evaluate(() => document.documentElement.scrollWidth <= innerWidth && document.getElementById("log").scrollWidth <= innerWidth));
    await page.click("#sidebar-open");
    await page.locator("#sidebar.open #sessions a").first().waitFor();
    await page.keyboard.press("Escape");
    await page.click('[data-choice="deny"]');
    await idle(page);
  },

  // The test kills the server and starts it again on the same port when it reads the first line.
  async a_killed_server_loses_nothing(page) {
    await say(page, "count to 300 slowly");
    await seen(page, "5");
    console.log("kill and restart the server now");
    await page.locator("#status", { hasText: "reconnecting" }).waitFor();
    await page.locator(".verdict.lost").waitFor();
    await idle(page);
    const said = words(await replyText(page));
    assert.deepEqual(said, Array.from({ length: said.length }, (_, i) => String(i + 1)));
    assert.ok(said.length >= 5);
    await page.reload();
    await page.locator(".verdict.lost").waitFor();
    assert.deepEqual(words(await replyText(page)), said);
    await say(page, "count to 3");
    await page.waitForFunction(() => document.querySelectorAll(".turn").length === 2);
    await idle(page);
  },

  // --- against the scripted server only ---

  async a_dropped_stream_goes_on_without_a_double(page) {
    await say(page, "count to 30 slowly");
    await seen(page, "4");
    await page.request.post(`${base}/test/drop`);
    await page.locator("#status", { hasText: "reconnecting" }).waitFor();
    await seen(page, "9");
    await page.request.post(`${base}/test/drop`);
    await seen(page, "30");
    await idle(page);
    assert.deepEqual(words(await replyText(page)), THIRTY);
  },

  async a_crash_shows_why_also_after_a_reload(page) {
    await say(page, "crash");
    await page.locator(".verdict.crashed").waitFor();
    for (let i = 0; i < 2; i++) {
      assert.match(await page.textContent(".verdict"), /SIGSEGV.*Look at what it printed.*Fatal Python error/s);
      assert.match(await replyText(page), /Before the crash/);
      await page.reload();
      await page.locator(".verdict.crashed").waitFor();
    }
  },

  async a_question_is_answered(page) {
    await say(page, "ask me");
    await page.locator(".prompt").getByText("Which colour?").waitFor();
    await page.click(".prompt button:has-text('blue')");
    await seen(page, "You like blue.");
    await idle(page);
  },

  async steering_reaches_the_agent(page) {
    await say(page, "count to 30 slowly");
    await seen(page, "2");
    await say(page, "in French, please");
    await page.locator(".steer").getByText("in French, please").waitFor();
    await seen(page, "You said: in French, please");
  },

  async a_problem_is_shown_where_it_happened(page) {
    await say(page, "too large");
    await page.locator("#send-problem", { hasText: "over the limit" }).waitFor();
    assert.match(await page.textContent("#send-problem"), /Send less/);
    assert.equal(await page.inputValue("#message"), "too large");
    await page.reload();
    assert.equal(await page.inputValue("#message"), "too large");
  },

  async five_thousand_lines_do_not_freeze_the_page(page) {
    await page.evaluate(() => {
      window.longest = 0;
      new PerformanceObserver((l) => l.getEntries().forEach((e) => (window.longest = Math.max(window.longest, e.duration)))).observe({ type: "longtask" });
    });
    await say(page, "lines");
    await seen(page, "line 4999");
    await idle(page);
    console.log(`longest task ${await page.evaluate(() => window.longest)} ms`);
    assert.ok((await page.evaluate(() => window.longest)) < 2000);
    await page.evaluate(() => (document.getElementById("log").scrollTop = 0));
    await page.click("#jump");
    assert.ok(await page.evaluate(() => document.getElementById("jump").hidden));
  },
};

const faults = [];

// Nothing may break the policy, throw, or ask another host.
function watch(page) {
  page.setDefaultTimeout(WAIT_MS);
  page.on("pageerror", (error) => faults.push(`threw: ${error.stack}`));
  page.on("console", (message) => {
    if (/Content Security Policy|TrustedHTML|TrustedScript/i.test(message.text())) faults.push(message.text());
  });
  page.on("request", (request) => {
    if (new URL(request.url()).origin !== new URL(base).origin) faults.push(`asked ${request.url()}`);
  });
}

const args = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
  "--disable-component-update", "--disable-sync"];
const browser = await chromium.launch({ executablePath, args });
try {
  const context = await browser.newContext({ viewport: { width: 1200, height: 800 }, locale: "en-GB" });
  const page = await context.newPage();
  watch(page);
  await page.goto(`${base}/`);
  await SCENARIOS[name](page, context);
  assert.deepEqual(faults, []);
} finally {
  await browser.close();
}
