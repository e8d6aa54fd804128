// The fold of events into what the page shows, without a browser.
import assert from "node:assert/strict";
import test from "node:test";
import { apply, describe, groupByTurn, newTurn, partsOf, textOf, verdict } from "../../src/hermetic/web/static/turn.js";

function played(...events) {
  const turn = newTurn("t");
  events.forEach(([name, data], i) => apply(turn, name, data, `t:${i + 1}`));
  return turn;
}

test("an event that comes twice changes nothing, nor does one of another turn", () => {
  const turn = played(["token", { text: "a" }], ["token", { text: "b" }]);
  assert.equal(apply(turn, "token", { text: "b" }, "t:2"), null);
  assert.equal(apply(turn, "token", { text: "x" }, "u:3"), null);
  assert.equal(apply(turn, "token", { text: "x" }, ""), null);
  assert.equal(textOf(turn.parts), "ab");
});

test("parts stand in the order in which they were said", () => {
  const turn = played(
    ["reasoning", { text: "hm" }], ["token", { text: "one" }], ["tool", { name: "ls", tid: "1", args: {} }],
    ["tool_complete", { name: "ls", tid: "1", snippet: "a b", duration_s: 1 }], ["token", { text: "two" }],
  );
  assert.deepEqual(turn.parts.map((p) => p.kind), ["reasoning", "text", "tool", "text"]);
  assert.equal(turn.parts[2].call.snippet, "a b");
  assert.equal(textOf(turn.parts), "one\n\ntwo");
});

test("a tool that completes without having begun still has its card", () => {
  const turn = played(["tool_complete", { name: "ls", tid: "9", snippet: "x", is_error: true }]);
  assert.deepEqual(turn.parts[0].call, { tid: "9", name: "ls", preview: "", args: {}, snippet: "x", is_error: true, duration_s: null, finished: true });
});

test("a turn waits until the last question is answered", () => {
  const turn = played(["approval", { approval_id: "a", command: "x" }], ["clarify", { clarify_id: "c", question: "?" }]);
  assert.equal(describe(turn, "open").tone, "wait");
  apply(turn, "approval_resolved", { approval_id: "a", choice: "deny", by: "user" }, "t:3");
  assert.equal(turn.state, "waiting");
  apply(turn, "clarify_resolved", { clarify_id: "c", text: "", by: "timeout" }, "t:4");
  assert.equal(turn.state, "running");
});

test("stopping lasts until the end, whatever is asked or answered meanwhile", () => {
  const turn = played(["approval", { approval_id: "a", command: "x" }], ["cancelling", { message: "", grace_s: 5 }],
    ["approval_resolved", { approval_id: "a", choice: "deny", by: "end" }], ["token", { text: "bye" }]);
  assert.match(describe(turn, "open").text, /Stopping/);
  apply(turn, "cancel", { turn_id: "t", message: "", state: "cancelled" }, "t:5");
  assert.equal(describe(turn, "open").text, "");
  assert.equal(turn.closed, false);
  apply(turn, "stream_end", { turn_id: "t", state: "cancelled" }, "t:6");
  assert.equal(turn.closed, true);
});

test("a reset throws away what was drawn and goes on behind its snapshot", () => {
  const turn = played(["token", { text: "old" }]);
  const snapshot = { turn_id: "t", state: "waiting", seq: 40, text: "new", reasoning: "", tool_calls: [], pending: [{ approval_id: "a", command: "x" }] };
  assert.deepEqual(apply(turn, "reset", { reason: "", snapshot }, "t:40"), { redraw: true });
  assert.equal(textOf(turn.parts), "new");
  assert.equal(turn.pending.size, 1);
  assert.equal(apply(turn, "token", { text: "x" }, "t:40"), null);
  assert.ok(apply(turn, "token", { text: "!" }, "t:41"));
});

test("an unknown event, also one named like a member of every object, changes nothing", () => {
  const turn = played(["constructor", {}], ["todo_state", {}]);
  assert.deepEqual(turn.parts, []);
  assert.equal(turn.seq, 2);
});

test("every state says something true", () => {
  const turn = newTurn("t");
  assert.match(describe(turn, "connecting").text, /Connecting/);
  apply(turn, "queued", { turn_id: "t", position: 3 }, "t:1");
  assert.match(describe(turn, "open").text, /number 3/);
  assert.match(describe(turn, "reconnecting").text, /reconnecting/);
  apply(turn, "draining", { retry_ms: 1 }, "t:1");
  assert.match(describe(turn, "reconnecting").text, /restarting/);
  for (const state of ["failed", "cancelled", "crashed", "timed_out", "over_limit", "lost"]) {
    assert.ok(verdict({ state, message: "m" }).title);
  }
  assert.equal(verdict({ state: "done" }), null);
  assert.equal(verdict({ state: "toString" }), null);
  assert.match(verdict({ state: "crashed", message: "", exit_code: 3 }).title, /exit code 3/);
});

test("stored messages become groups of turns and the same parts", () => {
  const call = { id: "c1", type: "function", function: { name: "read", arguments: '{"path": "a.txt"}' } };
  const messages = [
    { role: "system", content: "s" },
    { role: "user", content: "q", turn_id: "t1" },
    { role: "assistant", content: [{ type: "text", text: "A" }], tool_calls: [call], turn_id: "t1" },
    { role: "tool", tool_call_id: "c1", content: "out", turn_id: "t1" },
    { role: "assistant", content: "B", turn_id: "t1" },
    { role: "user", content: "again", turn_id: "t2" },
    { role: "assistant", content: "C", partial: true, turn_id: "t2" },
    { role: "user", content: "no turn" },
  ];
  const groups = groupByTurn(messages);
  assert.deepEqual(groups.map((g) => [g.key, g.user, g.answered]), [["t1", "q", true], ["t2", "again", false], ["#2", "no turn", false]]);
  const parts = partsOf(groups[0].messages);
  assert.deepEqual(parts.map((p) => p.kind), ["text", "tool", "text"]);
  assert.deepEqual([parts[1].call.args, parts[1].call.snippet], [{ path: "a.txt" }, "out"]);
});

test("a turn that is folded into one message shows its calls before its answer", () => {
  const message = { role: "assistant", content: "A", tool_calls: [{ id: "c", function: { name: "f", arguments: "{}" } }], tool_results: { c: "out" } };
  assert.deepEqual(partsOf([message]).map((p) => p.kind), ["tool", "text"]);
});

test("a tool call with bad JSON has no arguments", () => {
  const call = { id: "c", function: { name: "f", arguments: "{" } };
  assert.deepEqual(partsOf([{ role: "assistant", content: "", tool_calls: [call] }])[0].call.args, {});
});

test("what the seal denies is one line that counts on", () => {
  const denied = { method: "CONNECT", host: "example.org", port: 443, reason: "host_not_listed" };
  const turn = played(["egress_denied", { ...denied, total: 1 }], ["egress_denied", { ...denied, total: 7 }]);
  assert.equal(turn.parts.length, 1);
  assert.match(`${turn.parts[0].text} ${turn.parts[0].hint}`, /example\.org:443 \(host not listed\) 7 in this turn/);
  assert.equal(turn.denied, 7);
});

test("attached files are told apart from the words", () => {
  const [group] = groupByTurn([{ role: "user", content: "look\n\n[Attached files: a.txt, b.png]", attachments: ["a.txt", "b.png"], turn_id: "t" }]);
  assert.deepEqual([group.user, group.attachments], ["look", ["a.txt", "b.png"]]);
});
