// The open session: its stored turns, and the one that runs now. The journal is the truth. A page that loads draws the
// stored messages, then replays the running turn from its first event and goes on live. A turn that has ended is drawn
// again from its own events when it comes into view: then its tool calls stand where they were made, with their times.

import { api } from "./api.js";
import { $, announce, h, showProblem } from "./dom.js";
import { onDrawn } from "./rich.js";
import { follow } from "./stream.js";
import { apply, describe, groupByTurn, newTurn, partsOf, textOf } from "./turn.js";
import { TurnBlock, approvalPrompt, clarifyPrompt } from "./view.js";

const ANNOUNCE_MS = 2500; // a screen reader gets whole sentences, not tokens
const REPLAYED_EVENTS_MAX = 20_000; // of a turn that has ended; a longer journal is read as its stored messages
const NEAR_END_PX = 80;
const USED_MS = 2000; // while somebody looks at what holds the running turn

export class Conversation {
  // `hooks`: sessionLoaded(view), gone(), titled(text), leftover(text), asked(prompt), changed(), ended(), resend(block, text)
  constructor(hooks) {
    this.hooks = hooks;
    this.sessionId = null;
    this.view = null;
    this.epoch = 0; // grows when another session opens: late answers for an earlier one are dropped
    this.seen = new IntersectionObserver((entries) => this.#inView(entries), { root: $("log"), rootMargin: "400px" });
    this.forget();
    $("log").addEventListener("scroll", () => this.#scrolled(), { passive: true });
    $("jump").addEventListener("click", () => this.toEnd());
    new ResizeObserver(() => (this.atEnd ? this.toEnd() : this.#scrolled())).observe($("log"));
    onDrawn(() => this.atEnd && this.toEnd());
    setInterval(() => this.live?.block.tick(), 1000);
    setInterval(() => this.#askUsed(), USED_MS);
  }

  forget() {
    this.live?.link.close();
    for (const source of this.replays ?? []) source.close();
    clearTimeout(this.live?.speaking);
    this.seen.disconnect();
    this.epoch++;
    this.live = null; // {turn, block, state, dirty, link, spoken, problem}
    this.groups = new Map(); // key → {block, stamp}
    this.rows = new Map(); // turn id → the turn as the server lists it
    this.replays = new Set();
    this.wanted = []; // turns to replay, the one seen last first
    this.replaying = false;
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
    const epoch = this.epoch;
    const waiting = setTimeout(() => epoch === this.epoch && !this.view && $("turns").replaceChildren(skeleton()), 250);
    await this.reload();
    clearTimeout(waiting);
    if (epoch === this.epoch) this.toEnd();
  }

  // Asks for the session and draws what differs. A running turn that is not followed yet is followed.
  async reload() {
    const epoch = this.epoch;
    const sid = this.sessionId;
    try {
      const [view, { turns }] = await Promise.all([api.session(sid), api.turns(sid)]);
      if (epoch !== this.epoch) return;
      this.view = view;
      this.rows = new Map(turns.map((turn) => [turn.turn_id, turn]));
      this.#drawStored(view);
      this.hooks.sessionLoaded(view);
      const active = view.active_turn_id;
      if (active && !this.isRunning()) this.attach(active);
      showProblem($("session-problem"), null);
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

  // How many turns stand behind this one.
  after(block) {
    const all = [...$("turns").children];
    return all.length - 1 - all.indexOf(block.element);
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
      shown.block.turnId = group.turnId;
      if (this.live?.turn.turnId === group.key && !this.live.turn.closed) {
        shown.block.setUser(group.user, group.attachments);
        continue; // its parts come from its events
      }
      const stamp = JSON.stringify(group.messages);
      if (stamp !== shown.stamp) {
        shown.stamp = stamp;
        if (group.turnId !== view.active_turn_id) this.#drawGroup(shown, group);
      }
      const row = this.rows.get(group.turnId);
      if (row?.ended && shown.block.turn?.started) shown.block.showSeal(shown.block.turn.started, row);
      if (row?.ended && !shown.block.turn) this.seen.observe(shown.block.element);
    }
    // A turn that is just being followed and is not in these messages yet stays; one that was forgotten goes.
    for (const [key, shown] of this.groups) {
      if (kept.has(key) || shown !== this.groups.get(this.live?.turn.turnId) || this.live.turn.closed) continue;
      kept.set(key, shown);
      elements.push(shown.block.element);
    }
    this.groups = kept;
    const box = $("turns");
    if (elements.length !== box.children.length || elements.some((e, i) => e !== box.children[i])) box.replaceChildren(...elements);
    if (this.atEnd) this.toEnd();
  }

  #drawGroup({ block }, group) {
    block.setUser(group.user, group.attachments);
    const parts = partsOf(group.messages);
    // Where the text is the one that was watched, the watched parts stay: they know durations and answers, too.
    if (!block.turn || squeeze(textOf(parts)) !== squeeze(block.text())) block.draw(parts);
    block.setBusy(false);
  }

  #block(user) {
    return new TurnBlock(user, {
      retry: (block) => this.hooks.resend(block, block.message),
      edit: (block, text) => this.hooks.resend(block, text),
    });
  }

  // --- turns that have ended, from their own events ---

  #inView(entries) {
    for (const { isIntersecting, target } of entries) {
      if (!isIntersecting) continue;
      const [key, shown] = [...this.groups].find(([, s]) => s.block.element === target) ?? [];
      if (!shown || shown.block.turn || shown.replayed) continue;
      shown.replayed = true;
      this.seen.unobserve(target);
      this.wanted.push(key);
    }
    if (!this.replaying) this.#replayWanted();
  }

  // One after the other: a browser gives an origin six connections.
  async #replayWanted() {
    const epoch = this.epoch;
    this.replaying = true;
    while (this.wanted.length && epoch === this.epoch) {
      const turnId = this.wanted.pop();
      const row = this.rows.get(turnId);
      const shown = this.groups.get(turnId);
      if (!row || !shown || row.last_seq === 0) continue;
      const turn = await this.#replay(turnId, row.last_seq > REPLAYED_EVENTS_MAX ? row.last_seq - 2 : 0);
      if (epoch !== this.epoch || shown.block.turn || !turn) continue;
      // A history that the agent has changed since, or a journal that was cut: what is stored counts.
      if (turn.started && squeeze(textOf(turn.parts)) === squeeze(shown.block.text())) {
        shown.block.turn = turn;
        if (turn.parts.some((part) => part.kind !== "text")) shown.block.draw(turn.parts);
      }
      shown.block.showSeal(turn.started, row);
      shown.block.showUsage(turn.usage);
      shown.block.showDenied(turn.denied);
      shown.block.showEnd(turn.end ?? { state: row.state });
      shown.block.setBusy(false);
      if (this.atEnd) this.toEnd();
    }
    if (epoch === this.epoch) this.replaying = false;
  }

  #replay(turnId, after) {
    const turn = newTurn(turnId);
    turn.seq = after;
    return new Promise((resolve) => {
      const link = follow(turnId, {
        onEvent: (name, data, id) => (apply(turn, name, data, id), turn.closed),
        onLink: (state) => state === "reconnecting" && (link.close(), resolve(null)),
        onClosed: () => resolve(turn),
        lastSeq: () => turn.seq,
      });
      this.replays.add(link);
    });
  }

  // --- the running turn ---

  attach(turnId, user = null, files = []) {
    if (this.live?.turn.turnId === turnId) return;
    this.live?.link.close();
    const turn = newTurn(turnId);
    let shown = this.groups.get(turnId);
    if (!shown) {
      shown = { block: this.#block(user), stamp: "" };
      this.groups.set(turnId, shown);
    }
    const { block } = shown;
    if (user !== null) block.setUser(user, files);
    // Turns run in order, so the one that runs belongs behind all that have ended; its place among stored ones stays.
    if (!block.element.isConnected) $("turns").append(block.element);
    block.turn = turn;
    block.turnId = turnId;
    block.draw(turn.parts, false);
    block.setBusy(true);
    const live = { turn, block, link: null, state: "connecting", spoken: 0, speaking: 0, problem: null, times: this.rows.get(turnId) };
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
      live.spoken = textOf(turn.parts).length;
      block.draw(turn.parts, false);
      if (turn.end === null) block.showEnd(null);
    } else if (part) {
      block.update(part);
      if (part.kind !== "text" && this.atEnd) requestAnimationFrame(() => this.atEnd && this.toEnd());
    }
    if (name === "started") this.#showStarted(live);
    if (name === "title") this.hooks.titled(data.title);
    if (name === "pending_steer_leftover") this.hooks.leftover(data.text);
    if (name === "token" || name === "interim_assistant") live.speaking ||= setTimeout(() => this.#speak(live), ANNOUNCE_MS);
    else if (name !== "reasoning") this.#changed(live);
  }

  async #showStarted(live) {
    const { turnId, started } = live.turn;
    live.block.showSeal(started, live.times ?? { started_at: Date.now() / 1000 }, true);
    if (live.times?.started_at) return;
    try {
      live.times = await api.turn(turnId); // when it began, by the server's clock
      live.block.showSeal(started, live.times, !live.turn.closed);
    } catch {
      // The page's own clock does until the turn is read again.
    }
  }

  async #askUsed() {
    const live = this.live;
    if (!live || live.turn.closed || document.hidden || !live.block.asksForUsed) return;
    try {
      const { turns } = await api.hostTurns(1);
      live.block.showUsed(turns.find((turn) => turn.turn_id === live.turn.turnId)?.used);
    } catch {
      // The status line says that the server does not answer.
    }
  }

  #speak(live, all = false) {
    clearTimeout(live.speaking);
    live.speaking = 0;
    const fresh = textOf(live.turn.parts).slice(live.spoken);
    const upTo = all ? fresh.length : Math.max(...[". ", "! ", "? ", "\n"].map((stop) => fresh.lastIndexOf(stop))) + 1;
    if (upTo <= 0) return;
    live.spoken += upTo;
    announce(fresh.slice(0, upTo).trim().slice(0, 2000));
  }

  #changed(live) {
    if (this.live !== live) return;
    live.block.showUsage(live.turn.usage);
    live.block.showDenied(live.turn.denied);
    live.block.element.dataset.state = live.turn.state;
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
    live.block.endParts();
    this.#speak(live, true);
    live.block.setBusy(false);
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
const squeeze = (text) => text.replace(/\s+/g, "");

const skeleton = () => h("div", { class: "skeleton", role: "status" }, h("span", { class: "vh" }, "Loading the session"), h("i"), h("i"), h("i"));
