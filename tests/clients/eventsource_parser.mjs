// The parser alone, under a loop over fetch as its users write it.
import { createParser } from "eventsource-parser";
import { follow, say, url } from "./said.mjs";

await follow(
  async (response, move) => {
    const parser = createParser({
      onEvent: (event) => {
        say(event.id ?? null, event.event ?? "message", event.data);
        if (event.id) move(event.id);
      },
      onError: (error) => {
        throw error;
      },
    });
    const decoder = new TextDecoder();
    for await (const bytes of response.body) parser.feed(decoder.decode(bytes, { stream: true }));
  },
  (cursor) => [url, cursor ? { headers: { "Last-Event-ID": cursor } } : {}],
);
