/**
 * Functions for an application's server: sign tokens, publish events, read positions, and take messages from the inbox.
 *
 *     await sql.begin(async (sql) => {                                        // postgres.js; a client of `pg` as well
 *       await sql`insert into orders (customer) values ('alice')`;
 *       await publish(sql, "alice", "order.placed", { id: 41 });
 *     });
 *
 * Each function runs one statement on the connection that it is given, in the transaction that is open there.
 */

/** A connection of postgres.js (`sql`), or of `pg` and compatible packages (a client in a transaction, PGlite). */
export type Connection =
  | { unsafe(statement: string, values: never[]): PromiseLike<readonly object[]> }
  | { query(statement: string, values: never[]): PromiseLike<{ rows: readonly object[] }> };

/** A message that a client of the user has published. Its content is up to the client: validate it. */
export interface Message {
  id: number;
  userId: string;
  ref: string;
  event: string;
  data: unknown;
  at: Date;
}

/** The keys in the Secret that `status.tokenSecret` of a UserRealtime names. */
export interface TokenKeys {
  /** The key that signs. */
  current: string;
  /** The keys that are also accepted, while a key is being replaced. */
  others: string[];
}

/** The token is not a valid token of this user. The message contains the reason, and no part of the token. */
export class InvalidToken extends Error {
  override readonly name = "InvalidToken";
}

const NAMES = ["TOKEN_KEY", "TOKEN_KEY_NEXT", "TOKEN_KEY_PREVIOUS"] as const;
const LEEWAY_S = 5;
const PUBLISH = "select userrealtime.publish($1::text, $2::text, $3::text::jsonb)";
const POSITION = "select userrealtime.position($1::text) as position";
const TAKE = `
with waiting as (
    select id from userrealtime.inbox where done is null order by id limit $1::int for update skip locked
), taken as (
    update userrealtime.inbox as message set done = now() from waiting where message.id = waiting.id
    returning message.id, message.user_id, message.ref, message.event, message.data::text, message.at
)
select id::text, user_id, ref, event, data, at from taken order by taken.id
`;

/** Publishes an event to a user as part of the open transaction. It is delivered if that commits. */
export async function publish(connection: Connection, userId: string, event: string, data: unknown = {}): Promise<void> {
  await run(connection, PUBLISH, [userId, event, JSON.stringify(data)]);
}

/**
 * Returns the user's position in the snapshot of the open transaction. Read the state in the same transaction, with the
 * isolation level REPEATABLE READ; in READ COMMITTED, read the position first.
 */
export async function position(connection: Connection, userId: string): Promise<string> {
  const [row] = await run<{ position: string }>(connection, POSITION, [userId]);
  if (row === undefined) throw new Error("the database has returned no row");
  return row.position;
}

/**
 * Takes the oldest messages from the inbox, in the order of their arrival. They are done when the open transaction commits.
 * Until then no other worker gets them; after a rollback they are available again.
 */
export async function take(connection: Connection, limit = 10): Promise<Message[]> {
  const rows = await run<{ id: string; user_id: string; ref: string; event: string; data: string; at: Date | string }>(
    connection,
    TAKE,
    [limit],
  );
  return rows.map(({ id, user_id, ref, event, data, at }) => ({
    id: Number(id),
    userId: user_id,
    ref,
    event,
    data: JSON.parse(data) as unknown,
    at: new Date(at),
  }));
}

/** Returns the keys in the `data` of a Secret: base64, as the API server returns it. */
export function keysOfSecret(data: Record<string, string>): TokenKeys {
  const decoded = NAMES.map((name) => (data[name] === undefined ? undefined : atob(data[name])));
  return keysOf(decoded, "the Secret");
}

/** Returns the keys in a directory where the Secret is mounted. Read them regularly, because keys are replaced. */
export async function readKeys(directory: string): Promise<TokenKeys> {
  const files = (await import("node:fs/promises" as string)) as {
    readFile(path: string, encoding: "utf8"): Promise<string>;
  };
  const read = async (name: string) => {
    try {
      return (await files.readFile(`${directory}/${name}`, "utf8")).trim();
    } catch (error) {
      if ((error as { code?: string }).code === "ENOENT") return undefined;
      throw error;
    }
  };
  return keysOf(await Promise.all(NAMES.map(read)), directory);
}

function keysOf([current, ...others]: (string | undefined)[], source: string): TokenKeys {
  if (current === undefined || current === "") {
    throw new TypeError(`${source} has no TOKEN_KEY: use the Secret that status.tokenSecret of the user names`);
  }
  return { current, others: others.filter((key): key is string => key !== undefined && key !== "") };
}

/** Returns a token of the user (JWT, HS256), valid for `ttl` seconds. `claims` adds others, such as `iss` and `aud`. */
export async function sign(
  keys: TokenKeys,
  userId: string,
  { ttl = 900, claims = {} }: { ttl?: number; claims?: Record<string, unknown> } = {},
): Promise<string> {
  const iat = Math.floor(Date.now() / 1000);
  const payload = { ...claims, sub: userId, iat, exp: iat + ttl };
  const content = [{ alg: "HS256", typ: "JWT" }, payload].map((part) => encode(utf8(JSON.stringify(part)))).join(".");
  const signature = await crypto.subtle.sign("HMAC", await imported(keys.current), utf8(content));
  return `${content}.${encode(new Uint8Array(signature))}`;
}

/** Returns the claims of a token of the user. Rejects with `InvalidToken` if the token is not valid. */
export async function verify(keys: TokenKeys, token: string, userId: string): Promise<Record<string, unknown>> {
  const [head, payload, signature, ...more] = token.split(".");
  let alg: unknown;
  let claims: Record<string, unknown>;
  let given: Uint8Array<ArrayBuffer>;
  try {
    ({ alg } = JSON.parse(text(decode(head ?? ""))) as { alg?: unknown });
    claims = JSON.parse(text(decode(payload ?? ""))) as Record<string, unknown>;
    given = decode(signature ?? "");
  } catch {
    throw new InvalidToken("it is no JSON Web Token");
  }
  if (alg !== "HS256" || more.length > 0) throw new InvalidToken("it is not signed with HS256");
  const content = utf8(`${head}.${payload}`);
  for (const key of [keys.current, ...keys.others]) {
    if (!(await crypto.subtle.verify("HMAC", await imported(key), given, content))) continue;
    const now = Date.now() / 1000;
    if (typeof claims.exp !== "number" || claims.exp < now - LEEWAY_S) throw new InvalidToken("it has expired");
    if (typeof claims.nbf === "number" && claims.nbf > now + LEEWAY_S) throw new InvalidToken("it is not valid yet");
    if (claims.sub !== userId) throw new InvalidToken("it is a token of another user");
    return claims;
  }
  throw new InvalidToken("the signature is not that of a key of the user");
}

async function run<Row>(connection: Connection, statement: string, values: unknown[]): Promise<readonly Row[]> {
  if ("unsafe" in connection) return (await connection.unsafe(statement, values as never[])) as readonly Row[];
  return (await connection.query(statement, values as never[])).rows as readonly Row[];
}

function imported(key: string): Promise<CryptoKey> {
  return crypto.subtle.importKey("raw", utf8(key), { name: "HMAC", hash: "SHA-256" }, false, ["sign", "verify"]);
}

const utf8 = (value: string) => new TextEncoder().encode(value) as Uint8Array<ArrayBuffer>;
const text = (bytes: Uint8Array) => new TextDecoder("utf-8", { fatal: true }).decode(bytes);

function encode(bytes: Uint8Array): string {
  return btoa(String.fromCharCode(...bytes)).replace(/\+/g, "-").replace(/\//g, "_").replace(/=+$/, "");
}

function decode(value: string): Uint8Array<ArrayBuffer> {
  return Uint8Array.from(atob(value.replace(/-/g, "+").replace(/_/g, "/")), (sign) => sign.charCodeAt(0));
}
