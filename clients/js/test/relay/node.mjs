// The scenarios in Node.js. Run by tests/clients/test_javascript.py, which serves the URL in STAGE.
import assert from "node:assert/strict";
import { test } from "node:test";

import { UserRealtime } from "userrealtime";
import ws from "ws";

import { names, play } from "./scenarios.mjs";

const stage = process.env.STAGE;
assert.ok(stage, "STAGE is not set: run `pytest tests/clients/test_javascript.py`, which runs this");
assert.ok(globalThis.WebSocket, "this node has no WebSocket of its own: run it with --experimental-websocket");

for (const name of names) {
  test(name, () => play(name, { stage, UserRealtime }));
}

for (const name of ["whatever breaks, by websocket", "what does not come through is got round"]) {
  test(`with a WebSocket class from elsewhere: ${name}`, () => play(name, { stage, UserRealtime, WebSocket: ws }));
}

test("without a WebSocket class, a stream is the first transport", async () => {
  const own = globalThis.WebSocket;
  delete globalThis.WebSocket;
  try {
    const client = new UserRealtime({ url: "http://127.0.0.1:1/alice", token: "t" });
    assert.equal(client.transport, "sse");
    client.close();
    const none = { url: "http://127.0.0.1:1/alice", token: "t", limits: { transports: ["websocket"] } };
    assert.throws(() => new UserRealtime(none), /there is no transport/);
  } finally {
    globalThis.WebSocket = own;
  }
});

for (const url of ["alice", "ws://h/alice", "https://h/alice?token=t", "ftp://h"]) {
  test(`a URL that is none is told: ${url}`, () => {
    assert.throws(() => new UserRealtime({ url, token: "t" }), /status\.url/);
  });
}
