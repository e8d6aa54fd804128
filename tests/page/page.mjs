// node page.mjs BASE_URL SCENARIO CHROMIUM PICTURES: one thing that must be true of the page, seen in a real browser
// against the real server. Exit 0 when it is. What the agent says stands in scripted_model.py.
import assert from "node:assert/strict";
import fs from "node:fs";
import path from "node:path";
import { createRequire } from "node:module";
import { chromium } from "playwright-core";

const [base, name, executablePath = "/usr/bin/chromium", pictures = "."] = process.argv.slice(2);
const WAIT_MS = 40_000; // a machine that runs other tests on every core, too
const THIRTY = Array.from({ length: 30 }, (_, i) => String(i + 1));

const words = (text) => text.match(/\b\d+\b/g) ?? [];
const reply = (page) => page.locator(".turn").last().locator(".said");
const replyText = async (page) => (await reply(page).allTextContents()).join("\n");
const status = (page) => page.locator("#status");
const squeeze = (text) => text.replace(/\s+/g, "");

async function say(page, text) {
  await page.fill("#message", text);
  await page.press("#message", "Enter");
}

async function seen(page, text) {
  await page.waitForFunction((t) => [...document.querySelectorAll(".said")].some((e) => e.textContent.includes(t)), text);
}

const idle = (page) => page.waitForFunction(() => document.getElementById("stop").hidden && document.querySelector(".turn") && !document.querySelector("[aria-busy]"));

async function storedText(page) {
  return page.evaluate(async () => {
    const sid = location.hash.slice(4);
    const { messages } = await (await fetch(`v1/sessions/${sid}`)).json();
    return messages.filter((m) => m.role === "assistant").map((m) => m.content).join("\n");
  });
}

async function menuOf(page, title, item) {
  const row = page.locator("#sessions li", { hasText: title });
  await row.hover();
  await row.getByRole("button").click();
  await page.getByRole("menuitem", { name: item, exact: true }).click();
}

async function violations(page) {
  await page.evaluate(fs.readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8"));
  const { violations: found } = await page.evaluate(() => window.axe.run(document, { resultTypes: ["violations"] }));
  return found.map((v) => `${v.id}: ${v.help}\n  ${v.nodes.map((n) => `${n.target} ${n.failureSummary}`).join("\n  ")}`).join("\n");
}

// The longest task of the page's main thread, in ms of the processor's time: on a machine that runs other tests as well,
// what the clock says is mostly their time. On an idle one both are the same.
async function longestTask(page, act) {
  const browser = page.context().browser();
  await page.evaluate(() => {
    window.longest = 0;
    new PerformanceObserver((l) => l.getEntries().forEach((e) => (window.longest = Math.max(window.longest, e.duration)))).observe({ type: "longtask" });
  });
  await browser.startTracing(page, { categories: ["toplevel"] });
  await act();
  console.log(`longest task by the page's own clock: ${await page.evaluate(() => window.longest)} ms`);
  const { traceEvents: events } = JSON.parse((await browser.stopTracing()).toString());
  const main = new Set(events.filter((e) => e.name === "thread_name" && e.args.name === "CrRendererMain").map((e) => `${e.pid} ${e.tid}`));
  const tasks = events.filter((e) => e.ph === "X" && e.name.endsWith("RunTask") && main.has(`${e.pid} ${e.tid}`));
  assert.ok(tasks.length > 100 && tasks.every((e) => e.tdur >= 0), "the trace has the tasks and their processor time");
  return Math.round(Math.max(...tasks.map((e) => e.tdur)) / 1000);
}

const SCENARIOS = {
  async a_turn_streams(page) {
    await page.waitForSelector("#agents input", { state: "attached" });
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
    assert.match(await page.textContent(".badge"), /Seal \dpid \d+/);
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
    assert.equal(squeeze(await replyText(page)), squeeze(live));
    assert.equal(squeeze(await storedText(page)), squeeze(live));
    assert.equal(await page.locator(".turn").count(), 1);
  },

  async an_approval_is_answered_by_click(page) {
    await say(page, "run echo hi");
    const prompt = page.locator(".prompt");
    await prompt.waitFor();
    assert.match(await prompt.textContent(), /echo hi/);
    assert.match(await status(page).textContent(), /Waiting for you/);
    assert.match(await page.title(), /^Waiting for you/);
    await page.locator("#sessions .state", { hasText: "waits for you" }).waitFor();
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
    assert.equal(await page.locator('.tool[data-state="failed"]').count(), 1);
  },

  async a_question_is_answered_by_its_number(page) {
    await say(page, "ask me");
    await page.locator(".prompt").getByText("Which colour?").waitFor();
    await page.waitForTimeout(600);
    await page.focus(".prompt");
    await page.keyboard.press("2");
    await seen(page, "You like blue.");
    await idle(page);
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
    await other.bringToFront(); // a tab behind draws when it is looked at
    await seen(other, "30");
    await page.bringToFront();
    await seen(page, "30");
    await Promise.all([idle(page), idle(other)]);
    assert.equal(await replyText(page), await replyText(other));
    assert.equal(await other.locator(".user .text").last().textContent(), "count to 30 slowly");
  },

  async what_an_agent_says_never_becomes_the_pages_own_markup(page) {
    const evil = '<img src=x onerror="document.title=1"><script>window.pwned=1</script> [a](javascript:alert(1)) ![b](https://elsewhere.example/b.png) <style>*{display:none}</style>';
    await say(page, `say ${evil}`);
    await page.waitForSelector(".said");
    await idle(page);
    assert.equal(await page.textContent(".user .text"), `say ${evil}`);
    for (let i = 0; i < 2; i++) {
      assert.match(await replyText(page), /<img src=x onerror=/);
      assert.equal(await page.evaluate(() => window.pwned), undefined);
      assert.equal(await page.locator("main img, main style, main script, #sessions img").count(), 0);
      assert.deepEqual(await page.locator(".said a").evaluateAll((all) => all.map((a) => a.getAttribute("href"))), [null, "https://elsewhere.example/b.png"]);
      await page.reload();
      await page.waitForSelector(".said");
      await page.locator("#sessions a").first().waitFor();
    }
  },

  async markdown_is_drawn_with_tools_in_their_place_also_after_a_reload(page) {
    await say(page, "look at the build");
    await seen(page, "Shall I make the change?");
    await idle(page);
    const shape = () => page.locator(".parts > *").evaluateAll((all) => all.map((e) => e.className.split(" ").at(-1)));
    assert.deepEqual(await shape(), ["reasoning", "tool", "tool", "tool", "said"]);
    const check = async () => {
      assert.deepEqual(await page.locator(".tool").evaluateAll((all) => all.map((e) => e.dataset.state)), ["finished", "finished", "failed"]);
      assert.match(await page.locator(".tool .time").first().textContent(), /\d (ms|s)/);
      assert.equal(await page.locator(".said h3").textContent(), "What I found");
      assert.equal(await page.locator(".said ol li").count(), 3);
      assert.equal(await page.locator(".said tbody tr").count(), 3);
      await page.locator(".said .hljs-keyword").first().waitFor();
      assert.match(await page.textContent(".usage"), /1,840 in · 412 out · \$0\.0093/);
    };
    await check();
    await page.reload();
    await page.locator(".tool .time", { hasText: /\d/ }).first().waitFor();
    assert.deepEqual(await shape(), ["reasoning", "tool", "tool", "tool", "said"]);
    await check();
    await page.locator("#title", { hasText: "Why the build fails" }).waitFor();
  },

  async closed_blocks_are_not_drawn_again_while_an_answer_streams(page) {
    await say(page, "look slowly");
    await page.waitForSelector(".said ol li");
    await page.waitForSelector(".said .code");
    await page.evaluate(() => {
      window.kept = [...document.querySelectorAll(".said > h3, .said > p:first-of-type, .said > ol")];
      window.changes = 0;
      for (const element of window.kept) new MutationObserver(() => window.changes++).observe(element, { childList: true, subtree: true, characterData: true });
    });
    await seen(page, "Shall I make the change?");
    await idle(page);
    assert.deepEqual(await page.evaluate(() => [window.kept.length, window.kept.every((e) => e.isConnected), window.changes]), [3, true, 0]);
  },

  async a_busy_session_shows_its_turn_and_keeps_what_was_typed(page) {
    // As if this page did not hear that another one has started a turn.
    for (const deaf of ["**/v1/sessions?*", "**/v1/events*"]) await page.route(deaf, (route) => route.abort());
    await page.reload();
    await say(page, "count to 3");
    await idle(page);
    // It has read the session after the turn's end: once when it was begun, once to start the turn, once now.
    await page.waitForFunction(() => performance.getEntriesByType("resource").filter((e) => /\/sessions\/\w+\/turns$/.test(e.name)).length >= 3);
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

  async sessions_are_renamed_pinned_archived_found_exported_and_deleted_with_undo(page) {
    for (const text of ["count to 3", "count to 4"]) {
      await page.click("#new");
      await say(page, text);
      await idle(page);
    }
    await menuOf(page, "count to 3", "Rename");
    await page.fill("#sessions .rename input", "A name of mine <b>");
    await page.press("#sessions .rename input", "Enter");
    const row = page.locator("#sessions li[data-sid]", { hasText: "A name of mine <b>" });
    await row.waitFor();
    await menuOf(page, "A name of mine", "Pin");
    await page.locator("#sessions h2", { hasText: "Pinned" }).waitFor();
    assert.match(await page.locator("#sessions li[data-sid]").first().textContent(), /A name of mine/);
    await page.reload();
    await page.locator("#sessions h2", { hasText: "Pinned" }).waitFor();
    await page.keyboard.press("Control+k");
    await page.keyboard.type("mine");
    await page.waitForFunction(() => document.querySelectorAll("#sessions li[data-sid]").length === 1);
    await page.fill("#search", "zzzunknown");
    await page.locator("#list-empty", { hasText: "Nothing found" }).waitFor();
    await page.fill("#search", "");
    await row.waitFor();
    for (const [item, ending, inside] of [["Export as Markdown", ".md", /A name of mine/], ["Export as JSON", ".json", /"messages":\s*\[/]]) {
      const [download] = await Promise.all([page.waitForEvent("download"), menuOf(page, "A name of mine", item)]);
      assert.ok(download.suggestedFilename().endsWith(ending));
      assert.match(fs.readFileSync(await download.path(), "utf8"), inside);
    }
    await row.getByRole("link").click();
    await page.locator("#title", { hasText: "A name of mine <b>" }).waitFor();
    await menuOf(page, "A name of mine", "Archive");
    await row.waitFor({ state: "detached" });
    await page.check("#archived");
    await row.waitFor();
    await menuOf(page, "A name of mine", "Take out of the archive");
    await page.uncheck("#archived");
    await row.waitFor();
    await menuOf(page, "A name of mine", "Delete");
    await row.waitFor({ state: "detached" });
    await page.locator("#start").waitFor();
    await page.locator(".toast", { hasText: "Deleted" }).getByRole("button", { name: "Undo" }).click();
    await row.waitFor();
    await menuOf(page, "A name of mine", "Delete");
    await row.waitFor({ state: "detached" });
    await page.reload(); // to leave is to mean it
    await page.locator("#sessions li[data-sid]", { hasText: "count to 4" }).waitFor();
    await page.waitForFunction(async () => (await (await fetch("v1/sessions")).json()).sessions.length === 1);
  },

  async a_message_is_edited_and_sent_again_and_an_answer_is_tried_again(page) {
    await say(page, "say one");
    await seen(page, "one");
    await idle(page);
    await say(page, "say two");
    await seen(page, "two");
    await idle(page);
    const first = page.locator(".turn").first();
    await first.hover();
    await first.getByRole("button", { name: "Edit and send again" }).click();
    await first.locator("textarea").fill("say three");
    await first.locator("textarea").press("Enter");
    await page.locator("#confirm").getByRole("button", { name: "Send again" }).click();
    await seen(page, "three");
    await idle(page);
    await page.waitForFunction(() => document.querySelectorAll(".turn").length === 1);
    assert.equal(squeeze(await storedText(page)), "three");
    await Promise.all([
      page.waitForResponse((r) => r.request().method() === "POST" && r.url().endsWith("/turns")),
      page.locator(".turn").last().getByRole("button", { name: "Try again" }).click(),
    ]);
    await seen(page, "three");
    await idle(page);
    assert.equal(await page.locator(".turn").count(), 1);
    assert.equal(squeeze(await storedText(page)), "three");
  },

  async files_are_attached_by_choosing_dropping_and_pasting(page) {
    const chip = (text) => page.locator("#files .chip.there", { hasText: text });
    await page.setInputFiles("#file", { name: "chosen.txt", mimeType: "text/plain", buffer: Buffer.from("one") });
    await chip("chosen.txt").waitFor();
    await page.evaluate(() => {
      const files = (name) => {
        const data = new DataTransfer();
        data.items.add(new File(["two"], name, { type: "text/plain" }));
        return data;
      };
      window.dispatchEvent(new DragEvent("drop", { dataTransfer: files("dropped.txt"), bubbles: true, cancelable: true }));
      document.getElementById("message").dispatchEvent(new ClipboardEvent("paste", { clipboardData: files("pasted.txt"), bubbles: true, cancelable: true }));
    });
    await chip("dropped.txt").waitFor();
    await chip("pasted.txt").waitFor();
    await page.reload(); // they are in the workspace, and the draft remembers them
    await chip("pasted.txt").waitFor();
    await page.getByRole("button", { name: "Take dropped.txt away" }).click();
    const [posted] = await Promise.all([
      page.waitForRequest((r) => r.method() === "POST" && r.url().endsWith("/turns")),
      say(page, "list files"),
    ]);
    assert.deepEqual(posted.postDataJSON().attachments, ["chosen.txt", "pasted.txt"]);
    await idle(page);
    assert.deepEqual(await page.locator(".user .files li").allTextContents(), ["chosen.txt", "pasted.txt"]);
    assert.equal(await page.textContent(".user .text"), "list files");
    assert.equal(await page.locator("#files .chip").count(), 0);
  },

  async a_file_that_is_too_large_says_so_and_can_be_taken_away(page) {
    await page.setInputFiles("#file", { name: "large.bin", mimeType: "application/octet-stream", buffer: Buffer.alloc(200_000) });
    await page.locator("#files .chip.failed").waitFor();
    assert.match(await page.textContent("#files .chip.failed"), /larger|large/);
    await page.getByRole("button", { name: "Take large.bin away" }).click();
    assert.equal(await page.locator("#files .chip").count(), 0);
  },

  async an_unknown_session_says_so(page) {
    await page.goto(`${base}/#/s/000000000000`);
    await page.reload();
    await page.locator("#session-problem .hint").waitFor();
  },

  async a_crash_shows_why_also_after_a_reload_and_on_the_hosts_page(page) {
    await say(page, "crash");
    await page.locator(".verdict.crashed").waitFor();
    for (let i = 0; i < 2; i++) {
      assert.match(await page.textContent(".verdict"), /SIGSEGV.*Fatal Python error/s);
      assert.match(await replyText(page), /Before the crash/);
      await page.reload();
      await page.locator(".verdict.crashed").waitFor();
    }
    await page.click("#host-link");
    const failure = page.locator(".failure", { hasText: "crash" });
    await failure.locator("summary").click();
    assert.match(await failure.locator("pre").textContent(), /Fatal Python error: oops/);
    assert.equal(await violations(page), "");
  },

  async many_turns_run_at_once_and_the_list_tells_how_each_stands(page) {
    await say(page, "count to 300 slowly");
    await seen(page, "3");
    const first = page.url();
    await page.click("#new");
    await say(page, "run echo hi");
    await page.locator(".prompt").waitFor();
    await page.click("#new");
    await say(page, "say third");
    await seen(page, "third");
    await page.locator("#sessions li", { hasText: "run echo hi" }).locator(".state", { hasText: "waits for you" }).waitFor();
    const running = page.locator("#sessions li", { hasText: "count to 300" });
    await running.locator(".state", { hasText: "running" }).waitFor();
    await running.getByRole("link").click();
    await seen(page, "1 2 3");
    assert.equal(page.url(), first);
    await page.click("#stop");
    await page.locator(".verdict.cancelled").waitFor();
    await page.locator("#sessions li", { hasText: "run echo hi" }).getByRole("link").click();
    await page.click('[data-choice="once"]');
    await idle(page);
    assert.match(await page.locator(".turn").last().textContent(), /allowed once/);
  },

  async a_turn_that_waits_says_its_place_in_the_queue(page) {
    await page.evaluate(async () => {
      for (let i = 0; i < 4; i++) {
        const post = async (path, body) => (await fetch(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) })).json();
        const { session_id: sid } = await post("v1/sessions", {});
        await post(`v1/sessions/${sid}/turns`, { message: "count to 300 slowly" });
      }
    });
    await say(page, "say at last");
    await page.locator("#status", { hasText: "Queued: next to start." }).waitFor();
    await page.locator("#sessions .state.queued").waitFor();
    await page.click("#stop");
    await page.locator(".verdict.cancelled").waitFor();
    await idle(page);
  },

  async the_hosts_page_shows_what_runs(page, context) {
    await say(page, "count to 300 slowly");
    await seen(page, "3");
    const other = await context.newPage();
    watch(other);
    await other.goto(`${base}/#/host`);
    const row = other.locator("#host-running tbody tr");
    await row.waitFor();
    assert.match(await row.textContent(), /count to 300 slowly/);
    await page.click("#stop");
    await row.waitFor({ state: "detached" });
    assert.equal(await violations(other), "");
    await other.close();
  },

  async steering_reaches_the_agent(page) {
    await say(page, "count to 30 slowly");
    await seen(page, "2");
    await say(page, "in French, please");
    await page.locator(".steer").getByText("in French, please").waitFor();
    await seen(page, "You said: in French, please");
  },

  async a_problem_is_shown_where_it_happened(page) {
    await say(page, "x".repeat(5000));
    await page.locator("#send-problem", { hasText: "4000" }).waitFor();
    assert.equal((await page.inputValue("#message")).length, 5000);
    await page.reload();
    assert.equal((await page.inputValue("#message")).length, 5000);
  },

  async offline_and_back_loses_nothing_and_doubles_nothing(page, context) {
    await say(page, "count to 60 slowly");
    await seen(page, "4");
    await context.setOffline(true);
    await page.locator("#status", { hasText: "reconnecting" }).waitFor();
    await page.locator("#offline", { hasText: "offline" }).waitFor();
    await page.fill("#message", "typed while offline");
    await context.setOffline(false);
    await page.locator("#offline").waitFor({ state: "hidden" });
    await seen(page, "60");
    await idle(page);
    assert.deepEqual(words(await replyText(page)), Array.from({ length: 60 }, (_, i) => String(i + 1)));
    assert.equal(await page.inputValue("#message"), "typed while offline");
  },

  async five_thousand_lines_do_not_freeze_the_page(page) {
    const drawn = async () => {
      await page.waitForFunction(() => document.querySelector("#stop").hidden && document.querySelector(".turn") && !document.querySelector("[aria-busy]"), null, { polling: 500 });
      await page.waitForFunction(() => document.querySelector(".said")?.lastElementChild?.textContent.includes("line 4999"), null, { polling: 500 });
      await page.locator(".badge").waitFor();
      assert.equal(await page.evaluate(() => document.querySelector(".said").innerText.match(/line[ _]\d+/g).length), 5000);
    };
    const live = await longestTask(page, async () => {
      await say(page, "lines");
      await drawn();
    });
    await page.evaluate(() => (document.getElementById("log").scrollTop = 0));
    await page.click("#jump");
    await page.waitForFunction(() => document.getElementById("jump").hidden);
    const again = await longestTask(page, async () => {
      await page.reload();
      await drawn();
    });
    console.log(`longest task: live ${live} ms, after a reload ${again} ms`);
    assert.ok(Math.max(live, again) < 200, `${live} and ${again} ms`);
  },

  async a_phone_has_no_sideways_scroll(page) {
    await page.setViewportSize({ width: 390, height: 844 });
    await say(page, `run echo hi ${"wide".repeat(60)}`);
    await page.locator(".prompt").waitFor();
    assert.ok(await page.evaluate(() => document.documentElement.scrollWidth <= innerWidth && document.getElementById("log").scrollWidth <= innerWidth));
    await page.click("#sidebar-open");
    await page.locator("#sidebar.open #sessions a").first().waitFor();
    await page.keyboard.press("Escape");
    await page.click('[data-choice="deny"]');
    await idle(page);
  },

  async everything_can_be_done_from_the_keyboard(page) {
    await page.keyboard.type("say hello");
    await page.keyboard.press("Enter");
    await seen(page, "hello");
    await idle(page);
    await page.locator("#sessions a").first().focus();
    await page.keyboard.press("Tab");
    await page.keyboard.press("Enter"); // the row's menu
    await page.getByRole("menu").waitFor();
    await page.keyboard.press("ArrowDown");
    await page.keyboard.press("Enter"); // Pin
    await page.locator("#sessions h2", { hasText: "Pinned" }).waitFor();
    await page.locator("#manage").focus();
    await page.keyboard.press("Enter");
    await page.getByRole("menu").waitFor();
    await page.keyboard.press("Escape");
    await page.getByRole("menu").waitFor({ state: "detached" });
    assert.equal(await page.evaluate(() => document.activeElement.id), "manage");
  },

  async the_page_has_no_accessibility_violations(page) {
    for (const colorScheme of ["light", "dark"]) {
      await page.emulateMedia({ colorScheme, reducedMotion: "reduce" });
      await page.goto(`${base}/#/`);
      await page.locator("#agents input").first().waitFor({ state: "attached" });
      assert.equal(await violations(page), "", `${colorScheme}: start`);
      await say(page, "look");
      await seen(page, "Shall I make the change?");
      await idle(page);
      for (const card of await page.locator(".tool > summary, .reasoning > summary, .badge").all()) await card.click();
      await page.locator(".said .hljs-keyword").first().waitFor();
      assert.equal(await violations(page), "", `${colorScheme}: answer`);
      await say(page, "run echo hi");
      await page.locator(".prompt").waitFor();
      assert.equal(await violations(page), "", `${colorScheme}: approval`);
      await page.click("#stop");
      await page.locator(".verdict.cancelled").waitFor();
      await page.locator("#manage").click();
      assert.equal(await violations(page), "", `${colorScheme}: stopped, with a menu`);
      await page.keyboard.press("Escape");
    }
  },

  async pictures_are_taken(page, context) {
    fs.mkdirSync(pictures, { recursive: true });
    const shot = async (p, file) => {
      await p.evaluate(() => document.fonts.ready);
      await p.waitForTimeout(350); // what moves has come to rest
      await p.screenshot({ path: path.join(pictures, `${file}.png`) });
      assert.ok(fs.statSync(path.join(pictures, `${file}.png`)).size > 10_000);
    };
    await page.emulateMedia({ colorScheme: "light" });
    await page.locator("#agents input").first().waitFor({ state: "attached" });
    await shot(page, "start");
    await say(page, "crash");
    await page.locator(".verdict.crashed").waitFor();
    await shot(page, "crash");
    await page.click("#new");
    await say(page, "count to 30 slowly");
    await seen(page, "30");
    await idle(page);
    await page.click("#new");
    await say(page, "look at the build");
    await seen(page, "Shall I make the change?");
    await idle(page);
    await page.evaluate(() => (document.getElementById("log").scrollTop = 0));
    await shot(page, "answer");
    await page.emulateMedia({ colorScheme: "dark" });
    await shot(page, "answer-dark");
    await page.evaluate(() => (document.getElementById("log").scrollTop = 1e9));
    await say(page, "run python -m pytest -q");
    await page.locator(".prompt").waitFor();
    await shot(page, "approval-dark");
    await page.emulateMedia({ colorScheme: "light" });
    await shot(page, "approval");
    const host = await context.newPage();
    watch(host);
    await host.goto(`${base}/#/host`);
    await host.locator("#host-running tbody tr").waitFor();
    await host.locator(".failure summary").first().click();
    await shot(host, "host");
    await host.close();
    await page.setViewportSize({ width: 390, height: 844 });
    await shot(page, "phone-approval");
    await page.click('[data-choice="once"]');
    await idle(page);
    await page.evaluate(() => (document.getElementById("log").scrollTop = 0));
    await shot(page, "phone-answer");
    await page.click("#sidebar-open");
    await shot(page, "phone-sessions");
    await page.keyboard.press("Escape");
    await page.emulateMedia({ colorScheme: "dark" });
    await shot(page, "phone-dark");
    await page.goto(`${base}/#/`);
    await shot(page, "phone-start-dark");
  },

  // --- the test kills or drains the server and starts it again on the same port when it reads the lines ---

  async a_killed_server_loses_nothing(page) {
    await say(page, "count to 300 slowly");
    await seen(page, "5");
    console.log("kill the server");
    await page.locator("#status", { hasText: "reconnecting" }).waitFor();
    await page.locator("#offline", { hasText: "does not answer" }).waitFor();
    console.log("start the server");
    await page.locator(".verdict.lost").waitFor();
    await idle(page);
    await page.locator("#offline").waitFor({ state: "hidden" });
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

  async a_drained_server_says_so_and_comes_back(page) {
    await say(page, "say first");
    await seen(page, "first");
    await idle(page);
    const session = page.url();
    await page.goto(`${base}/#/host`);
    await page.click("#drain");
    await page.click("#drain-yes");
    console.log("wait for the end of the server");
    await page.locator("#offline").waitFor();
    console.log("start the server");
    await page.locator("#offline").waitFor({ state: "hidden" });
    await page.goto(session);
    await say(page, "say second");
    await seen(page, "second");
    await idle(page);
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
  const context = await browser.newContext({ viewport: { width: 1280, height: 860 }, locale: "en-GB" });
  const page = await context.newPage();
  watch(page);
  await page.goto(`${base}/`);
  await SCENARIOS[name](page, context);
  assert.deepEqual(faults, []);
} catch (error) {
  const pages = browser.contexts()[0]?.pages() ?? [];
  if (process.env.HERMETIC_PAGE_FAILED) await pages[0]?.screenshot({ path: process.env.HERMETIC_PAGE_FAILED });
  console.log(faults.join("\n"));
  throw error;
} finally {
  await browser.close();
}
