// One turn on the page: what the user said, the agent's parts in order, what held it, how it ended. Parts only grow or
// change in place, so each keeps its element.

import { announce, clockTime, copyButton, growing, h, showProblem, span } from "./dom.js";
import { icon, sealMark } from "./icons.js";
import { RichText } from "./rich.js";
import { textOf, verdict } from "./turn.js";

export class TurnBlock {
  // `actions`: retry(block), edit(block, text) → a promise of a problem or null.
  constructor(user, actions = {}) {
    this.actions = actions;
    this.turn = null; // the fold, of a turn that was watched or replayed
    this.turnId = null;
    this.parts = [];
    this.drawn = new Map(); // part → its small view {element, update()}
    this.partsBox = h("div", { class: "parts" });
    this.meta = h("div", { class: "meta" });
    this.endBox = h("div", { class: "end" });
    this.usage = h("span", { class: "usage" });
    this.copy = copyButton(() => this.text(), "Copy the answer", icon("copy"));
    this.retry = h("button", { type: "button", class: "quiet small", "aria-label": "Try again", title: "Try again", onclick: () => actions.retry?.(this) }, icon("retry"));
    this.tools = h("footer", {}, this.copy, this.retry, this.usage);
    this.userText = h("div", { class: "text" });
    this.userFiles = h("ul", { class: "files", "aria-label": "Attached files" });
    this.userBody = h("div", { class: "user-body" }, this.userText, this.userFiles);
    this.userTools = h("div", { class: "user-tools" },
      copyButton(() => this.userText.textContent, "Copy the message", icon("copy")),
      h("button", { type: "button", class: "quiet small edit", "aria-label": "Edit and send again", title: "Edit and send again", onclick: () => this.#edit() }, icon("pencil")));
    this.userBox = h("div", { class: "user" }, h("h2", { class: "vh" }, "You"), this.userBody, this.userTools);
    this.setUser(user);
    this.element = h("article", { class: "turn" }, this.userBox,
      h("div", { class: "reply" }, h("h2", { class: "vh" }, "Agent"), h("div", { class: "avatar" }, sealMark()),
        h("div", { class: "answer-body" }, this.meta, this.partsBox, this.endBox, this.tools)));
    this.setBusy(false);
  }

  setUser(text, files = []) {
    this.userText.textContent = text ?? "";
    this.userFiles.replaceChildren(...files.map((name) => h("li", {}, icon("file"), name)));
    this.userFiles.hidden = files.length === 0;
    this.files = files;
    this.userBox.hidden = text === null;
  }

  get message() {
    return this.userText.textContent;
  }

  setBusy(busy) {
    if (busy) this.element.setAttribute("aria-busy", "true");
    else this.element.removeAttribute("aria-busy");
    this.userBox.querySelector(".edit").hidden = busy || !this.turnId;
    this.retry.hidden = busy || !this.turnId;
    this.copy.hidden = busy || !this.text();
  }

  text() {
    return textOf(this.parts);
  }

  draw(parts, ended = true) {
    this.drawn.clear();
    this.partsBox.replaceChildren();
    this.parts = parts;
    for (const part of parts) this.update(part);
    if (ended) this.endParts();
  }

  update(part) {
    let view = this.drawn.get(part);
    if (!view) {
      const before = this.parts[this.parts.indexOf(part) - 1];
      if (before) this.drawn.get(before)?.end?.(); // it will grow no more
      view = PARTS[part.kind](part);
      this.drawn.set(part, view);
      this.partsBox.append(view.element);
    }
    view.update();
  }

  endParts() {
    for (const view of this.drawn.values()) view.end?.();
    this.copy.hidden = !this.text();
  }

  // What held the turn. `times`: {started_at, ended_at} where they are known.
  showSeal(started, { started_at = null, ended_at = null } = {}, running = false) {
    if (!started) return this.meta.replaceChildren();
    const { agent, pid, seal, workspace, profile } = started;
    this.clock = h("span", { class: "clock" });
    this.facts = h("div");
    this.times = { started_at, ended_at, running };
    const open = this.meta.querySelector("details")?.open ?? false;
    this.meta.replaceChildren(h("details", { class: "badge-box", open },
      h("summary", { class: `badge ${sealTone(seal.level)}` }, sealMark(), h("span", {}, `Seal ${seal.level}`),
        h("span", { class: "pid" }, `pid ${pid}`), this.clock, (this.denied = h("span", { class: "denied", hidden: true }))),
      h("div", { class: "badge-facts" }, h("p", {}, sealSentence(seal)),
        sealFacts(seal, [["Agent", agent], ["Profile", profile], ["Process", String(pid)], ["Workspace", workspace]]), this.facts)));
    this.tick();
  }

  // How often the seal has refused something.
  showDenied(count) {
    if (!this.denied || !count) return;
    this.denied.hidden = false;
    this.denied.textContent = `${count} denied`;
  }

  // Memory and processor, where the host counts them for each turn.
  showUsed(used) {
    const rows = resourceRows(used ?? {});
    if (this.facts && rows.length) this.facts.replaceChildren(factList(rows));
  }

  get asksForUsed() {
    return this.meta.querySelector("details")?.open ?? false;
  }

  tick() {
    if (!this.clock) return;
    const { started_at, ended_at, running } = this.times;
    const end = ended_at ?? (running ? Date.now() / 1000 : null);
    this.clock.textContent = started_at && end ? span(Math.max(0, end - started_at)) : "";
  }

  showUsage(usage) {
    if (!usage || !(usage.input_tokens || usage.output_tokens)) return;
    const cost = usage.estimated_cost ? ` · $${usage.estimated_cost.toFixed(4)}` : "";
    this.usage.textContent = `${usage.input_tokens.toLocaleString()} in · ${usage.output_tokens.toLocaleString()} out${cost}`;
    if (usage.context_length) this.usage.title = `Context: ${(usage.last_prompt_tokens ?? 0).toLocaleString()} of ${usage.context_length.toLocaleString()} tokens`;
  }

  showEnd(end) {
    const facts = verdict(end);
    this.element.dataset.end = facts?.state ?? "";
    this.tools.classList.toggle("has-verdict", facts !== null && facts.state !== "cancelled");
    if (!facts) return this.endBox.replaceChildren();
    const again = facts.state !== "cancelled" && this.actions.retry
      ? h("button", { type: "button", onclick: () => this.actions.retry(this) }, icon("retry"), "Try again") : null;
    this.endBox.replaceChildren(h("div", { class: `verdict ${facts.state}` },
      h("p", { class: "verdict-title" }, facts.title),
      facts.message ? h("p", { class: "text" }, facts.message) : null,
      facts.hint ? h("p", { class: "hint" }, facts.hint) : null,
      facts.stderr.length
        ? h("details", {}, h("summary", {}, "What the process printed last"), h("pre", { tabindex: "0" }, facts.stderr.join("\n")))
        : null,
      again));
  }

  #edit() {
    const area = h("textarea", { "aria-label": "Edit your message", rows: "2", maxlength: "200000" });
    const problem = h("div", { role: "alert" });
    const save = h("button", { class: "primary" }, "Send again");
    const form = h("form", { class: "edit-form" }, area,
      h("p", { class: "faint" }, "This answer, and what came after it, leaves the session."),
      h("div", { class: "buttons" }, save, h("button", { type: "button", class: "quiet", onclick: () => close() }, "Cancel")), problem);
    const close = () => {
      form.replaceWith(this.userBody);
      this.userTools.hidden = false;
      this.userBox.querySelector(".edit").focus();
    };
    area.value = this.message;
    this.userBody.replaceWith(form);
    this.userTools.hidden = true;
    area.style.height = `${Math.min(area.scrollHeight + 4, innerHeight * 0.5)}px`;
    area.focus();
    form.addEventListener("keydown", (event) => {
      if (event.key === "Escape") close();
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
        event.preventDefault();
        form.requestSubmit();
      }
    });
    form.addEventListener("submit", async (event) => {
      event.preventDefault();
      if (!area.value.trim() || save.disabled) return;
      save.disabled = true;
      const failed = await this.actions.edit(this, area.value);
      save.disabled = false;
      showProblem(problem, failed);
      if (!failed) close();
    });
  }
}

// --- what holds a turn -------------------------------------------------------------------------------------------

export const sealTone = (level) => (level >= 2 ? "good" : level === 1 ? "fair" : "weak");

const WORDS = {
  pid_namespace: "its own process ids", mount_namespace: "its own mounts", ipc_namespace: "its own shared memory",
  uts_namespace: "its own host name", network_namespace: "its own network", cgroup_namespace: "its own view of cgroups",
  proc: "its own /proc", private_root: "a root folder made for it", user_namespace: "by an unprivileged user namespace",
  tenant_uid: "a user of its own", no_capabilities: "no capabilities", no_new_privs: "can gain no rights", seccomp: "system calls filtered",
  landlock: "files by rule", cgroup_memory: "memory counted", cgroup_pids: "processes counted", rlimits: "limits for each process",
  subreaper: "no process gets away", cgroup_kill: "killed as a whole",
};

const worded = (names) => names.map((name) => WORDS[name] ?? name.replaceAll("_", " ")).join(", ");

export function sealSentence({ level }) {
  if (level >= 3) return "Sealed: its own files, processes, network, and a count of what it may use. Nothing else of this host is in reach.";
  if (level === 2) return "Sealed: its own files, processes and network. Nothing else of this host is in reach.";
  if (level === 1) return "Files by rule and system calls by filter. It shares the host's processes and network.";
  return "A process tree of its own that ends as a whole. It has the files and the network of the server's user.";
}

export function factList(rows) {
  return h("dl", { class: "facts" }, rows.flatMap(([name, value]) => [h("dt", {}, name), h("dd", {}, value)]));
}

export function sealFacts(seal, more = []) {
  return factList([
    ["Level", String(seal.level)],
    ["Held by", worded(seal.mechanisms) || "nothing but its own process"],
    ["Missing here", worded(seal.missing) || "nothing"],
    ...more.filter(([, value]) => value),
  ]);
}

const megabytes = (n) => `${(n / 1e6).toFixed(n < 1e7 ? 1 : 0)} MB`;

export function resourceRows(r) {
  return [
    ["Memory", r.memory_bytes !== undefined && r.memory_bytes !== null ? megabytes(r.memory_bytes) : null],
    ["Processor", typeof r.cpu_s === "number" ? span(r.cpu_s) : null],
    ["Processes", r.processes ? String(r.processes) : null],
  ].filter(([, value]) => value);
}

// --- parts -------------------------------------------------------------------------------------------------------

const PARTS = {
  text(part) {
    const rich = new RichText(() => part.text, "said");
    return { element: rich.element, update: () => rich.grown(), end: () => rich.end() };
  },

  reasoning(part) {
    const rich = new RichText(() => part.text);
    const label = h("span", {}, "Thinking");
    const element = h("details", { class: "reasoning" }, h("summary", {}, icon("chevron"), label), rich.element);
    let ended = false;
    element.addEventListener("toggle", () => {
      if (!element.open) return;
      rich.grown();
      if (ended) rich.end();
    });
    return {
      element,
      update: () => element.open && rich.grown(),
      end: () => {
        ended = true;
        label.textContent = "Reasoning";
        if (element.open) rich.end();
      },
    };
  },

  tool({ call }) {
    const mark = h("span", { class: "mark", "aria-hidden": "true" });
    const state = h("span", { class: "vh" });
    const preview = h("span", { class: "preview" });
    const time = h("span", { class: "time" });
    const facts = h("dl", { class: "facts" });
    const output = h("pre", { tabindex: "0", role: "group", "aria-label": "Result" });
    const label = h("p", { class: "tool-label" }, "Result");
    const element = h("details", { class: "tool" },
      h("summary", {}, mark, h("span", { class: "tool-name" }, call.name), preview, time, state, icon("chevron")),
      h("div", { class: "tool-body" }, facts, label, output));
    const update = () => {
      const word = !call.finished ? "running" : call.is_error ? "failed" : "finished";
      element.dataset.state = word;
      element.dataset.tid = call.tid;
      state.textContent = `, ${word}`;
      preview.textContent = call.preview || Object.values(call.args ?? {})[0] || "";
      time.textContent = typeof call.duration_s === "number" ? span(call.duration_s) : call.finished ? "" : "running";
      facts.replaceChildren(...Object.entries(call.args ?? {}).flatMap(([k, v]) => [h("dt", {}, k), h("dd", {}, v)]));
      label.textContent = call.is_error ? "Error" : "Result";
      output.textContent = call.snippet || (call.finished ? "(no output)" : "still running");
    };
    return { element, update };
  },

  // Here only what was asked and how it was answered; the buttons are in the dock, where nobody can miss them.
  approval(part) {
    const outcome = h("span", { class: "outcome" });
    const element = h("div", { class: "asked" }, h("span", {}, "Asked to run "), h("code", {}, part.ask.command), outcome);
    return {
      element,
      update() {
        element.dataset.choice = part.answer?.choice ?? "";
        outcome.textContent = part.answer ? approvalOutcome(part.answer) : "waiting for you";
      },
    };
  },

  clarify(part) {
    const outcome = h("span", { class: "outcome" });
    const element = h("div", { class: "asked" }, h("span", { class: "text" }, part.ask.question), outcome);
    const words = { user: (text) => `“${text}”`, timeout: () => "nobody answered", end: () => "the turn ended first" };
    return { element, update: () => (outcome.textContent = part.answer ? words[part.answer.by](part.answer.text) : "waiting for you") };
  },

  steer(part) {
    const element = h("div", { class: "steer" }, h("span", { class: "steer-by" }, "You, meanwhile"), h("div", { class: "text" }, part.text));
    return { element, update() {} };
  },

  note(part) {
    const words = h("span");
    const element = h("p", { class: `note ${part.tone}` }, part.tone === "warning" ? icon("warn") : null, words);
    return { element, update: () => (words.textContent = `${part.text}${part.hint ? ` ${part.hint}` : ""}`) };
  },
};

const ALLOWED = { once: "allowed once", session: "allowed for this session", always: "allowed always", deny: "denied" };

function approvalOutcome({ choice, by }) {
  const why = { user: "", timeout: ", nobody answered in time", end: ", the turn ended first" }[by];
  return ALLOWED[choice] + why;
}

// --- prompts in the dock -----------------------------------------------------------------------------------------

const CHOICES = {
  once: ["Allow once", "1"],
  session: ["For this session", "2"],
  always: ["Always", "3"],
  deny: ["Deny", "4"],
};
const ARMED_MS = 500; // a key that was meant for something else must not approve what has just appeared

export function approvalPrompt(ask, give) {
  const problem = h("div", { role: "alert" });
  const born = performance.now();
  const buttons = ask.choices.filter((c) => Object.hasOwn(CHOICES, c)).map((choice) => {
    const [label, key] = CHOICES[choice];
    const looks = choice === "deny" ? "danger" : choice === "once" ? "primary" : "";
    return h("button", { type: "button", class: looks, "data-choice": choice, "aria-keyshortcuts": key,
      onclick: () => answer(choice) }, label, h("kbd", { "aria-hidden": "true" }, key));
  });
  const name = `ask-${ask.approval_id}`;
  const command = h("pre", { tabindex: "0", role: "group", "aria-label": "Command" });
  growing(command)(ask.command);
  const element = h("div", { class: "prompt", role: "group", tabindex: "-1", "aria-labelledby": name, "data-ask": ask.approval_id },
    h("h2", { id: name }, "May the agent run this?"), command,
    ask.description ? h("p", { class: "faint" }, ask.description) : null,
    h("div", { class: "buttons" }, buttons),
    ask.expires_at ? h("p", { class: "faint until" }, `Without an answer it is denied at ${clockTime(ask.expires_at)}.`) : null, problem);

  async function answer(choice) {
    await once(buttons, problem, () => give(choice));
  }

  element.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey || event.repeat || performance.now() - born < ARMED_MS) return;
    const choice = Object.keys(CHOICES).find((c) => CHOICES[c][1] === event.key);
    if (choice && ask.choices.includes(choice)) {
      event.preventDefault();
      answer(choice);
    }
    const at = buttons.indexOf(document.activeElement);
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (at >= 0 && step) buttons[(at + step + buttons.length) % buttons.length].focus();
  });
  return element;
}

export function clarifyPrompt(ask, give) {
  const problem = h("div", { role: "alert" });
  const born = performance.now();
  const name = `ask-${ask.clarify_id}`;
  const input = h("input", { "aria-labelledby": name, autocomplete: "off", maxlength: "10000", placeholder: ask.choices.length ? "Or in your own words" : "Your answer" });
  const submit = h("button", { class: "primary" }, "Answer");
  const choices = ask.choices.map((text, i) => h("button", { type: "button", "aria-keyshortcuts": i < 9 ? String(i + 1) : null, onclick: () => answer(text) },
    text, i < 9 ? h("kbd", { "aria-hidden": "true" }, String(i + 1)) : null));
  const form = h("form", { class: "answer" }, input, submit);
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    if (input.value.trim()) answer(input.value);
    else input.focus();
  });

  async function answer(text) {
    await once([...choices, submit], problem, () => give(text));
  }

  const element = h("div", { class: "prompt", role: "group", tabindex: "-1", "aria-labelledby": name, "data-ask": ask.clarify_id },
    h("h2", { id: name, class: "text" }, ask.question),
    choices.length ? h("div", { class: "buttons" }, choices) : null, form,
    ask.expires_at ? h("p", { class: "faint until" }, `The agent waits until ${clockTime(ask.expires_at)}.`) : null, problem);
  element.addEventListener("keydown", (event) => {
    if (event.target === input || event.ctrlKey || event.altKey || event.metaKey || event.repeat || performance.now() - born < ARMED_MS) return;
    const chosen = /^[1-9]$/.test(event.key) && ask.choices[Number(event.key) - 1];
    if (!chosen) return;
    event.preventDefault();
    answer(chosen);
  });
  return element;
}

// The answer goes out once; a failure gives the buttons back and says why.
async function once(buttons, place, send) {
  if (buttons.some((b) => b.disabled)) return;
  for (const b of buttons) b.disabled = true;
  const problem = await send();
  if (!problem) return;
  for (const b of buttons) b.disabled = false;
  place.replaceChildren(h("p", { class: "problem" }, problem.detail, " ", problem.hint));
}
