// A turn as this page knows it: a fold over its events (protocol/events.py). No DOM and no network here, so that it is
// tested without a browser. What a turn said is a list of parts in the order in which it was said; stored messages
// become the same parts, so one view draws both.

export const ENDED = new Set(["done", "failed", "cancelled", "crashed", "timed_out", "over_limit", "lost"]);

export function newTurn(turnId) {
  return {
    turnId,
    seq: 0, // the newest event seen; an event at or below it came twice
    state: "queued",
    position: null,
    started: null, // the `started` event
    parts: [],
    pending: new Map(), // approval_id or clarify_id → part
    usage: null,
    title: null,
    leftover: "",
    end: null, // {state, message, hint, stderr, …}: the terminal event
    closed: false, // `stream_end` has come
    denied: 0, // what the seal has refused it
    stopAsked: false, // this page asked; `cancelling` is the server's word for it
    draining: false,
  };
}

// → {part?, redraw?}: which part changed, or that everything did; null for an event that was seen before.
export function apply(turn, name, data, eventId) {
  if (name === "draining") {
    turn.draining = true;
    return {};
  }
  if (name === "reset") return reset(turn, data.snapshot);
  const colon = eventId.lastIndexOf(":");
  const seq = Number(eventId.slice(colon + 1));
  if (eventId.slice(0, colon) !== turn.turnId || !(seq > turn.seq)) return null;
  turn.seq = seq;
  turn.draining = false;
  const step = Object.hasOwn(STEPS, name) ? STEPS[name] : () => ({});
  return step(turn, data) ?? {};
}

const STEPS = {
  queued(turn, { position }) {
    turn.state = "queued";
    turn.position = position;
  },
  started(turn, event) {
    turn.started = event;
    turn.state = "running";
    turn.position = null;
  },
  token: (turn, { text }) => say(turn, "text", text),
  reasoning: (turn, { text }) => say(turn, "reasoning", text),
  interim_assistant(turn, { text, already_streamed = true }) {
    if (!already_streamed) add(turn, { kind: "text", text });
    const last = turn.parts.at(-1);
    if (last?.kind === "text") last.whole = true; // what follows is another message
    return { part: last };
  },
  tool(turn, { name, preview = "", args = {}, tid = "" }) {
    return add(turn, { kind: "tool", call: { tid, name, preview, args, finished: false } });
  },
  tool_complete(turn, { name, tid = "", snippet = "", is_error = false, duration_s = null }) {
    const part = turn.parts.findLast(
      (p) => p.kind === "tool" && (tid ? p.call.tid === tid : p.call.name === name && !p.call.finished),
    );
    const call = { snippet, is_error, duration_s, finished: true };
    if (!part) return add(turn, { kind: "tool", call: { tid, name, preview: "", args: {}, ...call } });
    Object.assign(part.call, call);
    return { part };
  },
  approval: (turn, ask) => wait(turn, ask.approval_id, { kind: "approval", ask, answer: null }),
  clarify: (turn, ask) => wait(turn, ask.clarify_id, { kind: "clarify", ask, answer: null }),
  approval_resolved: (turn, answer) => resolve(turn, answer.approval_id, answer),
  clarify_resolved: (turn, answer) => resolve(turn, answer.clarify_id, answer),
  steer: (turn, { text }) => add(turn, { kind: "steer", text }),
  metering(turn, { usage }) {
    turn.usage = usage;
  },
  title(turn, { title }) {
    turn.title = title;
  },
  compressing: (turn, { message }) => note(turn, message),
  compressed: (turn, { message }) => note(turn, message),
  warning: (turn, { message, hint = "" }) => note(turn, message, hint, "warning"),
  pending_steer_leftover(turn, { text }) {
    turn.leftover = text;
    return note(turn, `The agent ended before it read: “${text}”`, "It is in the message box; send it again.");
  },
  egress_denied(turn, { method, host, port, reason, total = 1 }) {
    turn.denied = total;
    const what = `${method} ${host}:${port}`;
    const last = turn.parts.at(-1);
    if (last?.kind === "note" && last.denied) {
      last.text = `Denied: ${what} (${reason.replaceAll("_", " ")})`;
      last.hint = total > 1 ? `${total} in this turn.` : "";
      return { part: last };
    }
    const { part } = note(turn, `Denied: ${what} (${reason.replaceAll("_", " ")})`, total > 1 ? `${total} in this turn.` : "", "warning");
    part.denied = true;
    return { part };
  },
  cancelling(turn) {
    turn.state = "cancelling";
  },
  done: finish,
  apperror: finish,
  cancel: finish,
  stream_end(turn, { state }) {
    turn.state = state;
    turn.closed = true;
  },
};

export const EVENT_NAMES = [...Object.keys(STEPS), "reset", "draining"];

function add(turn, part) {
  turn.parts.push(part);
  return { part };
}

function say(turn, kind, text) {
  const last = turn.parts.at(-1);
  if (last?.kind !== kind || last.whole) return add(turn, { kind, text });
  last.text += text;
  return { part: last };
}

function note(turn, text, hint = "", tone = "note") {
  return add(turn, { kind: "note", tone, text, hint });
}

function wait(turn, id, part) {
  turn.pending.set(id, part);
  if (turn.state !== "cancelling") turn.state = "waiting";
  return add(turn, part);
}

function resolve(turn, id, answer) {
  const part = turn.pending.get(id);
  if (!part) return {};
  part.answer = answer;
  turn.pending.delete(id);
  if (turn.state === "waiting" && turn.pending.size === 0) turn.state = "running";
  return { part };
}

function finish(turn, event) {
  turn.end = event;
  turn.state = event.state;
  turn.pending.clear();
  if (event.usage) turn.usage = event.usage;
}

// The cursor was not one of this turn's: what was drawn is thrown away and the snapshot stands in its place.
function reset(turn, snapshot) {
  const { text = "", reasoning = "", tool_calls = [], pending = [] } = snapshot;
  Object.assign(turn, { seq: snapshot.seq, state: snapshot.state, title: snapshot.title ?? null, parts: [], end: null });
  if (snapshot.usage) turn.usage = snapshot.usage;
  turn.pending.clear();
  if (reasoning) add(turn, { kind: "reasoning", text: reasoning });
  for (const call of tool_calls) add(turn, { kind: "tool", call: { ...call } });
  if (text) add(turn, { kind: "text", text });
  for (const ask of pending) {
    const approval = ask.approval_id !== undefined;
    wait(turn, approval ? ask.approval_id : ask.clarify_id, { kind: approval ? "approval" : "clarify", ask, answer: null });
  }
  turn.state = snapshot.state;
  return { redraw: true };
}

// What the composer's status line says. `link` is the stream's own state: connecting, open, reconnecting.
export function describe(turn, link) {
  if (ENDED.has(turn.state)) return { tone: "idle", text: "" };
  if (turn.draining) return { tone: "trouble", text: "The server is restarting. Reconnecting as soon as it is back…" };
  if (link === "reconnecting") return { tone: "trouble", text: "Connection lost, reconnecting… The agent goes on meanwhile." };
  if (link === "connecting") return { tone: "busy", text: "Connecting…" };
  if (turn.state === "cancelling" || turn.stopAsked) return { tone: "busy", text: "Stopping… What was said so far is kept." };
  if (turn.state === "waiting") return { tone: "wait", text: "Waiting for you." };
  if (turn.state === "queued") {
    const { position } = turn;
    if (!position) return { tone: "busy", text: "Starting…" };
    return { tone: "busy", text: position === 1 ? "Queued: next to start." : `Queued: number ${position} in line.` };
  }
  if (turn.state === "starting") return { tone: "busy", text: "Starting…" };
  return { tone: "busy", text: turn.state === "ending" ? "Finishing…" : "Running" };
}

const VERDICTS = {
  failed: ["The agent failed", ""],
  cancelled: ["Stopped", "What was said so far is kept."],
  crashed: ["The agent's process crashed", "What it said so far is kept, and no other turn is affected."],
  timed_out: ["The turn ran out of time", "What it said so far is kept. Ask for less at once, or let the host raise turns.wall_s."],
  over_limit: ["The turn said more than the host allows", "What it said so far is kept."],
  lost: ["The server stopped while this turn ran", "What it said so far is kept."],
};

// → {state, title, message, hint, stderr} for a turn that did not simply finish, else null.
export function verdict(end) {
  if (!end || !Object.hasOwn(VERDICTS, end.state)) return null;
  const [title, hint] = VERDICTS[end.state];
  const message = end.message ?? "";
  const how = end.signal ? ` (${end.signal})` : end.exit_code ? ` (exit code ${end.exit_code})` : "";
  const said = end.state === "crashed" ? "" : message; // the title says it already
  return { state: end.state, title: title + how, message: said, hint: end.state === "crashed" ? hint : end.hint || hint, stderr: end.stderr ?? [] };
}

export function textOf(parts) {
  return parts.filter((p) => p.kind === "text").map((p) => p.text.trim()).filter(Boolean).join("\n\n");
}

// --- stored messages ---------------------------------------------------------------------------------------------

export function contentText(content) {
  if (typeof content === "string") return content;
  if (!Array.isArray(content)) return "";
  return content.map((p) => (typeof p === "string" ? p : typeof p?.text === "string" ? p.text : "")).join(" ").trim();
}

// Messages, oldest first → groups of one turn each: {key, turnId, user, attachments, messages, partial, answered}.
export function groupByTurn(messages) {
  const groups = [];
  for (const message of messages) {
    if (message.role === "system") continue;
    const turnId = message.turn_id ?? null;
    let group = groups.at(-1);
    const another = !group || (turnId ? group.turnId !== turnId : message.role === "user" || group.turnId !== null);
    if (another) groups.push((group = { key: turnId ?? `#${groups.length}`, turnId, user: null, attachments: [], messages: [] }));
    if (message.role === "user" && group.user === null) {
      group.attachments = Array.isArray(message.attachments) ? message.attachments.map((a) => (typeof a === "string" ? a : a?.name ?? "file")) : [];
      group.user = group.attachments.length ? contentText(message.content).split("\n\n[Attached files:")[0] : contentText(message.content);
    } else group.messages.push(message);
  }
  for (const group of groups) {
    group.partial = group.messages.some((m) => m.partial);
    group.answered = group.messages.length > 0 && !group.partial;
  }
  return groups;
}

function shortened(value) {
  const text = typeof value === "string" ? value : JSON.stringify(value) ?? "";
  return text.length > 120 ? `${text.slice(0, 120)}...` : text;
}

function callArgs(text) {
  try {
    const args = typeof text === "string" ? JSON.parse(text) : text;
    if (args === null || typeof args !== "object") return {};
    return Object.fromEntries(Object.entries(args).slice(0, 6).map(([k, v]) => [k, shortened(v)]));
  } catch {
    return {}; // bad JSON from a model is no arguments
  }
}

export function partsOf(messages) {
  const parts = [];
  const calls = new Map();
  for (const message of messages) {
    if (message.role === "tool") {
      const call = calls.get(message.tool_call_id);
      if (call && call.snippet === undefined) call.snippet = contentText(message.content).slice(0, 200);
      continue;
    }
    if (message.role === "user") {
      parts.push({ kind: "steer", text: contentText(message.content) });
      continue;
    }
    if (message.reasoning) parts.push({ kind: "reasoning", text: String(message.reasoning) });
    const text = contentText(message.content);
    // A message with its own `tool_results` is a whole turn folded into one: its answer follows its calls.
    const folded = message.tool_results !== undefined;
    if (text && !folded) parts.push({ kind: "text", text });
    for (const stored of message.tool_calls ?? []) {
      const tid = stored.id ?? stored.call_id ?? "";
      const made = stored.function ?? stored;
      const snippet = message.tool_results?.[tid];
      const call = { tid, name: made.name ?? "tool", preview: "", args: callArgs(made.arguments ?? {}), snippet, finished: true };
      calls.set(tid, call);
      parts.push({ kind: "tool", call });
    }
    if (text && folded) parts.push({ kind: "text", text });
  }
  return parts;
}
