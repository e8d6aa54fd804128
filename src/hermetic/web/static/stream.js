// One turn's events over EventSource. The browser reconnects by itself with Last-Event-ID; an event that comes twice
// is dropped by the fold (turn.js). EventSource gives up for good on 204 and on any other answer than a stream: then
// the turn itself is asked, and only one that still runs is followed again, each time after a longer wait.

import { api } from "./api.js";
import { EVENT_NAMES } from "./turn.js";

const RETRY_MS = [1000, 2000, 4000, 8000, 15_000];

// `onEvent(name, data, id)` → true when the stream is at its end. `onLink(state)`: connecting, open, reconnecting.
// `lastSeq()`: where to go on. `onClosed(problem)`: nothing more will come; problem null when the turn has ended.
export function follow(turnId, { onEvent, onLink, onClosed, lastSeq }) {
  let source = null;
  let timer = 0;
  let failures = 0;
  let closed = false;

  function close() {
    closed = true;
    clearTimeout(timer);
    source?.close();
  }

  function end(problem) {
    close();
    onClosed(problem);
  }

  function open() {
    source = new EventSource(api.eventsUrl(turnId, lastSeq()));
    source.onopen = () => {
      failures = 0;
      onLink("open");
    };
    source.onerror = () => {
      if (closed) return;
      onLink("reconnecting");
      if (source.readyState === EventSource.CLOSED) askTurn();
    };
    for (const name of EVENT_NAMES) {
      source.addEventListener(name, (event) => {
        if (!closed && onEvent(name, JSON.parse(event.data), event.lastEventId)) end(null);
      });
    }
  }

  async function askTurn() {
    try {
      const turn = await api.turn(turnId);
      if (closed) return;
      if (turn.ended && turn.last_seq <= lastSeq()) return end(null);
    } catch (problem) {
      if (closed) return;
      if (problem.status === 404 || problem.status === 403) return end(problem);
    }
    timer = setTimeout(open, RETRY_MS[Math.min(failures++, RETRY_MS.length - 1)]);
  }

  onLink("connecting");
  open();
  return { close };
}
