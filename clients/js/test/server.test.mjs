// Tokens of `userrealtime/server`. Its SQL is tested with each driver by tests/clients/test_shop.py.
import assert from "node:assert/strict";
import { createHmac } from "node:crypto";
import { mkdtemp, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";

import { InvalidToken, keysOfSecret, readKeys, sign, verify } from "../dist/server.js";

const KEYS = { current: "a key of this user that is long enough", others: ["another key of this user, as long"] };

test("a token is signed and verified", async () => {
  const token = await sign(KEYS, "älice", { claims: { aud: "realtime" } });
  const claims = await verify(KEYS, token, "älice");
  assert.deepEqual([claims.sub, claims.aud, claims.exp - claims.iat], ["älice", "realtime", 900]);
  const [head, payload, signature] = token.split(".");
  assert.equal(createHmac("sha256", KEYS.current).update(`${head}.${payload}`).digest("base64url"), signature);
  await verify(KEYS, await sign({ current: KEYS.others[0], others: [] }, "alice"), "alice");
});

for (const [name, token, reason] of [
  ["of another user", () => sign(KEYS, "bob"), /another user/],
  ["that has expired", () => sign(KEYS, "alice", { ttl: -60 }), /expired/],
  ["of another key", () => sign({ current: "a key of somebody else", others: [] }, "alice"), /not that of a key/],
  ["that was changed", async () => (await sign(KEYS, "alice")).replace(/\.[^.]*\./, ".eyJzdWIiOiJhbGljZSJ9."), /not that of/],
  ["of another algorithm", () => "eyJhbGciOiJub25lIn0.eyJzdWIiOiJhbGljZSJ9.", /HS256/],
  ["that is none", () => "nonsense", /no JSON Web Token/],
]) {
  test(`a token ${name} is rejected`, async () => {
    await assert.rejects(verify(KEYS, await token(), "alice"), (error) => error instanceof InvalidToken && reason.test(error.message));
  });
}

test("keys come from a Secret or from its files", async () => {
  const folder = await mkdtemp(join(tmpdir(), "keys-"));
  const values = { TOKEN_KEY: "one", TOKEN_KEY_PREVIOUS: "two", DATABASE_PASSWORD: "x" };
  for (const [name, value] of Object.entries(values)) await writeFile(join(folder, name), `${value}\n`);
  const data = Object.fromEntries(Object.entries(values).map(([name, value]) => [name, btoa(value)]));
  assert.deepEqual(keysOfSecret(data), { current: "one", others: ["two"] });
  assert.deepEqual(await readKeys(folder), keysOfSecret(data));
  assert.throws(() => keysOfSecret({}), /has no TOKEN_KEY/);
});
