// The page for whoever runs the host: what runs, what waits, what failed and why, what holds the turns, and the way to
// stop it all gently.

import { api } from "./api.js";
import { $, ago, announce, clockTime, h, showProblem, span } from "./dom.js";
import { resourceRows, sealFacts, sealSentence, sealTone } from "./view.js";
import { sealMark } from "./icons.js";

const POLL_MS = 2000;
const STATE_WORDS = {
  queued: "in the queue", starting: "starting", running: "running", waiting: "waits for a person", ending: "finishing", cancelling: "stopping",
  done: "done", failed: "failed", cancelled: "stopped", crashed: "crashed", timed_out: "out of time", over_limit: "over the limit", lost: "lost in a restart",
};

export class HostPage {
  constructor() {
    this.timer = 0;
    this.shown = false;
    this.drawn = "";
    $("drain").addEventListener("click", () => {
      showProblem($("drain-problem"), null);
      $("drain-dialog").showModal();
      $("drain-no").focus();
    });
    $("drain-no").addEventListener("click", () => $("drain-dialog").close());
    $("drain-yes").addEventListener("click", () => this.drain());
    document.addEventListener("visibilitychange", () => this.shown && !document.hidden && this.refresh());
  }

  open() {
    this.shown = true;
    this.refresh();
  }

  close() {
    this.shown = false;
    clearTimeout(this.timer);
  }

  async drain() {
    try {
      await api.drain();
      $("drain-dialog").close();
      announce("The server takes no more turns and stops when those that run have ended.");
      this.refresh();
    } catch (problem) {
      showProblem($("drain-problem"), problem);
    }
  }

  async refresh() {
    clearTimeout(this.timer);
    try {
      const [health, { turns }] = await Promise.all([api.health(), api.hostTurns()]);
      if (!this.shown) return;
      showProblem($("host-problem"), null);
      this.draw(health, turns);
    } catch (problem) {
      showProblem($("host-problem"), problem);
    }
    if (this.shown) this.timer = setTimeout(() => document.hidden || this.refresh(), POLL_MS);
  }

  draw(health, turns) {
    const { active_turns: running, queued_turns: queued, sessions, uptime_s: uptime, version, status, seal } = health;
    const fact = (value, label) => h("div", { class: "fact" }, h("dt", {}, label), h("dd", {}, value));
    $("host-facts").replaceChildren(fact(String(running), running === 1 ? "turn runs" : "turns run"), fact(String(queued), "in the queue"),
      fact(sessions.toLocaleString(), sessions === 1 ? "session" : "sessions"), fact(span(uptime), "up"), fact(version, "version"));
    $("drain").disabled = status === "draining";
    $("drain").textContent = status === "draining" ? "Draining…" : "Drain and stop…";
    const live = turns.filter((turn) => !turn.ended);
    const ended = turns.filter((turn) => turn.ended);
    const failed = ended.filter((turn) => turn.state !== "done" && turn.state !== "cancelled");
    const state = JSON.stringify([seal, live, failed.map((t) => t.turn_id), Math.floor(Date.now() / 1000 / (live.length ? 1 : 30))]);
    if (state === this.drawn) return;
    this.drawn = state;
    const open = new Set([...document.querySelectorAll("#host-failed details[open]")].map((d) => d.dataset.turn));
    $("host-seal").replaceChildren(h("div", { class: `host-seal ${sealTone(seal.level)}` }, sealMark(),
      h("div", {}, h("p", { class: "strong" }, `Level ${seal.level}`), h("p", {}, sealSentence(seal)), sealFacts(seal))));
    fill("host-running", live.filter((t) => t.state !== "queued"), "Nothing runs.", ["Turn", "Agent", "State", "Process", "Runs for", "Uses"], (t) => [
      link(t), t.agent, pill(t.state), t.pid ? h("code", {}, String(t.pid)) : "", t.started_at ? span(Date.now() / 1000 - t.started_at) : "",
      resourceRows(t.used ?? {}).map(([name, value]) => `${name} ${value}`).join(" · "),
    ]);
    fill("host-queue", live.filter((t) => t.state === "queued"), "Nobody waits.", ["Place", "Turn", "Agent", "Since"], (t) => [
      t.queue_position ? String(t.queue_position) : "next", link(t), t.agent, ago(t.created_at),
    ]);
    $("host-failed").replaceChildren(...(failed.length ? failed.map((t) => h("details", { class: "failure", "data-turn": t.turn_id, open: open.has(t.turn_id) },
      h("summary", {}, pill(t.state), h("span", { class: "failure-name" }, t.message.slice(0, 120)), h("span", { class: "when" }, `${ago(t.ended_at)} · ${t.agent}`)),
      h("div", { class: "failure-body" }, h("p", {}, link(t, "Open the session"), ` · turn ${t.turn_id} · ended ${clockTime(t.ended_at)}`),
        h("pre", { tabindex: "0", role: "group", "aria-label": "What the process printed last" }, t.stderr?.trim() || "It printed nothing."))))
      : [h("p", { class: "faint" }, "No turn has failed lately.")]));
  }
}

function fill(id, rows, empty, heads, cells) {
  $(id).replaceChildren(rows.length
    ? h("div", { class: "table", tabindex: "0", role: "group", "aria-labelledby": `${id}-title` }, h("table", {},
      h("thead", {}, h("tr", {}, heads.map((head) => h("th", { scope: "col" }, head)))),
      h("tbody", {}, rows.map((row) => h("tr", {}, cells(row).map((cell) => h("td", {}, cell)))))))
    : h("p", { class: "faint" }, empty));
}

const link = (turn, text = turn.message.slice(0, 80)) => h("a", { href: `#/s/${encodeURIComponent(turn.session_id)}` }, text || "(no text)");
const pill = (state) => h("span", { class: `pill ${state}` }, STATE_WORDS[state] ?? state);
