// It reconnects by itself after a broken connection. It knows no 204, so that its user has to.
import { EventStreamContentType, fetchEventSource } from "@microsoft/fetch-event-source";
import { say, url } from "./said.mjs";

globalThis.window = globalThis;
globalThis.document = { hidden: false, addEventListener() {}, removeEventListener() {} };

class Ended extends Error {}

await fetchEventSource(url, {
  openWhenHidden: true,
  async onopen(response) {
    if (response.status === 204) throw new Ended();
    if (!response.ok) throw new Ended(`HTTP ${response.status}`);
    if (!response.headers.get("content-type")?.startsWith(EventStreamContentType)) throw new Ended("not a stream");
  },
  onmessage: (event) => say(event.id, event.event || "message", event.data),
  onerror(error) {
    if (error instanceof Ended) throw error;
  },
}).catch((error) => {
  if (!(error instanceof Ended) || error.message) throw error;
});
