// The HTTP API (protocol/api.py). Every failure is a Problem with a sentence for a person and a hint what to do.

const ANSWER_MS = 30_000; // the slowest answer is a durable write on a busy disk; longer than this is no answer
const UPLOAD_MS = 600_000; // 20 MiB over a slow line

export class Problem extends Error {
  constructor({ status = 0, detail, hint = "", code = "", turn_id = null }) {
    super(detail);
    Object.assign(this, { status, detail, hint, code, turnId: turn_id });
  }
}

// Of a login by cookie: only this page can read the other cookie, so only it can send what is in it.
function csrf() {
  const found = /(?:^|; )hermetic_csrf=([^;]+)/.exec(document.cookie);
  return found ? { "X-CSRF-Token": found[1] } : {};
}

export async function call(method, path, body, headers = {}) {
  const form = body instanceof FormData;
  const init = { method, headers: { Accept: "application/json", ...csrf(), ...headers }, signal: AbortSignal.timeout(form ? UPLOAD_MS : ANSWER_MS) };
  if (form) init.body = body;
  else if (body !== undefined) {
    init.body = JSON.stringify(body);
    init.headers["Content-Type"] = "application/json";
  }
  let response;
  let text;
  try {
    response = await fetch(path, init);
    text = response.ok ? await response.text() : "";
  } catch {
    throw new Problem({
      code: "unreachable",
      detail: "The server does not answer.",
      hint: "Check that it runs and that you are online. What you typed is kept.",
    });
  }
  if (response.status === 401) location.assign("login"); // the draft is kept, and the way back is the same address
  if (!response.ok) throw await problemOf(response);
  try {
    return text ? JSON.parse(text) : null;
  } catch {
    return null;
  }
}

// What a failed answer says of itself (RFC 9457), as far as it does.
export async function problemOf(response) {
  const answer = await response.json().catch(() => ({}));
  return new Problem({
    detail: `The server answered ${response.status} ${response.statusText}.`,
    hint: "Something between this page and Hermetic may have answered in its place.",
    ...answer,
    status: response.status,
  });
}

const id = encodeURIComponent;

export const api = {
  health: () => call("GET", "v1/health"),
  options: () => call("GET", "v1/options"),
  sessions({ q = "", before = null, archived = false, limit = 50 } = {}) {
    const query = new URLSearchParams({ limit });
    if (q) query.set("q", q);
    if (before !== null) query.set("before", before);
    if (archived) query.set("archived", "true");
    return call("GET", `v1/sessions?${query}`);
  },
  newSession: (body) => call("POST", "v1/sessions", body),
  session: (sid) => call("GET", `v1/sessions/${id(sid)}`),
  changeSession: (sid, body) => call("PATCH", `v1/sessions/${id(sid)}`, body),
  deleteSession: (sid) => call("DELETE", `v1/sessions/${id(sid)}`),
  // For a page that is being closed: the browser sends it without the page.
  deleteSessionOnLeaving: (sid) => fetch(`v1/sessions/${id(sid)}`, { method: "DELETE", keepalive: true, headers: csrf() }),
  turns: (sid) => call("GET", `v1/sessions/${id(sid)}/turns`),
  newTurn: (sid, message, key, attachments = []) =>
    call("POST", `v1/sessions/${id(sid)}/turns`, { message, attachments }, { "Idempotency-Key": key }),
  forget: (sid, tid) => call("POST", `v1/sessions/${id(sid)}/forget`, { turn_id: tid }),
  exportUrl: (sid, format) => `v1/sessions/${id(sid)}/export?format=${format}`,
  hostTurns: (limit = 50) => call("GET", `v1/turns?limit=${limit}`),
  me: () => call("GET", "v1/me"),
  logOut: () => call("POST", "v1/logout"),
  drain: () => call("POST", "v1/drain"),
  upload(sid, file, name) {
    const form = new FormData();
    form.set("session_id", sid);
    form.set("file", file, name);
    return call("POST", "api/upload", form);
  },
  turn: (tid) => call("GET", `v1/turns/${id(tid)}`),
  cancel: (tid) => call("POST", `v1/turns/${id(tid)}/cancel`),
  approve: (tid, aid, choice) => call("POST", `v1/turns/${id(tid)}/approvals/${id(aid)}`, { choice }),
  answer: (tid, cid, text) => call("POST", `v1/turns/${id(tid)}/clarifications/${id(cid)}`, { text }),
  steer: (tid, message) => call("POST", `v1/turns/${id(tid)}/messages`, { message }),
  allEventsUrl: (after) => `v1/events${after ? `?after=${id(after)}` : ""}`,
  eventsUrl: (tid, after) => `v1/turns/${id(tid)}/events?after=${after}`,
};
