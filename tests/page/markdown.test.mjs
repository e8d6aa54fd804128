// Markdown that grows, without a browser: however a text is cut into tokens, the blocks are those of the whole text.
import assert from "node:assert/strict";
import test from "node:test";
import { MarkdownStream, htmlOf, mended } from "../../src/hermetic/web/static/markdown.js";

const SAMPLES = [
  "# Title\n\npara one **bold** and\nmore\n\n- a\n- b\n\n  more of b\n- c\n\n1. x\n2. y\n   - z\n\nend",
  "```js\nlet a = 1;\n\n- not a list\n```\nafter\n~~~\nunclosed\n",
  "| a | b |\n|---|---|\n| 1 | 2 |\n\ntext | not a table\n\n> quote\nlazy\n\n> > nested\n",
  "Setext\n===\n\nnot\n---\n\n***\n\n    indented\n\n    code\n\npara\n#hash\n# head\n",
  "a <b>x</b> <script>alert(1)</script> <!-- c --> ![i](http://x/y.png) <div>\n\nblock\n</div>\n",
  "- [ ] open\n- [x] done\n\nA [link](https://example.org) and `code` and https://example.org/x\n",
];

function blocks(text, size) {
  const stream = new MarkdownStream();
  const closed = [];
  const take = (final) => {
    let read;
    do {
      read = stream.read(final);
      closed.push(...read.closed);
    } while (read.more);
  };
  for (let at = 0; at < text.length; at += size) {
    stream.push(text.slice(at, at + size));
    take(false);
  }
  take(true);
  return closed;
}

const html = (closed) => closed.map(({ token }) => htmlOf(token)).join("");

for (const [i, sample] of SAMPLES.entries()) {
  test(`sample ${i} is the same in pieces of any size`, () => {
    const whole = html(blocks(sample, sample.length));
    for (const size of [1, 2, 3, 5, 8, 13]) assert.equal(html(blocks(sample, size)), whole, `in pieces of ${size}`);
  });
}

test("a closed block stays as it is: nothing is drawn twice", () => {
  for (const sample of SAMPLES) {
    const seen = blocks(sample, 1).map(({ token }) => token.raw).join("");
    assert.equal(seen.replace(/\s+/g, ""), sample.replace(/\s+/g, ""));
  }
});

test("an answer's own markup is text, but for a few plain tags", () => {
  const out = html(blocks(SAMPLES[4], 4));
  assert.doesNotMatch(out, /<script|<div|<img|<!--/);
  assert.match(out, /<b>x<\/b>/);
  assert.match(out, /<a href="http:&#47;&#47;x|<a href="http:\/\/x/);
});

const LONG = {
  list: (n) => `- item ${n}`, table: (n) => (n ? `| ${n} | x |` : "| a | b |\n|--|--|"), code: (n) => (n ? `x = ${n}` : "```py"),
  blockquote: (n) => `> line ${n}`, paragraph: (n) => `line ${n} of many`,
};

for (const [kind, line] of Object.entries(LONG)) {
  test(`a very long ${kind} is cut into pieces of the same kind, and no line is lost`, () => {
    const text = `${Array.from({ length: 3000 }, (_, n) => line(n)).join("\n")}\n`;
    const closed = blocks(text, 700);
    assert.ok(closed.length > 1);
    assert.deepEqual([...new Set(closed.map((b) => b.token.type))], [kind]);
    assert.deepEqual(closed.map((b) => b.joins), closed.map((_, i) => i > 0));
    const numbers = closed.flatMap(({ token }) => (token.type === "code" ? token.text : htmlOf(token).replace(/<[^>]+>/g, " ")).match(/\d+/g));
    assert.deepEqual(numbers.map(Number), Array.from({ length: 3000 }, (_, n) => n).slice(kind === "table" || kind === "code" ? 1 : 0));
  });
}

test("code keeps every blank and every empty line over its pieces", () => {
  const body = Array.from({ length: 900 }, (_, n) => (n % 7 ? `    x  =  ${n}` : "")).join("\n");
  for (const size of [100, 5000, 100_000]) {
    assert.equal(blocks(`\`\`\`\n${body}\n\`\`\`\n`, size).map(({ token }) => token.text).join(""), body);
  }
});

test("half a line is drawn as what it is about to be", () => {
  assert.equal(mended("a **bo"), "a **bo**");
  assert.equal(mended("a **"), "a ");
  assert.equal(mended("a `co"), "a `co`");
  assert.equal(mended("see [the page](https://exa"), "see the page");
  assert.equal(mended("text\n-"), "text\n");
  assert.equal(mended("text\n``"), "text\n");
  assert.equal(mended("```js\nlet **x"), "```js\nlet **x");
});
