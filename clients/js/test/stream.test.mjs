// Server-Sent Events, in pieces of any size.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";

import { EventStream } from "../dist/stream.js";

const VECTORS = JSON.parse(readFileSync(new URL("../../../protocol/vectors/stream.json", import.meta.url)));

for (const { name, text, messages } of VECTORS.cases) {
  test(name, () => {
    const bytes = new TextEncoder().encode(text);
    for (const size of [1, 2, 3, 7, bytes.length]) {
      const stream = new EventStream();
      const found = [];
      for (let begin = 0; begin < bytes.length; begin += size) {
        found.push(...stream.feed(bytes.subarray(begin, begin + size)));
      }
      assert.deepEqual(found, messages, `in pieces of ${size}`);
    }
  });
}

test("what is no UTF-8 is refused", () => {
  assert.throws(() => new EventStream().feed(new Uint8Array([0x64, 0xff, 0x0a])));
});
