// The open session: its stored turns, and the one that runs now. The journal is the truth. A page that loads draws the
// stored messages, then replays the running turn from its first event and goes on live; when the turn has ended the
// session is asked for again, and what the page shows is what is stored.

import { api } from "./api.js";
import { $, h, showProblem } from "./dom.js";
import { follow } from "./stream.js";
import { ENDED, apply, describe, groupByTurn, newTurn, partsOf, textOf } from "./turn.js";
import { TurnBlock, approvalPrompt, clarifyPrompt } from "./view.js";

const ANNOUNCE_MS = 2500; // a screen reader gets whole sentences, not tokens
const VERDICTS_MAX = 10; // turns whose end is read from the journal again: those that a person is likely to scroll to
const NEAR_END_PX = 80;

export class Conversation {
  // `hooks`: sessionLoaded(view), gone(), titled(text), leftover(text), asked(prompt), changed(), ended()
  constructor(hooks) {
    this.hooks = hooks;
    this.sessionId = null;
    this.view = null;
    this.epoch = 0; // grows when another session opens: late answers for an earlier one are dropped
    this.forget();
    $("log").addEventListener("scroll", () => this.#scrolled(), { passive: true });
    $("jump").addEventListener("click", () => this.toEnd());
    new ResizeObserver(() => (this.atEnd ? this.toEnd() : this.#scrolled())).observe($("log"));
  }

  forget() {
    this.live?.link.close();
    for (const source of this.verdicts ?? []) source.close();
    clearTimeout(this.live?.speaking);
    this.epoch++;
    this.live = null; // {turn, block, state, dirty, link, spoken, problem}
    this.groups = new Map(); // key → {block, stamp}
    this.verdicts = new Set();
    this.view = null;
    this.atEnd = true;
    $("turns").replaceChildren();
    $("dock").replaceChildren();
    showProblem($("session-problem"), null);
  }

  async open(sessionId) {
    this.forget();
    this.sessionId = sessionId;
    this.hooks.changed(null);
    if (!sessionId) return;
    $("turns").replaceChildren(h("p", { class: "faint turn" }, "Loading…"));
    await this.reload();
    this.toEnd();
  }

  // Asks for the session and draws what differs. A running turn that is not followed yet is followed.
  async reload() {
    const epoch = this.epoch;
    try {
      const view = await api.session(this.sessionId);
      if (epoch !== this.epoch) return;
      this.view = view;
      this.#drawStored(view);
      this.hooks.sessionLoaded(view);
      const active = view.active_turn_id;
      if (active && !this.isRunning()) this.attach(active);
    } catch (problem) {
      if (epoch !== this.epoch) return;
      if (!this.view) $("turns").replaceChildren();
      showProblem($("session-problem"), problem);
      if (problem.status === 404) this.hooks.gone(problem);
    }
  }

  // The list's row of this session, from a poll: another tab may have done something.
  noticed(row) {
    if (!this.view || this.isRunning()) return;
    const news = row.message_count !== this.view.message_count || row.updated_at !== this.view.updated_at ||
      row.title !== this.view.title || (row.active_turn_id && !this.groups.get(row.active_turn_id)?.block.turn);
    if (news) this.reload();
  }

  isRunning() {
    return this.live !== null && !this.live.turn.closed && !this.live.problem;
  }

  // --- stored turns ---

  #drawStored(view) {
    const groups = groupByTurn(view.messages);
    const elements = [];
    const kept = new Map();
    for (const group of groups) {
      const shown = this.groups.get(group.key) ?? { block: this.#block(group.user), stamp: "" };
      kept.set(group.key, shown);
      elements.push(shown.block.element);
      if (this.live?.turn.turnId === group.key && !this.live.turn.closed) {
        shown.block.setUser(group.user);
        continue; // its parts come from its events
      }
      const stamp = JSON.stringify(group.messages);
      if (stamp === shown.stamp) continue;
      shown.stamp = stamp;
      const active = group.turnId === view.active_turn_id;
      if (!active) this.#drawGroup(shown, group);
    }
    for (const [key, shown] of this.groups) {
      // A turn that was watched here stays, also where a shortened history no longer has it.
      if (kept.has(key) || !shown.block.turn) continue;
      kept.set(key, shown);
      elements.push(shown.block.element);
    }
    this.groups = kept;
    const box = $("turns");
    if (elements.length !== box.children.length || elements.some((e, i) => e !== box.children[i])) box.replaceChildren(...elements);
    this.#fetchVerdicts(groups.filter((g) => g.turnId && !g.answered && g.turnId !== view.active_turn_id));
    if (this.atEnd) this.toEnd();
  }

  #drawGroup({ block }, group) {
    block.setUser(group.user);
    const parts = partsOf(group.messages);
    // Where the text is the one that was watched, the watched parts stay: they know durations and answers, too.
    const squeeze = (text) => text.replace(/\s+/g, "");
    if (block.turn && squeeze(textOf(parts)) === squeeze(block.text())) return;
    block.draw(parts);
  }

  #block(user) {
    return new TurnBlock(user, announce);
  }

  // Why a turn has no finished answer stands in its last events. One after the other: HTTP/1.1 has six connections.
  async #fetchVerdicts(groups) {
    const epoch = this.epoch;
    for (const { turnId } of groups.slice(-VERDICTS_MAX)) {
      const shown = this.groups.get(turnId);
      if (epoch !== this.epoch || !shown || shown.block.turn || shown.judged) continue;
      shown.judged = true;
      try {
        const view = await api.turn(turnId);
        if (!view.ended || view.state === "done" || epoch !== this.epoch) continue;
        const turn = newTurn(turnId);
        turn.seq = Math.max(0, view.last_seq - 2); // the terminal event and `stream_end`
        await new Promise((resolve) => {
          const link = follow(turnId, {
            onEvent: (name, data, id) => (apply(turn, name, data, id), turn.closed),
            onLink: (state) => state === "reconnecting" && (link.close(), resolve()),
            onClosed: resolve,
            lastSeq: () => turn.seq,
          });
          this.verdicts.add(link);
        });
        if (epoch === this.epoch) shown.block.showEnd(turn.end ?? { state: view.state });
      } catch {
        shown.judged = false; // the next reload asks again; what was said is on the page already
      }
    }
  }

  // --- the running turn ---

  attach(turnId, user = null) {
    if (this.live?.turn.turnId === turnId) return;
    this.live?.link.close();
    const turn = newTurn(turnId);
    let shown = this.groups.get(turnId);
    if (!shown) {
      shown = { block: this.#block(user), stamp: "" };
      this.groups.set(turnId, shown);
    }
    // Turns run in order, so the one that runs belongs behind all that have ended; its place among stored ones stays.
    if (!shown.block.element.isConnected) $("turns").append(shown.block.element);
    shown.block.turn = turn;
    shown.block.draw(turn.parts);
    shown.block.element.setAttribute("aria-busy", "true");
    const live = { turn, block: shown.block, link: null, state: "connecting", dirty: new Set(), frame: 0, spoken: 0, speaking: 0, problem: null };
    this.live = live;
    live.link = follow(turnId, {
      lastSeq: () => turn.seq,
      onLink: (state) => {
        live.state = state;
        this.#changed(live);
      },
      onEvent: (name, data, id) => {
        const news = apply(turn, name, data, id);
        if (news) this.#event(live, name, data, news);
        return turn.closed;
      },
      onClosed: (problem) => this.#closed(live, problem),
    });
    this.#changed(live);
    if (user !== null) this.toEnd();
  }

  #event(live, name, data, { part, redraw }) {
    const { block, turn } = live;
    if (redraw) {
      live.dirty.clear();
      live.spoken = textOf(turn.parts).length;
      block.draw(turn.parts);
      if (turn.end === null) block.showEnd(null);
    } else if (part) {
      live.dirty.add(part);
      live.frame ||= requestAnimationFrame(() => this.#paint(live));
    }
    if (name === "started") block.showStarted(data);
    if (name === "title") this.hooks.titled(data.title);
    if (name === "pending_steer_leftover") this.hooks.leftover(data.text);
    if (name === "token" || name === "interim_assistant") live.speaking ||= setTimeout(() => this.#speak(live), ANNOUNCE_MS);
    else this.#changed(live);
  }

  #paint(live) {
    live.frame = 0;
    for (const part of live.dirty) live.block.update(part);
    live.dirty.clear();
    if (this.live === live && this.atEnd) this.toEnd();
  }

  #speak(live, all = false) {
    clearTimeout(live.speaking);
    live.speaking = 0;
    const fresh = textOf(live.turn.parts).slice(live.spoken);
    const upTo = all ? fresh.length : Math.max(...[". ", "! ", "? ", "\n"].map((stop) => fresh.lastIndexOf(stop))) + 1;
    if (upTo <= 0) return;
    live.spoken += upTo;
    announce(fresh.slice(0, upTo).trim());
  }

  #changed(live) {
    if (this.live !== live) return;
    live.block.showUsage(live.turn.usage);
    if (live.turn.end) live.block.showEnd(live.turn.end);
    this.#dock(live.turn);
    this.hooks.changed(live.turn);
  }

  // A turn's stream has closed: by `stream_end`, by 204, or because the turn is gone.
  async #closed(live, problem) {
    if (this.live !== live) return;
    live.problem = problem;
    live.turn.closed = true;
    live.turn.pending.clear();
    cancelAnimationFrame(live.frame);
    this.#paint(live);
    this.#speak(live, true);
    live.block.element.removeAttribute("aria-busy");
    this.#changed(live);
    showProblem($("session-problem"), problem);
    if (!problem) announce(ENDINGS[live.turn.state] ?? "");
    this.hooks.ended();
    await this.reload();
  }

  status() {
    return this.live && !this.live.turn.closed ? describe(this.live.turn, this.live.state) : { tone: "idle", text: "" };
  }

  toEnd() {
    const log = $("log");
    log.scrollTop = log.scrollHeight;
    this.#scrolled();
  }

  #scrolled() {
    const log = $("log");
    this.atEnd = log.scrollHeight - log.scrollTop - log.clientHeight < NEAR_END_PX;
    $("jump").hidden = this.atEnd;
  }

  // --- what waits for a person ---

  #dock(turn) {
    const dock = $("dock");
    const wanted = [...turn.pending.values()];
    for (const prompt of [...dock.children]) {
      if (wanted.some((part) => idOf(part.ask) === prompt.dataset.ask)) continue;
      const focused = prompt.contains(document.activeElement);
      prompt.remove();
      if (focused) $("message").focus();
    }
    for (const part of wanted) {
      const { ask, kind } = part;
      const id = idOf(ask);
      if ([...dock.children].some((prompt) => prompt.dataset.ask === id)) continue;
      const give = (send) => async (value) => {
        try {
          await send(value);
          return null;
        } catch (problem) {
          return problem;
        }
      };
      const prompt = kind === "approval"
        ? approvalPrompt(ask, give((choice) => api.approve(turn.turnId, id, choice)))
        : clarifyPrompt(ask, give((text) => api.answer(turn.turnId, id, text)));
      dock.append(prompt);
      announce(kind === "approval" ? `The agent asks whether it may run: ${ask.command}` : `The agent asks: ${ask.question}`, true);
      this.hooks.asked(prompt);
      if (this.atEnd) requestAnimationFrame(() => this.toEnd());
    }
  }
}

const ENDINGS = {
  done: "The agent has finished.",
  failed: "The agent failed.",
  cancelled: "The turn was stopped.",
  crashed: "The agent's process crashed.",
  timed_out: "The turn ran out of time.",
  over_limit: "The turn said more than the host allows.",
  lost: "The turn was lost when the server stopped.",
};

const idOf = (ask) => ask.approval_id ?? ask.clarify_id;

export function announce(text, now = false) {
  if (!text) return;
  const place = $(now ? "announce-now" : "announce");
  place.append(h("p", {}, text));
  while (place.children.length > 5) place.firstChild.remove();
}
