// The transport of AG-UI's HttpAgent. It gives out neither ids nor names: the reader counts, for a turn has no holes.
import { parseSSEStream, runHttpRequest } from "@ag-ui/client";
import { follow, say, url } from "./said.mjs";

// When a connection breaks it cancels the broken body once more, and nobody catches what that throws.
process.on("unhandledRejection", (error) => {
  if (!(error instanceof TypeError && error.message === "terminated")) throw error;
});

let seen = 0;
await follow(
  (response) =>
    new Promise((resolve, reject) =>
      parseSSEStream(runHttpRequest(() => Promise.resolve(response))).subscribe({
        next: (event) => {
          seen += 1;
          say(null, null, JSON.stringify(event));
        },
        error: reject,
        complete: resolve,
      }),
    ),
  () => [`${url}?after=${seen}`],
);
