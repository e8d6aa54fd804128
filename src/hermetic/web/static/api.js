// The HTTP API (protocol/api.py). Every failure is a Problem with a sentence for a person and a hint what to do.

const ANSWER_MS = 30_000; // the slowest answer is a durable write on a busy disk; longer than this is no answer

export class Problem extends Error {
  constructor({ status = 0, detail, hint = "", code = "", turn_id = null }) {
    super(detail);
    Object.assign(this, { status, detail, hint, code, turnId: turn_id });
  }
}

export async function call(method, path, body, headers = {}) {
  const init = { method, headers: { Accept: "application/json", ...headers }, signal: AbortSignal.timeout(ANSWER_MS) };
  if (body !== undefined) {
    init.body = JSON.stringify(body);
    init.headers["Content-Type"] = "application/json";
  }
  let response;
  let text;
  try {
    response = await fetch(path, init);
    text = await response.text();
  } catch {
    throw new Problem({
      code: "unreachable",
      detail: "The server does not answer.",
      hint: "Check that it runs and that you are online. What you typed is kept.",
    });
  }
  let answer = null;
  try {
    answer = text ? JSON.parse(text) : null;
  } catch {
    answer = null;
  }
  if (response.ok) return answer;
  throw new Problem({
    detail: `The server answered ${response.status} ${response.statusText}.`,
    hint: "Something between this page and Hermetic may have answered in its place.",
    ...(answer ?? {}),
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
  newTurn: (sid, message, key) =>
    call("POST", `v1/sessions/${id(sid)}/turns`, { message }, { "Idempotency-Key": key }),
  turn: (tid) => call("GET", `v1/turns/${id(tid)}`),
  cancel: (tid) => call("POST", `v1/turns/${id(tid)}/cancel`),
  approve: (tid, aid, choice) => call("POST", `v1/turns/${id(tid)}/approvals/${id(aid)}`, { choice }),
  answer: (tid, cid, text) => call("POST", `v1/turns/${id(tid)}/clarifications/${id(cid)}`, { text }),
  steer: (tid, message) => call("POST", `v1/turns/${id(tid)}/messages`, { message }),
  eventsUrl: (tid, after) => `v1/turns/${id(tid)}/events?after=${after}`,
};
