// The list of sessions: the newest page is asked for again every few seconds while the page is visible, which is also
// how one tab learns what another one started.

import { api } from "./api.js";
import { $, ago, h, showProblem } from "./dom.js";

const POLL_MS = 3000;
const TYPING_MS = 200; // a search goes out when the fingers rest

// `onList(sessions)` gets every fresh first page, unless it is a search's or the archive's.
export class SessionList {
  constructor(onList) {
    this.onList = onList;
    this.older = []; // pages that were asked for by hand; they are not polled
    this.nextBefore = null;
    this.current = null;
    this.round = 0; // the newest question; an answer to an earlier one is dropped
    this.shown = "";
    let typing = 0;
    $("search").addEventListener("input", () => {
      clearTimeout(typing);
      typing = setTimeout(() => this.restart(), TYPING_MS);
    });
    $("search-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.restart();
    });
    $("archived").addEventListener("change", () => this.restart());
    $("older").addEventListener("click", () => this.more());
    document.addEventListener("visibilitychange", () => document.hidden || this.refresh());
    window.addEventListener("focus", () => this.refresh());
    window.addEventListener("online", () => this.refresh());
    setInterval(() => document.hidden || this.refresh(), POLL_MS);
  }

  question() {
    return { q: $("search").value.trim(), archived: $("archived").checked };
  }

  restart() {
    this.older = [];
    this.nextBefore = null;
    return this.refresh();
  }

  async refresh() {
    const round = ++this.round;
    const question = this.question();
    try {
      const answer = await api.sessions(question);
      if (round !== this.round) return;
      showProblem($("list-problem"), null);
      if (!this.older.length) this.nextBefore = answer.next_before ?? null;
      this.draw(answer.sessions, question);
      if (!question.q && !question.archived) this.onList(answer.sessions);
    } catch (problem) {
      if (round === this.round) showProblem($("list-problem"), problem);
    }
  }

  async more() {
    try {
      const answer = await api.sessions({ ...this.question(), before: this.nextBefore });
      this.older.push(...answer.sessions);
      this.nextBefore = answer.next_before ?? null;
      await this.refresh();
    } catch (problem) {
      showProblem($("list-problem"), problem);
    }
  }

  select(sessionId) {
    this.current = sessionId;
    for (const link of $("sessions").querySelectorAll("a")) mark(link, sessionId);
  }

  draw(first, { q, archived }) {
    const known = new Set(first.map((s) => s.session_id));
    const all = [...first, ...this.older.filter((s) => !known.has(s.session_id))];
    $("older").hidden = this.nextBefore === null;
    $("list-empty").hidden = all.length > 0;
    $("list-empty").textContent = q ? "Nothing found." : archived ? "Nothing archived." : "No sessions yet.";
    const shown = JSON.stringify(all.map((s) => [s.session_id, s.title, ago(s.updated_at), s.active_turn_id]));
    if (shown === this.shown) return; // a redraw would take the keyboard's focus away
    this.shown = shown;
    const focused = document.activeElement?.dataset?.sid;
    $("sessions").replaceChildren(...all.map((s) => this.item(s)));
    if (focused) $("sessions").querySelector(`a[data-sid="${CSS.escape(focused)}"]`)?.focus();
  }

  item(session) {
    const sid = session.session_id;
    const state = session.active_turn_id
      ? h("span", { class: "when active" }, "running")
      : h("span", { class: "when" }, session.updated_at ? ago(session.updated_at) : "");
    const link = h("a", { href: `#/s/${encodeURIComponent(sid)}`, "data-sid": sid },
      h("span", { class: "name" }, session.title || "Untitled"), state);
    mark(link, this.current);
    return h("li", {}, link);
  }
}

function mark(link, sessionId) {
  if (link.dataset.sid === sessionId) link.setAttribute("aria-current", "page");
  else link.removeAttribute("aria-current");
}
