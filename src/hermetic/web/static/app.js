// The page: which session is open (its id is in the address, so a reload and a second tab find it), what is typed, and
// the buttons around the conversation.

import { api } from "./api.js";
import { Conversation, announce } from "./conversation.js";
import { $, h, showProblem } from "./dom.js";
import { SessionList } from "./sessions.js";
import { sealFacts } from "./view.js";

const HEALTH_MS = 15_000;
const TYPED_MS = 1500; // focus never leaves someone who is typing

const conversation = new Conversation({ sessionLoaded, gone, leftover, changed, ended, asked, titled: showTitle });
const list = new SessionList((sessions) => {
  const row = sessions.find((s) => s.session_id === conversation.sessionId);
  if (row) conversation.noticed(row);
});
const tabs = "BroadcastChannel" in window ? new BroadcastChannel("hermetic") : null; // the poll alone would do, later

let options = null;
let sending = false;
let typedAt = -Infinity;

// --- the address ---

function sessionInAddress() {
  const found = /^#\/s\/([\w-]+)$/.exec(location.hash);
  return found ? found[1] : null;
}

async function openFromAddress() {
  const sid = sessionInAddress();
  toggleSidebar(false);
  closeMenus();
  $("rename-form").hidden = true;
  $("title").hidden = false;
  $("start").hidden = sid !== null;
  $("manage").hidden = true;
  showProblem($("send-problem"), null);
  list.select(sid);
  restoreDraft(sid);
  showTitle(sid ? "…" : "New session");
  showSeal(null);
  if (matchMedia("(min-width: 48.01rem)").matches) $("message").focus();
  await conversation.open(sid);
}

function sessionLoaded(view) {
  showTitle(view.title || "Untitled");
  $("manage").hidden = false;
  $("do-archive").textContent = view.archived ? "Take out of the archive" : "Archive";
}

function gone() {
  showTitle("No such session");
  $("manage").hidden = true;
}

let titleText = "";

function showTitle(text) {
  titleText = text;
  $("title").textContent = text;
  showTabTitle();
}

function showTabTitle() {
  const { tone, text } = conversation.status();
  document.title = `${tone === "wait" ? "Waiting for you: " : text ? "● " : ""}${titleText} · Hermetic`;
}

// --- drafts: what is typed survives a reload, per tab and session, with the key that makes sending it twice harmless ---

const draftName = (sid) => `draft:${sid ?? "new"}`;

function restoreDraft(sid) {
  $("message").value = readDraft(sid).text;
  grow();
}

function readDraft(sid) {
  try {
    return JSON.parse(sessionStorage.getItem(draftName(sid))) ?? { text: "", key: null };
  } catch {
    return { text: "", key: null };
  }
}

function writeDraft(sid, text, key = null) {
  try {
    if (text) sessionStorage.setItem(draftName(sid), JSON.stringify({ text, key }));
    else sessionStorage.removeItem(draftName(sid));
  } catch {
    // Storage is full or switched off: the draft lives as long as the page.
  }
}

function newKey() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (b) => b.toString(16).padStart(2, "0")).join("");
}

function grow() {
  const box = $("message");
  box.style.height = "auto";
  box.style.height = `${Math.min(box.scrollHeight, innerHeight * 0.4)}px`;
}

// --- sending ---

async function send() {
  const text = $("message").value;
  if (sending) return;
  if (!text.trim()) return $("message").focus();
  sending = true;
  showProblem($("send-problem"), null);
  changed();
  try {
    if (conversation.isRunning()) await steer(text);
    else await startTurn(text);
  } catch (problem) {
    showProblem($("send-problem"), problem);
  } finally {
    sending = false;
    changed();
  }
}

async function steer(text) {
  const sid = conversation.sessionId;
  await api.steer(conversation.live.turn.turnId, text);
  clearDraft(sid, text);
}

async function startTurn(text) {
  let sid = conversation.sessionId;
  if (sid === null) sid = await startSession(text);
  const draft = readDraft(sid);
  const key = (draft.text === text && draft.key) || newKey();
  writeDraft(sid, text, key);
  try {
    const turn = await api.newTurn(sid, text, key);
    clearDraft(sid, text);
    if (conversation.sessionId === sid) conversation.attach(turn.turn_id, text);
    tell();
  } catch (problem) {
    if (problem.code !== "session_busy" || !problem.turnId || conversation.sessionId !== sid) throw problem;
    conversation.attach(problem.turnId);
    conversation.reload();
    throw Object.assign(problem, { hint: "You see the turn that runs now. Your text is kept below: send it to the running agent, or wait." });
  }
}

async function startSession(text) {
  const body = {};
  if (options) {
    body.agent = $("agent").value;
    if (options.profiles.length > 1) body.profile = $("profile").value;
    if ($("workspace").value.trim()) body.workspace = $("workspace").value.trim();
  }
  const made = await api.newSession(body);
  writeDraft(null, "");
  writeDraft(made.session_id, text);
  history.pushState(null, "", `#/s/${made.session_id}`);
  $("start").hidden = true;
  list.select(made.session_id);
  await conversation.open(made.session_id);
  return made.session_id;
}

function clearDraft(sid, text) {
  writeDraft(sid, "");
  if (conversation.sessionId !== sid || $("message").value !== text) return; // typed on, meanwhile
  $("message").value = "";
  grow();
}

function leftover(text) {
  if ($("message").value.trim()) return;
  $("message").value = text;
  writeDraft(conversation.sessionId, text);
  grow();
}

async function stop() {
  const { turn } = conversation.live;
  turn.stopAsked = true;
  changed();
  try {
    await api.cancel(turn.turnId);
  } catch (problem) {
    turn.stopAsked = false;
    showProblem($("send-problem"), problem);
    changed();
  }
}

// --- what the state shows ---

function changed() {
  const running = conversation.isRunning();
  const turn = running ? conversation.live.turn : null;
  const stopping = running && (turn.stopAsked || turn.state === "cancelling");
  const { tone, text } = conversation.status();
  const status = sending && !running ? "Sending…" : text;
  if ($("status").textContent !== status) $("status").textContent = status;
  $("status").dataset.tone = sending && !running ? "busy" : tone;
  $("stop").hidden = !running;
  $("stop").disabled = stopping;
  $("stop").textContent = stopping ? "Stopping…" : "Stop";
  $("send").disabled = sending || stopping;
  $("send").textContent = running ? "Steer" : "Send";
  const label = running ? "Tell the running agent something" : "Message";
  $("message").placeholder = label;
  $("message-label").textContent = label;
  showSeal(conversation.live?.turn.started ?? null);
  showTabTitle();
  // The host's counts change when ours begins or ends, not only at the next poll.
  if (running !== countedRunning) {
    countedRunning = running;
    refreshHealth();
  }
}

function ended() {
  list.refresh();
  tell();
}

function asked(prompt) {
  const typing = performance.now() - typedAt < TYPED_MS || $("message").value.trim() !== "";
  if (!typing || document.activeElement !== $("message")) prompt.focus();
}

function tell() {
  tabs?.postMessage(conversation.sessionId);
}

// --- the seal and the host ---

let health = null;
let countedRunning = false;
let sealShown = "";

// The badge: the running (or last watched) turn's seal, else what this host can do.
function showSeal(started) {
  const seal = started?.seal ?? health?.seal;
  $("seal").hidden = !seal;
  if (!seal) return;
  const key = `${started?.turn_id} ${JSON.stringify(seal)}`;
  if (key === sealShown) return;
  sealShown = key;
  $("seal-summary").replaceChildren(`Seal ${seal.level}`, h("span", { class: "pid" }, started ? ` · ${started.pid}` : ""));
  $("seal-summary").setAttribute("aria-label", `Seal level ${seal.level}${started ? `, process ${started.pid}` : ""}`);
  $("seal-summary").classList.toggle("weak", seal.level < 1);
  const intro = started
    ? "The last turn that you watched ran in a process of its own."
    : "Every turn runs in a process of its own. This is what this host can hold it with.";
  const more = started ? [["Process", String(started.pid)], ["Agent", started.agent], ["Profile", started.profile], ["Workspace", started.workspace]] : [];
  $("seal-body").replaceChildren(h("p", { class: "faint" }, intro), sealFacts(seal, more));
}

async function refreshHealth() {
  try {
    health = await api.health();
    const { active_turns: running, queued_turns: queued, version, status } = health;
    $("host").replaceChildren(
      status === "draining" ? h("span", { class: "down" }, "The server is about to restart") : h("span", {}, `${running} running, ${queued} queued`),
      h("span", {}, `Hermetic ${version}`),
    );
  } catch {
    $("host").replaceChildren(h("span", { class: "down" }, "The server does not answer"));
  }
  showSeal(conversation.live?.turn.started ?? null);
}

async function loadOptions() {
  try {
    options = await api.options();
  } catch (problem) {
    return showProblem($("session-problem"), problem);
  }
  const choice = (name) => h("option", { value: name }, name);
  $("agent").replaceChildren(...options.agents.map((a) => choice(a.name)));
  $("agent").value = options.default_agent;
  $("profile").replaceChildren(...options.profiles.map(choice));
  $("profile").value = options.default_profile;
  $("profile-field").hidden = options.profiles.length < 2;
  $("workspace-field").hidden = options.workspace_roots.length === 0;
  $("workspaces").replaceChildren(...options.workspace_roots.map((path) => h("option", { value: path })));
  describeAgent();
}

function describeAgent() {
  const agent = options?.agents.find((a) => a.name === $("agent").value);
  $("agent-description").textContent = agent ? agent.description || `Adapter: ${agent.adapter}` : "";
}

// --- rename, archive, delete ---

function rename() {
  closeMenus();
  $("rename").value = conversation.view?.title ?? "";
  $("rename-form").hidden = false;
  $("title").hidden = true;
  $("rename").select();
  $("rename").focus();
}

function endRename() {
  $("rename-form").hidden = true;
  $("title").hidden = false;
  $("manage").querySelector("summary").focus();
}

async function change(body, done) {
  closeMenus();
  try {
    await api.changeSession(conversation.sessionId, body);
    showProblem($("session-problem"), null);
    done?.();
    await Promise.all([conversation.reload(), list.refresh()]);
    tell();
  } catch (problem) {
    showProblem($("session-problem"), problem);
  }
}

async function archive() {
  const archived = !conversation.view.archived;
  await change({ archived }, () => announce(archived ? "Archived" : "Taken out of the archive"));
}

function askDelete() {
  closeMenus();
  showProblem($("confirm-problem"), null);
  $("confirm-text").textContent = `“${titleText}” with all its messages goes for good. Files in its workspace stay.`;
  $("confirm").showModal();
  $("confirm-no").focus();
}

async function reallyDelete() {
  const sid = conversation.sessionId;
  try {
    await api.deleteSession(sid);
  } catch (problem) {
    return showProblem($("confirm-problem"), problem);
  }
  $("confirm").close();
  writeDraft(sid, "");
  announce("Deleted");
  location.hash = "#/";
  list.restart();
  tell();
}

// --- wiring ---

function toggleSidebar(open) {
  const was = $("sidebar").classList.contains("open");
  $("sidebar").classList.toggle("open", open);
  $("sidebar-open").setAttribute("aria-expanded", String(open));
  if (open) $("sidebar-close").focus();
  else if (was) $("sidebar-open").focus();
}

function closeMenus(except = null) {
  for (const menu of document.querySelectorAll("details.menu[open]")) if (menu !== except) menu.open = false;
}

$("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  send();
});
$("message").addEventListener("input", () => {
  typedAt = performance.now();
  writeDraft(conversation.sessionId, $("message").value);
  grow();
});
$("message").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing || matchMedia("(pointer: coarse)").matches) return;
  event.preventDefault();
  send();
});
$("stop").addEventListener("click", stop);
$("skip").addEventListener("click", (event) => {
  event.preventDefault();
  $("message").focus();
});
$("agent").addEventListener("change", describeAgent);
$("do-rename").addEventListener("click", rename);
$("do-archive").addEventListener("click", archive);
$("do-delete").addEventListener("click", askDelete);
$("rename-cancel").addEventListener("click", endRename);
$("rename-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const title = $("rename").value.trim();
  if (title) change({ title }, endRename);
});
$("rename-form").addEventListener("keydown", (event) => event.key === "Escape" && endRename());
$("confirm-no").addEventListener("click", () => $("confirm").close());
$("confirm-yes").addEventListener("click", reallyDelete);
$("sidebar-open").addEventListener("click", () => toggleSidebar(true));
$("sidebar-close").addEventListener("click", () => toggleSidebar(false));
$("scrim").addEventListener("click", () => toggleSidebar(false));
$("sidebar").addEventListener("click", (event) => event.target.closest("a") && toggleSidebar(false));
document.addEventListener("click", (event) => closeMenus(event.target.closest("details.menu")));
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape") return;
  const menu = document.querySelector("details.menu[open]");
  closeMenus();
  menu?.querySelector("summary").focus();
  toggleSidebar(false);
});
window.addEventListener("hashchange", openFromAddress);
tabs?.addEventListener("message", () => list.refresh());
setInterval(() => document.hidden || refreshHealth(), HEALTH_MS);

loadOptions();
refreshHealth();
list.refresh();
openFromAddress();
