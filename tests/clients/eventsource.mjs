// EventSource as browsers have it: it reconnects by itself, and only a 204 stops it.
import { EventSource } from "eventsource";
import { names, say, url } from "./said.mjs";

const source = new EventSource(url);
for (const name of names) source.addEventListener(name, (event) => say(event.lastEventId, event.type, event.data));
source.addEventListener("message", (event) => say(event.lastEventId, event.type, event.data));
source.addEventListener("error", (error) => {
  if (source.readyState === EventSource.CLOSED && error.code !== 204) throw new Error(`${error.code} ${error.message}`);
});
