// Files for the next message: chosen, dropped or pasted. They go into the session's workspace at once, so that what
// the message names is there when the agent looks; until they are there the message waits.

import { api } from "./api.js";
import { $, announce, bytes, h } from "./dom.js";
import { icon } from "./icons.js";

const FILES_MAX = 20; // of one message; the server's own limit

export class Attachments {
  // `session()` → the id of the session, begun when there is none yet. `changed()`: something to draw.
  constructor({ session, changed }) {
    this.session = session;
    this.changed = changed;
    this.items = []; // {file, name, state: "waiting" | "there" | "failed", problem, element}
    this.#listen();
  }

  get names() {
    return this.items.filter((item) => item.state === "there").map((item) => item.name);
  }

  get busy() {
    return this.items.some((item) => item.state === "waiting");
  }

  clear() {
    this.items = [];
    this.#draw();
  }

  restore(names) {
    this.items = names.map((name) => ({ name, state: "there" }));
    this.#draw();
  }

  async add(files) {
    const fresh = [...files].slice(0, FILES_MAX - this.items.length).map((file) => ({ file, name: file.name || "pasted.png", state: "waiting" }));
    if (fresh.length < files.length) announce(`At most ${FILES_MAX} files with one message.`, true);
    this.items.push(...fresh);
    this.#draw();
    for (const item of fresh) await this.#send(item);
  }

  async #send(item) {
    try {
      const sid = await this.session();
      const taken = new Set(this.names);
      const kept = await api.upload(sid, item.file, taken.has(item.name) ? numbered(item.name, taken) : item.name);
      item.name = kept.filename;
      item.state = "there";
      announce(`${item.name} is attached.`);
    } catch (problem) {
      item.state = "failed";
      item.problem = problem;
      announce(`${item.name}: ${problem.detail}`, true);
    }
    this.#draw();
  }

  #remove(item) {
    this.items = this.items.filter((other) => other !== item);
    this.#draw();
    $("message").focus();
  }

  #draw() {
    $("files").hidden = this.items.length === 0;
    $("files").replaceChildren(...this.items.map((item) => {
      const state = { waiting: "uploading…", there: item.file ? bytes(item.file.size) : "", failed: item.problem?.detail ?? "failed" }[item.state];
      return h("li", { class: `chip ${item.state}`, title: item.problem?.hint ?? null }, icon(item.state === "failed" ? "warn" : "file"), h("span", { class: "chip-name" }, item.name),
        h("span", { class: "chip-state" }, state),
        item.state === "failed" && item.file ? h("button", { type: "button", class: "quiet small", "aria-label": `Try ${item.name} again`, onclick: () => { item.state = "waiting"; this.#draw(); this.#send(item); } }, icon("retry")) : null,
        h("button", { type: "button", class: "quiet small", "aria-label": `Take ${item.name} away`, onclick: () => this.#remove(item) }, icon("close")));
    }));
    this.changed();
  }

  #listen() {
    $("attach").addEventListener("click", () => $("file").click());
    $("file").addEventListener("change", () => {
      this.add($("file").files);
      $("file").value = "";
    });
    $("message").addEventListener("paste", (event) => {
      if (!event.clipboardData?.files.length) return;
      event.preventDefault();
      this.add(event.clipboardData.files);
    });
    const hasFiles = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
    let depth = 0;
    const over = (shown) => ($("drop").hidden = !shown);
    window.addEventListener("dragenter", (event) => {
      if (hasFiles(event) && !$("composer").hidden) over(++depth > 0);
    });
    window.addEventListener("dragleave", (event) => hasFiles(event) && over((depth = Math.max(0, depth - 1)) > 0));
    window.addEventListener("dragover", (event) => hasFiles(event) && event.preventDefault());
    window.addEventListener("drop", (event) => {
      if (!hasFiles(event)) return;
      event.preventDefault();
      over((depth = 0) > 0);
      this.add(event.dataTransfer.files);
    });
  }
}

function numbered(name, taken) {
  const dot = name.lastIndexOf(".") > 0 ? name.lastIndexOf(".") : name.length;
  for (let n = 2; ; n++) {
    const other = `${name.slice(0, dot)}-${n}${name.slice(dot)}`;
    if (!taken.has(other)) return other;
  }
}
