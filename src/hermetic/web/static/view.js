// One turn on the page: what the user said, the agent's parts in order, how it ended. Parts only grow or change in
// place, so each keeps its element and a token costs one append to one text node.

import { clockTime, copyText, h } from "./dom.js";
import { textOf, verdict } from "./turn.js";

const BLOCK_CHARS = 4000; // a text node is laid out as a whole at every append: a long answer is cut at line ends

export class TurnBlock {
  // `announce(text)` tells a screen reader.
  constructor(user, announce) {
    this.announce = announce;
    this.drawn = new Map(); // part → its small view {element, update()}
    this.partsBox = h("div", { class: "parts" });
    this.meta = h("div", { class: "meta" });
    this.endBox = h("div");
    this.usage = h("span", { class: "usage" });
    this.copy = h("button", { type: "button", class: "quiet copy", hidden: true, onclick: () => this.#copy() }, "Copy");
    this.parts = [];
    this.userText = h("div", { class: "text" });
    this.userBox = h("div", { class: "user" }, h("h2", { class: "vh" }, "You"), this.userText);
    this.setUser(user);
    this.element = h("article", { class: "turn" }, this.userBox,
      h("div", { class: "reply" }, h("h2", { class: "vh" }, "Agent"), this.meta, this.partsBox, this.endBox,
        h("footer", {}, this.copy, this.usage)));
  }

  setUser(text) {
    this.userText.textContent = text ?? "";
    this.userBox.hidden = text === null;
  }

  text() {
    return textOf(this.parts);
  }

  draw(parts) {
    this.drawn.clear();
    this.partsBox.replaceChildren();
    this.parts = parts;
    for (const part of parts) this.update(part);
  }

  update(part) {
    let view = this.drawn.get(part);
    if (!view) {
      view = PARTS[part.kind](part);
      this.drawn.set(part, view);
      this.partsBox.append(view.element);
    }
    view.update();
    if (part.kind === "text") this.copy.hidden = false;
  }

  showStarted({ agent, pid, seal, workspace }) {
    this.meta.replaceChildren(h("details", {},
      h("summary", {}, `${agent} · seal ${seal.level} · process ${pid}`),
      sealFacts(seal, [["Workspace", workspace]])));
  }

  showUsage(usage) {
    if (!usage || !(usage.input_tokens || usage.output_tokens)) return;
    const cost = usage.estimated_cost ? ` · $${usage.estimated_cost.toFixed(4)}` : "";
    this.usage.textContent = `${usage.input_tokens} in · ${usage.output_tokens} out${cost}`;
  }

  showEnd(end) {
    const facts = verdict(end);
    if (!facts) return this.endBox.replaceChildren();
    this.endBox.replaceChildren(h("div", { class: `verdict ${facts.state}` },
      h("p", { class: "verdict-title" }, facts.title),
      facts.message ? h("p", { class: "text" }, facts.message) : null,
      facts.hint ? h("p", { class: "hint" }, facts.hint) : null,
      facts.stderr.length
        ? h("details", {}, h("summary", {}, "What the process printed last"), h("pre", { tabindex: "0" }, facts.stderr.join("\n")))
        : null));
  }

  async #copy() {
    try {
      await copyText(this.text());
      this.copy.textContent = "Copied";
      this.announce("Copied");
    } catch {
      this.copy.textContent = "The browser refused";
    }
    setTimeout(() => (this.copy.textContent = "Copy"), 2000);
  }
}

export function sealFacts(seal, more = []) {
  const rows = [
    ["Level", String(seal.level)],
    ["Held by", seal.mechanisms.join(", ") || "nothing but its own process"],
    ["Missing here", seal.missing.join(", ") || "nothing"],
    ...more,
  ];
  return h("dl", { class: "facts" }, rows.flatMap(([name, value]) => [h("dt", {}, name), h("dd", {}, value)]));
}

// Text that grows: the drawn length tells what is new. Line ends are drawn when something follows them, so that a part
// never ends in empty lines.
function growing(part, box) {
  let node = null;
  let drawn = 0;
  return () => {
    if (!node && !box.firstChild) while (part.text[drawn] === "\n") drawn++; // models begin with empty lines after a tool
    let upTo = part.text.length;
    while (upTo > drawn && part.text[upTo - 1] === "\n") upTo--;
    let fresh = part.text.slice(drawn, upTo);
    drawn = upTo;
    while (fresh) {
      if (!node) box.append(h("div", {}, (node = document.createTextNode(""))));
      const room = BLOCK_CHARS - node.length;
      const cut = fresh.length > room ? fresh.indexOf("\n", Math.max(room, 0)) + 1 : 0;
      node.appendData(cut ? fresh.slice(0, cut) : fresh);
      fresh = cut ? fresh.slice(cut) : "";
      if (cut) node = null;
    }
  };
}

const PARTS = {
  text(part) {
    const element = h("div", { class: "text said" });
    return { element, update: growing(part, element) };
  },

  reasoning(part) {
    const body = h("div", { class: "text" });
    const element = h("details", { class: "reasoning" }, h("summary", {}, "Reasoning"), body);
    const grow = growing(part, body);
    element.addEventListener("toggle", () => element.open && grow());
    return { element, update: () => element.open && grow() };
  },

  tool({ call }) {
    const mark = h("span", { class: "mark", "aria-hidden": "true" });
    const state = h("span", { class: "vh" });
    const preview = h("span", { class: "preview" });
    const time = h("span", { class: "time" });
    const facts = h("dl", { class: "facts" });
    const output = h("pre", { tabindex: "0", "aria-label": "Result" });
    const element = h("details", { class: "tool" },
      h("summary", {}, mark, h("span", { class: "tool-name" }, call.name), preview, time, state), facts, output);
    const update = () => {
      const word = !call.finished ? "running" : call.is_error ? "failed" : "finished";
      element.dataset.state = word;
      element.dataset.tid = call.tid;
      state.textContent = `, ${word}`;
      preview.textContent = call.preview || Object.values(call.args ?? {})[0] || "";
      time.textContent = typeof call.duration_s === "number" ? seconds(call.duration_s) : "";
      facts.replaceChildren(...Object.entries(call.args ?? {}).flatMap(([k, v]) => [h("dt", {}, k), h("dd", {}, v)]));
      output.textContent = call.snippet || (call.finished ? "(no output)" : "still running");
    };
    return { element, update };
  },

  // Here only what was asked and how it was answered; the buttons are in the dock, where nobody can miss them.
  approval(part) {
    const outcome = h("span", { class: "outcome" });
    const element = h("div", { class: "asked" }, "Asked to run ", h("code", {}, part.ask.command), outcome);
    return { element, update: () => (outcome.textContent = part.answer ? ` · ${approvalOutcome(part.answer)}` : " · waiting") };
  },

  clarify(part) {
    const outcome = h("span", { class: "outcome" });
    const element = h("div", { class: "asked" }, h("span", { class: "text" }, part.ask.question), outcome);
    const words = { user: (text) => `“${text}”`, timeout: () => "nobody answered", end: () => "the turn ended first" };
    return { element, update: () => (outcome.textContent = part.answer ? ` · ${words[part.answer.by](part.answer.text)}` : " · waiting") };
  },

  steer(part) {
    const element = h("div", { class: "steer" }, h("span", { class: "steer-by" }, "You, meanwhile"), h("div", { class: "text" }, part.text));
    return { element, update() {} };
  },

  note(part) {
    const element = h("p", { class: `note ${part.tone}` }, part.text, part.hint ? ` ${part.hint}` : "");
    return { element, update() {} };
  },
};

function seconds(s) {
  return s < 0.1 ? `${Math.round(s * 1000)} ms` : s < 60 ? `${s.toFixed(1)} s` : `${Math.floor(s / 60)} min ${Math.round(s % 60)} s`;
}

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
    return h("button", { type: "button", class: choice === "deny" ? "danger" : "", "data-choice": choice, "aria-keyshortcuts": key,
      onclick: () => answer(choice) }, label, h("kbd", { "aria-hidden": "true" }, key));
  });
  const name = `ask-${ask.approval_id}`;
  const until = ask.expires_at ? ` Without an answer it is denied at ${clockTime(ask.expires_at)}.` : "";
  const element = h("div", { class: "prompt", role: "group", tabindex: "-1", "aria-labelledby": name, "data-ask": ask.approval_id },
    h("h2", { id: name }, "May the agent run this?"),
    h("pre", { tabindex: "0", "aria-label": "Command" }, ask.command),
    h("p", { class: "faint" }, `${ask.description}${until}`.trim()),
    h("div", { class: "buttons" }, buttons), problem);

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
  const name = `ask-${ask.clarify_id}`;
  const input = h("input", { "aria-labelledby": name, autocomplete: "off", maxlength: "10000" });
  const submit = h("button", { class: "primary" }, "Answer");
  const choices = ask.choices.map((text) => h("button", { type: "button", onclick: () => answer(text) }, text));
  const form = h("form", { class: "answer" }, input, submit);
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    if (input.value.trim()) answer(input.value);
    else input.focus();
  });

  async function answer(text) {
    await once([...choices, submit], problem, () => give(text));
  }

  return h("div", { class: "prompt", role: "group", tabindex: "-1", "aria-labelledby": name, "data-ask": ask.clarify_id },
    h("h2", { id: name, class: "text" }, ask.question),
    choices.length ? h("div", { class: "buttons" }, choices) : null, form, problem);
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
