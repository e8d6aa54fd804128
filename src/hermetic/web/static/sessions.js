// The list of sessions: the newest page is asked for again when a turn begins or ends, and every few seconds while the
// page is visible.

import { api } from "./api.js";
import { $, ago, h, showProblem, toast } from "./dom.js";
import { icon } from "./icons.js";
import { openMenu } from "./menu.js";

const POLL_MS = 10_000; // for what the stream of all turns does not say: renames and the like of other browsers
const TYPING_MS = 200; // a search goes out when the fingers rest
const UNDO_MS = 8000;
const DAY_S = 86_400;

// `onList(sessions)` gets every fresh first page, unless it is a search's or the archive's. `onChanged(sid, what)`:
// "renamed", "archived", "deleted", "pinned", "kept" (a delete that was undone).
export class SessionList {
  constructor({ onList, onChanged }) {
    this.onList = onList;
    this.onChanged = onChanged;
    this.older = []; // pages that were asked for by hand; they are not polled
    this.nextBefore = null;
    this.current = null;
    this.round = 0; // the newest question; an answer to an earlier one is dropped
    this.shown = "";
    this.rows = [];
    this.deleting = new Map(); // session id → its toast: it goes for good when that goes
    this.states = new Map(); // turn id → state, where the page knows better than the poll
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
    window.addEventListener("pagehide", () => {
      for (const sid of this.deleting.keys()) api.deleteSessionOnLeaving(sid);
      this.deleting.clear();
    });
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
      // What runs, waits for a person or for its place: the page follows only the open session itself.
      const live = answer.sessions.some((s) => s.active_turn_id) ? (await api.hostTurns(1)).turns : [];
      if (round !== this.round) return;
      this.states = new Map(live.filter((turn) => !turn.ended).map((turn) => [turn.turn_id, turn.state]));
      showProblem($("list-problem"), null);
      if (!this.older.length) this.nextBefore = answer.next_before ?? null;
      this.draw(answer.sessions, question);
      if (!question.q && !question.archived) this.onList(answer.sessions);
    } catch (problem) {
      if (round === this.round && problem.code !== "unreachable") showProblem($("list-problem"), problem); // the page says that it is offline
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

  // What a turn's stream has said of it, before the next poll does.
  setState(turnId, state) {
    if (this.states.get(turnId) === state) return;
    this.states.set(turnId, state);
    if (this.last) this.draw(...this.last);
  }

  draw(first, question) {
    this.last = [first, question];
    const { q, archived } = question;
    const known = new Set(first.map((s) => s.session_id));
    const all = [...first, ...this.older.filter((s) => !known.has(s.session_id))].filter((s) => !this.deleting.has(s.session_id));
    this.rows = all;
    $("older").hidden = this.nextBefore === null;
    $("list-empty").hidden = all.length > 0;
    $("list-empty").textContent = q ? "Nothing found." : archived ? "Nothing is archived." : "Nothing here yet. Your sessions will be.";
    const shown = JSON.stringify([q, archived, all.map((s) => [s.session_id, s.title, ago(s.updated_at), s.pinned, this.#state(s)])]);
    if (shown === this.shown) return; // a redraw would take the keyboard's focus away
    this.shown = shown;
    const focus = document.activeElement?.closest?.("#sessions li");
    const what = focus && [focus.dataset.sid, document.activeElement.tagName];
    if ($("sessions").querySelector("form")) return (this.shown = ""); // somebody is typing a new title
    $("sessions").replaceChildren(...(q ? [["Found", all]] : groups(all)).map(([name, rows]) =>
      h("section", { "aria-label": name }, h("h2", {}, name), h("ul", {}, rows.map((s) => this.item(s))))));
    if (what) $("sessions").querySelector(`li[data-sid="${CSS.escape(what[0])}"] ${what[1]}`)?.focus();
  }

  #state(session) {
    return session.active_turn_id ? this.states.get(session.active_turn_id) ?? "running" : "";
  }

  item(session) {
    const sid = session.session_id;
    const state = this.#state(session);
    const words = { queued: "in the queue", waiting: "waits for you", cancelling: "stopping" }[state] ?? (state ? "running" : "");
    const link = h("a", { href: `#/s/${encodeURIComponent(sid)}` },
      h("span", { class: "name" }, session.title || "Untitled"),
      state ? h("span", { class: `state ${state}` }, words) : h("span", { class: "when" }, session.updated_at ? ago(session.updated_at) : ""));
    mark(link, this.current, sid);
    const more = h("button", { type: "button", class: "quiet small", "aria-label": `Manage “${session.title || "Untitled"}”`, "aria-haspopup": "menu", "aria-expanded": "false",
      onclick: () => openMenu(more, this.menuOf(session)) }, icon("more"));
    const item = h("li", { "data-sid": sid, class: session.pinned ? "pinned" : "" }, link, more);
    item.addEventListener("contextmenu", (event) => {
      event.preventDefault();
      openMenu(more, this.menuOf(session));
    });
    return item;
  }

  // The same menu in the list and in the head of the open session.
  menuOf(session) {
    const sid = session.session_id;
    return [
      { label: "Rename", icon: "pencil", act: () => this.rename(session) },
      { label: session.pinned ? "Unpin" : "Pin", icon: "pin", act: () => this.change(session, { pinned: !session.pinned }, "pinned") },
      { label: session.archived ? "Take out of the archive" : "Archive", icon: "archive", act: () => this.archive(session) },
      null,
      { label: "Export as Markdown", icon: "download", act: () => save(api.exportUrl(sid, "markdown")) },
      { label: "Export as JSON", icon: "download", act: () => save(api.exportUrl(sid, "json")) },
      null,
      { label: "Delete", icon: "trash", danger: true, act: () => this.delete(session) },
    ];
  }

  rename(session) {
    const row = $("sessions").querySelector(`li[data-sid="${CSS.escape(session.session_id)}"]`);
    const input = h("input", { "aria-label": "Title of this session", maxlength: "200", autocomplete: "off" });
    input.value = session.title;
    const form = h("form", { class: "rename" }, input);
    let ended = false;
    const end = (keep) => {
      if (ended) return;
      ended = true;
      form.remove();
      row?.classList.remove("renaming");
      this.shown = "";
      const title = input.value.trim();
      if (keep && title && title !== session.title) this.change(session, { title }, "renamed");
      else if (this.last) this.draw(...this.last);
    };
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      end(true);
    });
    input.addEventListener("keydown", (event) => {
      if (event.key !== "Escape") return;
      event.stopPropagation();
      end(false);
      row?.querySelector("a")?.focus();
    });
    input.addEventListener("blur", () => end(true));
    if (!row) return;
    row.classList.add("renaming");
    row.append(form);
    input.focus();
    input.select();
  }

  archive(session) {
    const archived = !session.archived;
    this.change(session, { archived }, "archived");
    toast(archived ? `Archived “${session.title || "Untitled"}”.` : "Taken out of the archive.", {
      action: "Undo", onaction: () => this.change(session, { archived: !archived }, "archived"),
    });
  }

  async change(session, body, what) {
    try {
      await api.changeSession(session.session_id, body);
    } catch (problem) {
      toast(`${problem.detail} ${problem.hint}`, { bad: true });
    }
    this.onChanged(session.session_id, what);
    await this.refresh();
  }

  // The session leaves the list at once and the server when nobody has taken it back.
  async delete(session) {
    const sid = session.session_id;
    if (session.active_turn_id) return toast("This session has a turn that runs. Stop it first, then delete.", { bad: true });
    let keep = false;
    const note = toast(`Deleted “${session.title || "Untitled"}”. Files in its workspace stay.`, { action: "Undo", ms: UNDO_MS, onaction: () => (keep = true) });
    this.deleting.set(sid, note);
    if (this.last) this.draw(...this.last);
    this.onChanged(sid, "deleted");
    await note.gone;
    if (!this.deleting.has(sid)) return; // the page is being left: it is sent already
    try {
      if (!keep) await api.deleteSession(sid);
    } catch (problem) {
      if (problem.status !== 404) toast(`“${session.title || "Untitled"}” is still there. ${problem.detail} ${problem.hint}`, { bad: true });
    }
    this.deleting.delete(sid);
    if (keep) this.onChanged(sid, "kept");
    else this.onChanged(null, "deleted");
    await this.refresh();
  }
}

function groups(sessions) {
  const today = new Date().setHours(0, 0, 0, 0) / 1000;
  const where = (s) => {
    if (s.pinned) return "Pinned";
    if (s.updated_at >= today || s.active_turn_id) return "Today";
    if (s.updated_at >= today - DAY_S) return "Yesterday";
    return s.updated_at >= today - 6 * DAY_S ? "This week" : "Earlier";
  };
  const made = new Map([["Pinned", []], ["Today", []], ["Yesterday", []], ["This week", []], ["Earlier", []]]);
  for (const session of sessions) made.get(where(session)).push(session);
  return [...made].filter(([, rows]) => rows.length);
}

function save(url) {
  const link = h("a", { href: url, download: true });
  document.body.append(link);
  link.click();
  link.remove();
}

function mark(link, sessionId, own = link.parentElement?.dataset.sid) {
  if (own === sessionId) link.setAttribute("aria-current", "page");
  else link.removeAttribute("aria-current");
}
