// One turn's events, followed until its end. By fetch, not EventSource: a browser hands an EventSource's burst of events
// over in one task (a reconnect may bring thousands, which freeze the page), hides the heartbeats by which a dead network
// is told from a silent agent, and gives up for good on some answers. Whatever cuts a stream, the next one begins after
// the last event that was folded, so nothing is lost; what comes twice is dropped by the fold (turn.js).

import { api, problemOf } from "./api.js";
import { createParser } from "./vendor/eventsource/parse.js";

const RETRY_MS = [1000, 2000, 4000, 8000, 15_000];
const SILENT_BEATS = 3;
const SLICE_MS = 8; // of a burst of events; then the page draws and hears its user
const PIECE_CHARS = 8000; // some 80 events between two looks at the clock

let heartbeatMs = 10_000; // until the server has said its own

export function setHeartbeat(seconds) {
  heartbeatMs = seconds * 1000;
}

// `onEvent(name, data, id)` → true when the stream is at its end. `onLink(state)`: connecting, open, reconnecting.
// `lastSeq()`: where to go on. `onClosed(problem)`: nothing more will come; problem null when the turn has ended.
export function follow(turnId, { onEvent, onLink, onClosed, lastSeq }) {
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

  // One connection. → whether the turn is at its end; throws when the connection is cut or is none.
  async function read() {
    let ended = false;
    const parser = createParser({ onEvent: ({ id = "", event, data }) => (ended ||= !closed && onEvent(event, JSON.parse(data), id) === true) });
    const response = await fetch(api.eventsUrl(turnId, lastSeq()), { signal: abort.signal, headers: { Accept: "text/event-stream" }, cache: "no-store" });
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
        if (await read()) {
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
