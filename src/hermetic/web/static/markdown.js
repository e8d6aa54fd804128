// Markdown that grows. Of a text that streams only the last block is open; whatever stands before it can never change
// again, so it is drawn once. A block is closed when a whole line of another one follows it. No DOM here.
//
// A block may be as long as the whole answer (a listing of 5,000 lines, say), and drawing it again for each token would
// take ever longer. So the lexer sees a window at a time, and a block that is longer is cut into pieces: each piece is a
// block of the same kind, and `joins` says that its content belongs into the one before.

import { Lexer, Parser, Renderer } from "./vendor/marked.js";

const WINDOW = 3000; // characters that are drawn at once: some 10 ms of a slow machine
const INLINE_TAGS = /^<\/?(br|sub|sup|kbd|mark|b|i|u|s|em|strong)\s*\/?>$/i; // models write these for want of Markdown

const escaped = (text) => text.replace(/[&<>"']/g, (c) => `&#${c.charCodeAt(0)};`);

class HouseRenderer extends Renderer {
  html({ text }) {
    return INLINE_TAGS.test(text.trim()) ? text : escaped(text); // all other markup of an answer is text
  }
  checkbox({ checked }) {
    return checked ? "☑ " : "☐ ";
  }
  heading({ tokens, depth }) {
    const level = Math.min(depth + 2, 6); // the page's own headings are h1 and h2
    return `<h${level}>${this.parser.parseInline(tokens)}</h${level}>\n`;
  }
  image({ href, text }) {
    return `<a href="${escaped(href)}">${escaped(text || href)}</a>`; // an image would be a request to another host
  }
}

const OPTIONS = { gfm: true, breaks: true, renderer: new HouseRenderer() };

export const htmlOf = (token) => Parser.parse([token], OPTIONS);

function lex(source, links) {
  const lexer = new Lexer(OPTIONS);
  lexer.tokens.links = links;
  const tokens = lexer.lex(source);
  // The lexer's account of its source must be exact, or a cut would lose text. Where it is not, the block is text.
  if (tokens.map((t) => t.raw).join("") !== source) {
    return [{ type: "paragraph", raw: source, text: source, tokens: [{ type: "text", raw: source, text: source }] }];
  }
  return tokens;
}

export class MarkdownStream {
  #text = "";
  #from = 0; // everything before is in closed blocks
  #seen = 0; // up to here every whole line has been looked at
  #prefix = ""; // what a piece needs in front of it to be of its block's kind: a fence, a table's head
  #joins = false;
  #links = {};
  #drawn = false; // something is closed
  late = false; // a link's target was defined after a block that may have used it: draw all of it again at the end

  push(fresh) {
    this.#text += fresh.replaceAll("\r", "");
  }

  // The next window. → blocks that are closed now, the one that is open (or null), and whether there is more to see.
  // A block is {token, joins, goesOn}: the last says that a piece follows. `final`: nothing will be pushed any more, so the open one is closed as well.
  read(final = false) {
    const closed = [];
    const left = this.#text.slice(this.#from);
    let seen = left.length > WINDOW ? left.slice(0, left.lastIndexOf("\n", WINDOW) + 1 || WINDOW) : left;
    const more = seen.length < left.length;
    if (!more && !final) seen = left.slice(0, left.lastIndexOf("\n") + 1); // half a line may become anything
    if (!more && !final && this.#from + seen.length === this.#seen) return { closed, open: this.#open(), more };
    this.#seen = this.#from + seen.length;
    const tokens = seen ? lex(this.#prefix + seen, this.#links) : [];
    let last = tokens.length - 1;
    while (last >= 0 && tokens[last].type === "space") last--;
    if (final && !more) last = tokens.length;
    const whole = tokens.slice(0, Math.max(last, 0));
    for (const token of whole) this.#close(token, closed);
    if (more && last === 0) this.#cut(tokens[0], seen, closed);
    const open = final && !more ? null : this.#open();
    return { closed, open: more ? null : open, more };
  }

  #close(token, closed) {
    this.#from += token.raw.length - this.#prefix.length;
    this.#prefix = "";
    if (token.type === "def") this.late ||= this.#drawn;
    else if (token.type !== "space") closed.push({ token, joins: this.#joins });
    if (token.type !== "space") this.#joins = false;
    this.#drawn = true;
  }

  // One block fills the window: a piece of it is closed, the rest goes on as a block of the same kind.
  #cut(token, seen, closed) {
    const piece = (t, length, prefix) => {
      closed.push({ token: t, joins: this.#joins, goesOn: true });
      this.#from += length;
      this.#prefix = prefix;
      this.#joins = true;
    };
    if (token.type === "list" && token.items.length > 1) {
      const items = token.items.slice(0, -1);
      const length = items.reduce((n, item) => n + item.raw.length, 0);
      const raw = seen.slice(0, length);
      if (token.raw.startsWith(raw)) return piece({ ...token, raw, items }, length, "");
    }
    if (token.type === "table") {
      const head = this.#prefix || token.raw.split("\n", 2).join("\n") + "\n";
      return piece(token, seen.length, head);
    }
    const fence = token.type === "code" && /^ {0,3}(?:`{3,}|~{3,})[^\n]*\n/.exec(token.raw);
    if (fence) return piece({ ...token, text: token.raw.slice(fence[0].length) }, seen.length, fence[0]);
    piece(token.type === "code" ? { ...token, text: `${token.text}\n` } : token, seen.length, "");
  }

  #open() {
    const tail = this.#text.slice(this.#from);
    if (!tail.trim()) return null;
    const tokens = lex(this.#prefix + mended(tail, this.#prefix), { ...this.#links });
    return tokens.filter((t) => t.type !== "space" && t.type !== "def").map((token, i) => ({ token, joins: i === 0 && this.#joins }));
  }
}

// Half a line, so that it is drawn as what it most likely becomes: a mark that is still open is closed, and what could
// be the begin of another block is held back until it is one.
export function mended(tail, prefix = "") {
  if (/^ {0,3}(`{3,}|~{3,})/.test(prefix + tail)) return tail;
  const at = tail.lastIndexOf("\n") + 1;
  let line = tail.slice(at);
  if (/^\s{0,3}(?:[-=*_+#>`~|]{1,3}|\d{1,9}[.)]?)\s*$|^ {0,3}(?:`{3,}|~{3,})/.test(line)) return tail.slice(0, at);
  line = line.replace(/!?\[[^\]\n]*\]\([^)\n]*$/, (link) => link.slice(link.indexOf("[") + 1, link.indexOf("]")));
  if ((line.match(/`/g) ?? []).length % 2) return `${tail.slice(0, at)}${line.replace(/`$/, "")}${/`$/.test(line) ? "" : "`"}`;
  if ((line.match(/\*\*/g) ?? []).length % 2) line = /\*\*$/.test(line) ? line.slice(0, -2) : `${line.replace(/\*$/, "")}**`;
  return tail.slice(0, at) + line;
}
