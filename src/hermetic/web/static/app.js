// The page: which session is open (its id is in the address, so a reload and a second tab find it), what is typed, and
// what stands around the conversation.

import { api } from "./api.js";
import { Attachments } from "./attachments.js";
import { Conversation } from "./conversation.js";
import { $, announce, h, showProblem } from "./dom.js";
import { HostPage } from "./host.js";
import { icon, sealMark } from "./icons.js";
import { openMenu } from "./menu.js";
import { SessionList } from "./sessions.js";
import { followAll, setHeartbeat } from "./stream.js";

const HEALTH_MS = 10_000;
const DOWN_MS = 2000; // while the server does not answer
const TYPED_MS = 1500; // focus never leaves someone who is typing

const conversation = new Conversation({ sessionLoaded, gone, leftover, changed, ended, asked, titled: showTitle, resend });
const list = new SessionList({
  onList(sessions) {
    const row = sessions.find((s) => s.session_id === conversation.sessionId);
    if (row) conversation.noticed(row);
    showTabTitle();
  },
  onChanged(sid, what) {
    tell();
    if (what === "deleted" && sid && sid === conversation.sessionId) location.hash = "#/";
    else if (sid && sid === conversation.sessionId) conversation.reload();
  },
});
const attachments = new Attachments({ session: needSession, changed: () => (keepDraft(), changed()) });
const host = new HostPage();
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
  const atHost = location.hash === "#/host";
  toggleSidebar(false);
  for (const [id, shown] of [["start", sid === null && !atHost], ["turns", !atHost], ["host-page", atHost], ["composer", !atHost]]) $(id).hidden = !shown;
  $("manage").hidden = true;
  $("about").hidden = true;
  $("log").setAttribute("aria-label", atHost ? "The host" : "Conversation");
  showProblem($("send-problem"), null);
  list.select(sid);
  $("host-link").toggleAttribute("data-here", atHost);
  if (atHost) host.open();
  else host.close();
  restoreDraft(sid);
  showTitle(sid ? "…" : atHost ? "This host" : "New session");
  if (!atHost && matchMedia("(min-width: 48.01rem)").matches) $("message").focus();
  await conversation.open(sid);
  if (atHost) $("log").scrollTop = 0;
}

function sessionLoaded(view) {
  showTitle(view.title || "Untitled");
  $("manage").hidden = false;
  const folder = view.workspace.split("/").filter(Boolean).at(-1) ?? "/";
  $("about").hidden = false;
  $("about").title = view.workspace;
  $("about").replaceChildren(...[h("span", {}, view.agent), view.profile === "default" ? null : h("span", {}, view.profile),
    h("span", { class: "about-folder" }, icon("folder"), folder === view.session_id ? "its own folder" : folder),
    view.input_tokens || view.output_tokens ? h("span", { class: "only-wide" }, `${(view.input_tokens + view.output_tokens).toLocaleString()} tokens${view.estimated_cost ? ` · $${view.estimated_cost.toFixed(4)}` : ""}`) : null,
    view.archived ? h("span", {}, "archived") : null].filter(Boolean));
  const next = view.continued_as;
  if (!next) return;
  // Its agent has shortened the context, and the session goes on under another id. Who watched that goes along.
  if (conversation.live) return location.replace(`#/s/${next}`);
  $("session-problem").replaceChildren(h("p", { class: "notice" }, "This is the transcript from before the agent shortened its context. ", h("a", { href: `#/s/${next}` }, "The session goes on here.")));
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
const NO_DRAFT = { text: "", key: null, files: [] };

function restoreDraft(sid) {
  const draft = readDraft(sid);
  $("message").value = draft.text;
  attachments.restore(draft.files);
  grow();
}

function readDraft(sid) {
  try {
    return { ...NO_DRAFT, ...JSON.parse(sessionStorage.getItem(draftName(sid))) };
  } catch {
    return NO_DRAFT;
  }
}

function writeDraft(sid, text, { key = null, files = [] } = {}) {
  try {
    if (text || files.length) sessionStorage.setItem(draftName(sid), JSON.stringify({ text, key, files }));
    else sessionStorage.removeItem(draftName(sid));
  } catch {
    // Storage is full or switched off: the draft lives as long as the page.
  }
}

const keepDraft = () => writeDraft(conversation.sessionId, $("message").value, { files: attachments.names });

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
  if (sending || attachments.busy) return;
  if (!text.trim()) return $("message").focus();
  sending = true;
  showProblem($("send-problem"), null);
  changed();
  try {
    if (conversation.isRunning()) await steer(text);
    else await startTurn(text, attachments.names);
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

async function startTurn(text, files) {
  const sid = await needSession(text);
  const draft = readDraft(sid);
  const key = (draft.text === text && draft.key) || newKey();
  writeDraft(sid, text, { key, files });
  try {
    const turn = await api.newTurn(sid, text, key, files);
    clearDraft(sid, text);
    attachments.clear();
    if (conversation.sessionId === sid) conversation.attach(turn.turn_id, text, files);
    tell();
  } catch (problem) {
    if (problem.code !== "session_busy" || !problem.turnId || conversation.sessionId !== sid) throw problem;
    conversation.attach(problem.turnId);
    conversation.reload();
    throw Object.assign(problem, { hint: "You see the turn that runs now. Your text is kept below: send it to the running agent, or wait." });
  }
}

let making = null;

// The open session's id; a file or a first message begins one.
function needSession(text = "") {
  if (conversation.sessionId !== null) return conversation.sessionId;
  making ??= startSession(text).finally(() => (making = null));
  return making;
}

async function startSession(text) {
  const body = {};
  if (options) {
    body.agent = chosenAgent();
    if (options.profiles.length > 1) body.profile = $("profile").value;
    if ($("workspace").value.trim()) body.workspace = $("workspace").value.trim();
  }
  const made = await api.newSession(body);
  const sid = made.session_id;
  writeDraft(null, "");
  writeDraft(sid, text || $("message").value);
  history.pushState(null, "", `#/s/${sid}`);
  $("start").hidden = true;
  list.select(sid);
  showTitle("New session");
  await conversation.open(sid);
  return sid;
}

function clearDraft(sid, text) {
  writeDraft(sid, "");
  if (conversation.sessionId !== sid || $("message").value !== text) return; // typed on, meanwhile
  $("message").value = "";
  grow();
}

// Again, from a turn on: it and what came after it are forgotten, then the text is sent. → a problem or null.
async function resend(block, text) {
  const sid = conversation.sessionId;
  const later = conversation.after(block);
  if (conversation.isRunning()) {
    const problem = { detail: "A turn runs in this session.", hint: "Stop it first." };
    showProblem($("send-problem"), problem);
    return problem;
  }
  if (later > 0 && !(await confirmed("Send this again?", `This answer and ${later === 1 ? "the turn" : `the ${later} turns`} after it leave the session. Export it first to keep them.`, "Send again"))) return null;
  sending = true;
  showProblem($("send-problem"), null);
  changed();
  try {
    const files = block.files;
    await api.forget(sid, block.turnId);
    if (conversation.sessionId !== sid) return null;
    await conversation.reload();
    const turn = await api.newTurn(sid, text, newKey(), files);
    conversation.attach(turn.turn_id, text, files);
    tell();
    return null;
  } catch (problem) {
    if (conversation.sessionId === sid && !$("message").value) {
      $("message").value = text; // it has left the session, so it must not be lost here
      keepDraft();
      grow();
    }
    showProblem($("send-problem"), problem);
    return problem;
  } finally {
    sending = false;
    changed();
  }
}

function leftover(text) {
  if ($("message").value.trim()) return;
  $("message").value = text;
  keepDraft();
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

function confirmed(title, text, yes) {
  $("confirm-title").textContent = title;
  $("confirm-text").textContent = text;
  $("confirm-yes").textContent = yes;
  $("confirm").returnValue = "";
  $("confirm").showModal();
  return new Promise((resolve) => $("confirm").addEventListener("close", () => resolve($("confirm").returnValue === "yes"), { once: true }));
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
  $("stop").lastChild.textContent = stopping ? "Stopping…" : "Stop";
  $("send").disabled = sending || stopping || attachments.busy;
  $("send").lastChild.textContent = running ? "Steer" : "Send";
  $("attach").disabled = running;
  const label = running ? "Tell the running agent something" : conversation.sessionId ? "Message" : "Ask, or say what to do";
  $("message").placeholder = label;
  $("message-label").textContent = label;
  if (turn) list.setState(turn.turnId, stopping ? "cancelling" : turn.state);
  showTabTitle();
  // The host's counts change when ours begins or ends, not only at the next poll.
  if (running !== countedRunning) {
    countedRunning = running;
    refreshHealth();
  }
}

// What any turn of this caller does, in whatever tab it was begun.
const STATE_AFTER = {
  queued: "queued", started: "running", approval: "waiting", clarify: "waiting", approval_resolved: "running", clarify_resolved: "running",
  cancelling: "cancelling",
};
const seenTurns = new Set();

function heard(sid, turnId, name, data) {
  if (name === "snapshot") list.setState(turnId, data.state);
  else if (STATE_AFTER[name]) list.setState(turnId, STATE_AFTER[name]);
  if (name === "stream_end" || name === "title") list.refresh();
  if (seenTurns.has(turnId)) return;
  seenTurns.add(turnId);
  list.refresh();
  if (sid === conversation.sessionId && conversation.live?.turn.turnId !== turnId && !conversation.isRunning()) conversation.reload();
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

// --- the host ---

let countedRunning = false;
let hostLevel = 0;
let healthTimer = 0;
let down = false;

async function refreshHealth() {
  clearTimeout(healthTimer);
  let next = HEALTH_MS;
  try {
    const { active_turns: running, queued_turns: queued, status, level, heartbeat_s: heartbeat } = await api.health();
    hostLevel = level;
    setHeartbeat(heartbeat);
    $("host").textContent = status === "draining" ? "About to stop" : `${running} running · ${queued} queued`;
    $("host-dot").className = `dot ${status === "draining" ? "warn" : running ? "busy" : "good"}`;
    $("host-link").title = `Seal level ${level}. Open the host's page.`;
    $("offline").hidden = status !== "draining";
    $("offline").textContent = "The server is about to stop and takes no more turns. What was said is kept.";
    if (down) { // it is back: ask for everything that may have changed
      down = false;
      announce("The server answers again.");
      list.refresh();
      if (!options) loadOptions();
      if (conversation.sessionId && !conversation.isRunning()) conversation.reload();
    }
  } catch {
    down = true;
    next = DOWN_MS;
    $("host").textContent = "No answer";
    $("host-dot").className = "dot bad";
    $("offline").hidden = false;
    $("offline").textContent = navigator.onLine
      ? "The server does not answer. This page keeps trying; what you type is kept."
      : "You are offline. The agent goes on without you, and this page catches up when you are back.";
  }
  healthTimer = setTimeout(() => document.hidden || refreshHealth(), next);
}

async function loadOptions() {
  try {
    [options, { level: hostLevel }] = await Promise.all([api.options(), api.health()]);
    showMe(await api.me());
  } catch (problem) {
    if (problem.code !== "unreachable") showProblem($("session-problem"), problem);
    return;
  }
  const many = options.agents.length > 1;
  for (const old of $("agents").querySelectorAll("label")) old.remove();
  $("agents").append(...options.agents.map((agent) => {
    const radio = h("input", { type: "radio", name: "agent", value: agent.name, checked: agent.name === options.default_agent });
    return h("label", { class: "agent" }, many ? radio : h("input", { type: "radio", name: "agent", value: agent.name, checked: true, class: "vh" }),
      h("span", { class: "agent-name" }, agent.name), h("span", { class: "agent-says" }, agent.description || ADAPTERS[agent.adapter] || `Adapter ${agent.adapter}`),
      h("span", { class: "agent-may" }, mayDo(agent)));
  }));
  $("profile").replaceChildren(...options.profiles.map((name) => h("option", { value: name }, name)));
  $("profile").value = options.default_profile;
  $("profile-field").hidden = options.profiles.length < 2;
  $("workspace-field").hidden = options.workspace_roots.length === 0;
  $("workspaces").replaceChildren(...options.workspace_roots.filter((path) => path !== "/").map((path) => h("option", { value: path })));
  sayWorkspace();
  showIdeas();
}

const ADAPTERS = {
  demo: "Works on files without a model, and asks before it runs a command.",
  hermes: "hermes-agent, with its own tools.",
  function: "A function of this server's owner.",
};

// What an agent may do, as far as the server says it.
function mayDo({ egress = [], model_api: model = false }) {
  if (hostLevel < 2) return "Works in the workspace, with the files and the network of the server's user.";
  const reach = [model ? "its model" : "", ...egress].filter(Boolean);
  const shown = reach.length > 4 ? [...reach.slice(0, 3), `${reach.length - 3} more hosts`] : reach;
  return `Reads and writes the workspace, and sees nothing else of this host. ${reach.length ? `Reaches ${shown.join(", ")}.` : "No network."}`;
}

// Who the server takes this browser for, and the way out.
function showMe({ tenant, user, key_id: key, login_needed: needed }) {
  $("log-out").hidden = !needed;
  $("log-out").title = `${user ?? key ?? "?"} of ${tenant}`;
}

const chosenAgent = () => $("agents").querySelector("input:checked")?.value ?? options.default_agent;

function sayWorkspace() {
  const named = $("workspace").value.trim();
  const roots = options?.workspace_roots ?? [];
  $("workspace-says").textContent = named
    ? "The agent reads and writes the files there."
    : `Left empty, the session gets a folder of its own.${roots.length && !roots.includes("/") ? ` Others: inside ${roots.join(", ")}.` : ""}`;
}

const IDEAS = ["list files", "write hello.txt: Hello!", "count to 20 slowly", "ask me", "run uname -a"];

// For the demo agent, which knows a handful of requests: they are one click away.
function showIdeas() {
  $("ideas").hidden = options?.agents.find((a) => a.name === chosenAgent())?.adapter !== "demo";
  $("ideas").replaceChildren(...IDEAS.map((text) => h("button", { type: "button", class: "idea", onclick: () => {
    $("message").value = text;
    keepDraft();
    send();
  } }, text)));
}

// --- colours ---

const THEMES = { "": "as the system", light: "light", dark: "dark" };

function setTheme(theme) {
  if (theme) document.documentElement.dataset.theme = theme;
  else delete document.documentElement.dataset.theme;
  try {
    localStorage.setItem("theme", theme);
  } catch {
    // For as long as the page lives, then.
  }
  $("theme").setAttribute("aria-label", `Colours: ${THEMES[theme]}`);
  $("theme").title = `Colours: ${THEMES[theme]}`;
}

// --- wiring ---

function toggleSidebar(open) {
  const was = $("sidebar").classList.contains("open");
  $("sidebar").classList.toggle("open", open);
  $("sidebar-open").setAttribute("aria-expanded", String(open));
  if (open) $("sidebar-close").focus();
  else if (was) $("sidebar-open").focus();
}

for (const [id, name] of [["manage", "more"], ["sidebar-open", "menu"], ["sidebar-close", "close"], ["attach", "clip"], ["theme", "theme"], ["log-out", "leave"]]) $(id).append(icon(name));
$("new").prepend(icon("plus"));
$("search-form").prepend(icon("search"));
$("send").prepend(icon("send"));
$("stop").prepend(icon("stop"));
$("jump").append(icon("down"), "Newest");
$("brand-mark").append(sealMark());
$("start-mark").append(sealMark());

$("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  send();
});
$("message").addEventListener("input", () => {
  typedAt = performance.now();
  keepDraft();
  grow();
});
$("message").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing || matchMedia("(pointer: coarse)").matches) return;
  event.preventDefault();
  send();
});
$("composer").addEventListener("click", (event) => event.target === $("composer") && $("message").focus());
$("stop").addEventListener("click", stop);
$("skip").addEventListener("click", (event) => {
  event.preventDefault();
  $("message").focus();
});
$("agents").addEventListener("change", showIdeas);
$("workspace").addEventListener("input", sayWorkspace);
$("theme").addEventListener("click", () => {
  const names = Object.keys(THEMES);
  const now = document.documentElement.dataset.theme ?? "";
  setTheme(names[(names.indexOf(now) + 1) % names.length]);
});
$("log-out").addEventListener("click", async () => {
  try {
    await api.logOut();
    location.assign("login");
  } catch (problem) {
    showProblem($("session-problem"), problem);
  }
});
$("manage").addEventListener("click", () => {
  const view = conversation.view;
  if (!view) return;
  if (matchMedia("(max-width: 48rem)").matches) {
    openMenu($("manage"), list.menuOf(view).map((item) => (item?.label === "Rename" ? { ...item, act: () => (toggleSidebar(true), list.rename(view)) } : item)));
  } else openMenu($("manage"), list.menuOf(view));
});
$("confirm-no").addEventListener("click", () => $("confirm").close());
$("confirm-yes").addEventListener("click", () => $("confirm").close("yes"));
$("sidebar-open").addEventListener("click", () => toggleSidebar(true));
$("sidebar-close").addEventListener("click", () => toggleSidebar(false));
$("scrim").addEventListener("click", () => toggleSidebar(false));
$("sidebar").addEventListener("click", (event) => event.target.closest("a") && toggleSidebar(false));
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") toggleSidebar(false);
  if ((event.ctrlKey || event.metaKey) && event.key.toLowerCase() === "k") {
    event.preventDefault();
    if (matchMedia("(max-width: 48rem)").matches) toggleSidebar(true);
    $("search").focus();
  }
});
window.addEventListener("hashchange", openFromAddress);
window.addEventListener("online", refreshHealth);
window.addEventListener("offline", refreshHealth);
document.addEventListener("visibilitychange", () => document.hidden || refreshHealth());
tabs?.addEventListener("message", () => list.refresh());

setTheme(document.documentElement.dataset.theme ?? "");
loadOptions();
refreshHealth();
list.refresh();
openFromAddress();
followAll(heard);
