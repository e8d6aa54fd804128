// An answer's Markdown as elements. Markup comes from marked alone, passes DOMPurify and only then reaches the page.

import { h, copyButton, growing } from "./dom.js";
import { icon } from "./icons.js";
import { MarkdownStream, htmlOf } from "./markdown.js";
import DOMPurify from "./vendor/dompurify.js";
import hljs from "./vendor/highlight/core.js";

const COLOURED_CHARS = 12_000; // longer code takes the highlighter longer than a frame or two
const FRAME_MS = 8; // of drawing in one frame; what is left waits for the next
const REST = 2; // a frame that took t ms is followed by t × REST ms for everything else

const CLEAN = {
  ALLOWED_TAGS: ("p br hr h3 h4 h5 h6 strong em b i u s del mark sub sup kbd code pre blockquote ul ol li table thead tbody tr th td a").split(" "),
  ALLOWED_ATTR: ["href", "title", "align", "start"],
  ALLOW_DATA_ATTR: false,
  ALLOW_ARIA_ATTR: false,
  RETURN_DOM_FRAGMENT: true,
};
const COLOURS = { ALLOWED_TAGS: ["span"], ALLOWED_ATTR: ["class"], RETURN_DOM_FRAGMENT: true };

DOMPurify.addHook("afterSanitizeAttributes", (node) => {
  if (node.tagName !== "A") return;
  if (!/^(https?:|mailto:)/i.test(node.getAttribute("href") ?? "")) return node.removeAttribute("href"); // a path is no link here
  node.setAttribute("target", "_blank");
  node.setAttribute("rel", "noopener noreferrer nofollow");
});

// --- code ---

const ALIASES = {
  js: "javascript", mjs: "javascript", jsx: "javascript", ts: "typescript", tsx: "typescript", py: "python", sh: "bash",
  shell: "bash", zsh: "bash", console: "bash", yml: "yaml", html: "xml", svg: "xml", toml: "ini", rs: "rust", md: "markdown",
  "c++": "cpp", h: "c", hpp: "cpp", golang: "go", cs: "csharp", "c#": "csharp", ps1: "powershell", rb: "ruby", kt: "kotlin",
  docker: "dockerfile", make: "makefile", patch: "diff", jsonc: "json", pl: "perl", postgresql: "sql",
};
const LANGUAGES = new Set(("bash c cpp csharp css diff dockerfile go ini java javascript json kotlin lua makefile markdown nginx perl " +
  "php powershell python ruby rust scala sql swift typescript xml yaml").split(" "));

let colouring = Promise.resolve();

async function colour(code, name) {
  const text = code.textContent;
  const language = ALIASES[name] ?? name;
  if (!LANGUAGES.has(language) || text.length > COLOURED_CHARS) return;
  await (colouring = colouring.then(() => new Promise((resolve) => setTimeout(resolve)))); // one block a task
  try {
    if (!hljs.getLanguage(language)) {
      const { default: grammar } = await import(`./vendor/highlight/languages/${language}.js`);
      hljs.registerLanguage(language, grammar);
    }
  } catch {
    return; // offline: plain code is code, too
  }
  if (code.textContent === text) code.replaceChildren(DOMPurify.sanitize(hljs.highlight(text, { language, ignoreIllegals: true }).value, COLOURS));
}

function codeBlock(token) {
  const language = (token.lang ?? "").trim().split(/\s+/)[0].toLowerCase().slice(0, 30);
  const code = h("code");
  const copy = copyButton(() => code.textContent.replace(/\n$/, ""), "Copy this code", icon("copy"));
  const element = h("div", { class: "code" }, h("div", { class: "code-head" }, h("span", {}, language || "text"), copy),
    h("pre", { tabindex: "0", role: "group", "aria-label": language ? `Code, ${language}` : "Code" }, code));
  let grow = growing(code);
  let drawn = "";
  return {
    element,
    set(text) {
      if (!text.startsWith(drawn)) {
        code.replaceChildren();
        grow = growing(code);
        drawn = "";
      }
      grow(text.slice(drawn.length));
      drawn = text;
    },
    close: () => colour(code, language),
  };
}

// --- a text that grows ---

export class RichText {
  #stream = new MarkdownStream();
  #open = []; // elements of the open block; drawn anew
  #code = null; // the open code block, which only grows
  #lastCode = null; // the closed one before, for its next piece
  #ended = false;
  #redone = false;
  #depth = 0; // of the last heading
  #read = 0; // how much of the text is in the stream

  // `text()`: all of it so far. It is looked at when there is something to draw, not for every token: to cut a string
  // that grows at its end costs its whole length.
  constructor(text, className = "") {
    this.text = text;
    this.element = h("div", { class: `prose ${className}`.trim() });
  }

  grown() {
    schedule(this);
  }

  // No more text will come.
  end() {
    if (this.#ended) return;
    this.#ended = true;
    schedule(this);
  }

  // One window's worth. → whether there is more to draw.
  draw() {
    const text = this.text();
    if (this.#read === 0) while (text[this.#read] === "\n") this.#read++; // models begin with empty lines after a tool
    if (text.length > this.#read) this.#stream.push(text.slice(this.#read));
    this.#read = text.length;
    const { closed, open, more } = this.#stream.read(this.#ended);
    for (const old of this.#open.splice(0)) old.remove();
    const blocks = [...closed.map((block) => ({ ...block, closed: true })), ...(open ?? [])];
    if (blocks.length && blocks[0].token.type !== "code") this.#dropCode();
    for (const [i, block] of blocks.entries()) {
      if (block.token.type === "code") this.#drawCode(block, i === 0);
      else this.#drawBlock(block);
    }
    if (!more && this.#ended && this.#stream.late && !this.#redone) this.#again();
    return more;
  }

  #drawBlock({ token, joins, closed }) {
    if (token.type === "heading") {
      token = { ...token, depth: Math.min(token.depth, this.#depth + 1) }; // no level is skipped
      if (closed) this.#depth = token.depth;
    }
    const fragment = DOMPurify.sanitize(htmlOf(token), CLEAN);
    const room = joins && this.#room(token);
    let fresh = [...fragment.children];
    if (room) fresh = token.type === "table" ? [...fragment.querySelectorAll("tbody > tr")] : [...fragment.firstElementChild.children];
    else if (joins) for (const element of fresh) element.classList.add("goes-on");
    if (!room) fresh = fresh.map((element) => (element.tagName === "TABLE" ? h("div", { class: "table", tabindex: "0", role: "group", "aria-label": "Table" }, element) : element));
    (room || this.element).append(...fresh);
    if (!closed) this.#open.push(...fresh);
  }

  // Where a piece's content belongs: into the block before, when that is of the same kind.
  #room({ type }) {
    const last = this.element.lastElementChild;
    if (type === "list" && /^[OU]L$/.test(last?.tagName)) return last;
    if (type === "blockquote" && last?.tagName === "BLOCKQUOTE") return last;
    if (type === "table") return last?.querySelector?.(":scope > table > tbody");
    return null;
  }

  // The open code block is the one that is not drawn anew: it only grows.
  #drawCode({ token, joins, goesOn, closed }, first) {
    let current = first ? this.#code : null;
    if (!current && joins && this.#lastCode) current = this.#lastCode;
    if (!current) {
      current = { block: codeBlock(token), base: "" };
      this.element.append(current.block.element);
    }
    const text = current.base + token.text;
    current.block.set(text);
    this.#code = null;
    if (closed) {
      this.#lastCode = { block: current.block, base: text };
      if (!goesOn) current.block.close();
    } else if (first) this.#code = current;
    else this.#open.push(current.block.element);
  }

  // What looked like code was the begin of something else.
  #dropCode() {
    if (this.#code && !this.#code.base) this.#code.block.element.remove();
    this.#code = null;
  }

  // A link's target stood behind its use: the whole text again, now that all targets are known.
  #again() {
    const stream = new MarkdownStream();
    for (const [, name, target] of this.text().matchAll(/^ {0,3}(\[[^\]\n]+\]):[ \t]*(\S.*)$/gm)) stream.push(`${name}: ${target}\n`);
    stream.push("\n");
    stream.read(true);
    stream.push(this.text());
    this.#stream = stream;
    this.#redone = true;
    this.#lastCode = this.#code = null;
    this.element.replaceChildren();
    schedule(this);
  }
}

// --- drawing, a little in every frame ---

const waiting = new Set();
let frame = 0;
let restUntil = 0;
const afterDrawing = new Set();

export const onDrawn = (listener) => afterDrawing.add(listener);

function schedule(text) {
  waiting.add(text);
  frame ||= requestAnimationFrame(paint);
}

function paint() {
  frame = 0;
  const begun = performance.now();
  if (begun >= restUntil) {
    for (const text of waiting) {
      while (performance.now() - begun < FRAME_MS) {
        if (text.draw()) continue;
        waiting.delete(text);
        break;
      }
      if (performance.now() - begun >= FRAME_MS) break;
    }
    for (const listener of afterDrawing) listener();
    const took = performance.now() - begun;
    restUntil = took > FRAME_MS ? performance.now() + took * REST : 0;
  }
  if (waiting.size) frame ||= requestAnimationFrame(paint);
}
