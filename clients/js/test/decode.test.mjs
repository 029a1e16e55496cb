// Event data: every value of jsonb, what JavaScript cannot represent, and data that the application parses.
import assert from "node:assert/strict";
import { test } from "node:test";

import { decodeAnswer, decodeMessage, Unparsed } from "../dist/decode.js";

const event = (data, id = 7) => `{"type":"event","id":${id},"event":"x","at":"","data":${data}}`;
const answer = (...events) => `{"events":[${events}],"cursor":9,"epoch":"e"}`;
const HUGE = `1${"0".repeat(5000)}`;

function depthOf(value) {
  let levels = 0;
  for (; Array.isArray(value); value = value[0]) levels += 1;
  return levels;
}

test("ordinary data is what JSON.parse makes of it", () => {
  const data = '{"__proto__":1,"a":[1.5,"\\"}]"],"n":9007199254740993}';
  assert.deepEqual(decodeMessage(event(data), null), JSON.parse(event(data)));
  assert.deepEqual(decodeAnswer(answer(event(data)), null), JSON.parse(answer(event(data))));
});

test("deep data arrives", () => {
  const deep = "[".repeat(6000) + "]".repeat(6000);
  assert.equal(depthOf(decodeMessage(event(deep), null).data), 6000);
  assert.equal(depthOf(decodeMessage(event(deep), JSON.parse).data), 6000);
});

test("the application parses the text of the data", () => {
  const exact = (text) => JSON.parse(text.replace(/:\s*([0-9]{16,})/g, ':"$1"'));
  assert.equal(decodeMessage(event('{"id": 3458764526536546761}'), exact).data.id, "3458764526536546761");
  const text = ' {"a":"}\\\\", "b":[1,{}]} ';
  assert.equal(decodeMessage(event(text), (given) => given).data, text.trim());
  const events = decodeAnswer(answer(event("[1, [2]]"), event('"a,\\"b"', 8), event("1", 9)), (given) => given).events;
  assert.deepEqual(
    events.map(({ id, data }) => [id, data]),
    [
      [7, "[1, [2]]"],
      [8, '"a,\\"b"'],
      [9, "1"],
    ],
  );
});

test("a number that JavaScript cannot represent is reported, by every transport", () => {
  for (const text of [HUGE, `-${HUGE}`, `{"a":[${HUGE}.5]}`]) {
    const found = decodeMessage(event(text), null);
    assert.ok(found.data instanceof Unparsed);
    assert.equal(found.data.text, text);
    assert.ok(found.data.error instanceof RangeError);
    const { events, cursor, epoch } = decodeAnswer(answer(event(text), event("2", 8)), null);
    assert.ok(events[0].data instanceof Unparsed);
    assert.deepEqual([events[0].id, events[1].data, cursor, epoch], [7, 2, 9, "e"]);
  }
});

test("many digits that can be represented are no fault", () => {
  for (const text of [JSON.stringify("1".repeat(400)), `0.${"0".repeat(400)}1`, `{"${"1".repeat(400)}":1}`]) {
    assert.deepEqual(decodeMessage(event(text), null), JSON.parse(event(text)));
  }
});

test("what the application's function throws is reported", () => {
  for (const thrown of [new TypeError("no"), "no"]) {
    const { data } = decodeMessage(event("[1]"), () => {
      throw thrown;
    });
    assert.equal(data.text, "[1]");
    assert.equal(data.error.message, "no");
  }
});

test("what this engine cannot parse for its depth is reported", () => {
  const { parse } = JSON;
  JSON.parse = (text, ...more) => {
    if (text.includes("[[[")) throw new RangeError("too deep");
    return parse(text, ...more);
  };
  try {
    const found = decodeMessage(event("[[[1]]]"), null);
    assert.deepEqual([found.id, found.data.text, found.data.error.message], [7, "[[[1]]]", "too deep"]);
    const { events } = decodeAnswer(answer(event("[[[1]]]"), event("2", 8)), null);
    assert.deepEqual([events[0].data.text, events[1].data], ["[[[1]]]", 2]);
  } finally {
    JSON.parse = parse;
  }
});

test("other messages are left as they are", () => {
  for (const text of ['{"type":"connected","cursor":1}', "[1]", "1", '{"events":1}', `[${HUGE}]`]) {
    assert.deepEqual(decodeMessage(text, String), JSON.parse(text));
    assert.deepEqual(decodeAnswer(text, String), JSON.parse(text));
  }
  for (const text of ["", "{", "[1,]"]) {
    assert.equal(decodeMessage(text, null), null);
    assert.equal(decodeAnswer(text, null), null);
  }
});
