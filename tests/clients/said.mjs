// What the scripts of this folder share: the stream's URL, the events' names, and one line of JSON for each event met.
import { writeSync } from "node:fs";

export const url = process.argv[2];
export const names = process.argv[3].split(",");

export function say(id, event, data) {
  const line = Buffer.from(JSON.stringify([id, event, data]) + "\n");
  for (let at = 0; at < line.length; ) {
    try {
      at += writeSync(1, line, at);
    } catch (error) {
      if (error.code !== "EAGAIN") throw error; // the pipe is full
    }
  }
}

// For parsers that do not connect: `read(response, move)` until the server says 204; `move` says where the reader is.
export async function follow(read, request) {
  for (let cursor = null, tries = 0; tries < 50; tries++) {
    try {
      const response = await fetch(...request(cursor));
      if (response.status === 204) return;
      if (!response.ok) throw new Error(`HTTP ${response.status}`, { cause: "refused" });
      await read(response, (to) => (cursor = to));
    } catch (error) {
      if (!(error instanceof TypeError)) throw error; // a TypeError is how fetch reports a broken connection
    }
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
  throw new Error("no 204 after 50 connections");
}
