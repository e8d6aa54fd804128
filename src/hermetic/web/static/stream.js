// Events, whatever happens to the connection. By fetch, not EventSource: a browser hands an EventSource's burst of events
// over in one task (a reconnect may bring thousands, which freeze the page), hides the heartbeats by which a dead network
// is told from a silent agent, and gives up for good on some answers.
//
// One stream carries all turns of the caller, so that a tab needs one connection however many run. A turn that is opened
// is read up to now from its own stream; from then on it takes its events from the common one, each only when it is the
// next. One that is not the next says that something was missed, and the turn is read from its own stream again, after the
// last event that was folded. So nothing is lost and nothing comes twice, whatever was cut.

import { api, problemOf } from "./api.js";
import { createParser } from "./vendor/eventsource/parse.js";

const RETRY_MS = [1000, 2000, 4000, 8000, 15_000];
const SILENT_BEATS = 3;
const SLICE_MS = 8; // of a burst of events; then the page draws and hears its user
const PIECE_CHARS = 8000; // some 80 events between two looks at the clock
const QUIET_MS = 2000; // a turn's own stream has said all that there is by then, and the common one goes on

let heartbeatMs = 10_000; // until the server has said its own

export function setHeartbeat(seconds) {
  heartbeatMs = seconds * 1000;
}

// Reads `url()` again and again until `onEvent(name, data, id)` says true, the server says 204, or refuses. → {close}
// `onLink(state)`: connecting, open, reconnecting. `onClosed(problem)`: nothing more will come, null when all has come.
function read(url, { onEvent, onLink, onClosed }) {
  let closed = false;
  let abort = null;
  let wake = () => {};
  let heardAt = 0;
  let failures = 0;
  const watch = setInterval(() => abort && Date.now() - heardAt > SILENT_BEATS * heartbeatMs && abort.abort(), 1000);
  const offline = () => abort?.abort();
  const online = () => wake();

  function close() {
    closed = true;
    clearInterval(watch);
    window.removeEventListener("offline", offline);
    window.removeEventListener("online", online);
    abort?.abort();
    wake();
  }

  // One connection. → whether all has come; throws when the connection is cut or is none.
  async function once() {
    let ended = false;
    const parser = createParser({ onEvent: ({ id = "", event, data }) => (ended ||= !closed && onEvent(event, JSON.parse(data), id) === true) });
    const response = await fetch(url(), { signal: abort.signal, headers: { Accept: "text/event-stream" }, cache: "no-store" });
    if (response.status === 204) return true;
    if (!response.ok) throw await problemOf(response);
    failures = 0;
    onLink("open");
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    for (let until = 0; ; ) {
      const { value, done } = await reader.read();
      if (done) return ended;
      heardAt = Date.now();
      for (let at = 0; at < value.length && !closed; at += PIECE_CHARS) {
        if (performance.now() > until) {
          await nextTask();
          until = performance.now() + SLICE_MS;
        }
        parser.feed(value.slice(at, at + PIECE_CHARS));
        if (ended) return true;
      }
    }
  }

  async function run() {
    onLink("connecting");
    while (!closed) {
      abort = new AbortController();
      heardAt = Date.now();
      try {
        if (await once()) {
          if (closed) return;
          close();
          return onClosed(null);
        }
      } catch (problem) {
        if (closed) return;
        if ([401, 403, 404].includes(problem.status)) {
          close();
          return onClosed(problem);
        }
        if (problem instanceof SyntaxError) throw problem; // not JSON: a bug, and no network's fault
      }
      if (closed) return;
      abort = null;
      onLink("reconnecting");
      const pause = RETRY_MS[Math.min(failures++, RETRY_MS.length - 1)] * (0.75 + Math.random() / 2); // not all pages at once
      await new Promise((resolve) => {
        wake = resolve;
        setTimeout(resolve, pause);
      });
    }
  }

  window.addEventListener("offline", offline);
  window.addEventListener("online", online);
  run();
  return { close };
}

// A port, not a timer: timers of a tab behind are slowed to one a second.
function nextTask() {
  return new Promise((resolve) => {
    const { port1, port2 } = new MessageChannel();
    port1.onmessage = () => (port1.close(), resolve());
    port2.postMessage(0);
  });
}

// --- all turns ---

const followers = new Map(); // turn id → its follower, of turns that are shown and have not ended
let cursor = "";
let common = "connecting";

// From now on. `onTurn(sessionId, turnId, name, data)`: of every event of every turn; `snapshot` for one that runs already.
export function followAll(onTurn) {
  read(() => api.allEventsUrl(cursor), {
    onLink(state) {
      common = state;
      for (const follower of followers.values()) follower.link();
    },
    onEvent(name, data, id) {
      if (id) cursor = id;
      if (name === "reset") {
        for (const { session_id: sid, snapshot } of data.turns) onTurn(sid, snapshot.turn_id, "snapshot", snapshot);
        for (const follower of followers.values()) follower.missed();
      } else if (data.turn_id !== undefined) {
        const { turn_id: turnId, session_id: sid, seq, data: event } = data;
        followers.get(turnId)?.take(name, event, seq);
        onTurn(sid, turnId, name, event);
      } else if (name === "draining") {
        for (const follower of followers.values()) follower.take(name, data, null);
      }
    },
    onClosed: () => (common = "closed"), // refused: each turn is read from its own stream
  });
}

// --- one turn ---

// `onEvent(name, data, id)` → true when the stream is at its end. `onLink(state)`: connecting, open, reconnecting.
// `lastSeq()`: where to go on. `onClosed(problem)`: nothing more will come; problem null when the turn has ended.
export function follow(turnId, { onEvent, onLink, onClosed, lastSeq }) {
  let own = null; // the turn's own stream, while it is needed
  let reading = false;
  let ownLink = "connecting";
  let quiet = 0;
  let ended = false;

  const follower = {
    link() {
      if (!ended) onLink(reading ? ownLink : common === "open" ? "open" : "reconnecting");
    },
    take(name, data, seq) {
      if (ended || (seq !== null && seq <= lastSeq())) return;
      if (seq !== null && seq !== lastSeq() + 1) return follower.missed();
      const all = onEvent(name, data, `${turnId}:${seq ?? lastSeq()}`);
      if (all) return end(null);
      leaveOwn(); // the common stream has caught up with it
    },
    missed() {
      if (!reading && !ended) readOwn();
    },
  };

  function leaveOwn() {
    clearTimeout(quiet);
    if (!reading || common !== "open") return;
    own.close();
    reading = false;
    follower.link();
  }

  function readOwn() {
    reading = true;
    ownLink = "connecting";
    own = read(() => api.eventsUrl(turnId, lastSeq()), {
      onEvent(name, data, id) {
        clearTimeout(quiet);
        quiet = setTimeout(leaveOwn, QUIET_MS);
        return onEvent(name, data, id);
      },
      onLink(state) {
        ownLink = state;
        follower.link();
      },
      onClosed: end,
    });
  }

  function close() {
    ended = true;
    clearTimeout(quiet);
    own?.close();
    if (followers.get(turnId) === follower) followers.delete(turnId);
  }

  function end(problem) {
    close();
    onClosed(problem);
  }

  followers.set(turnId, follower);
  readOwn();
  return { close };
}
