/**
 * The transports. Each function handles one connection or one request, and reports to an `Ear`. No function throws: its
 * last report is the reason for the end. After `drop`, nothing more is reported.
 */

import { decodeAnswer, decodeMessage, type Parse } from "./decode.js";
import { Code, type Message, type Open } from "./machine.js";
import { EventStream } from "./stream.js";

const SUBPROTOCOL = "userrealtime.v1";
const POST_TIMEOUT = 30_000;

/** The part of the browser's WebSocket that is used. The classes of Node.js and of the package `ws` also have it. */
export interface WebSocketLike {
  onmessage: ((event: { data: unknown }) => void) | null;
  onclose: ((event: { code: number; reason: string }) => void) | null;
  onerror: ((event: never) => void) | null;
  send(data: string): void;
  close(code?: number): void;
}
export type WebSocketClass = new (url: string, protocols: string[]) => WebSocketLike;

/** Receives the reports of one connection. */
export interface Ear {
  /** Receives a message of the relay, a JSON value. */
  message(message: unknown): void;
  /** Receives the response to a poll. */
  answered(answer: unknown): void;
  /** Receives the notice that data has arrived. */
  heard(): void;
  /** Receives the end of the connection, or the failure to open it (1006). */
  closed(code: number, reason: string): void;
  /** Receives an error status of the response; `retryAfter` is in milliseconds. */
  refused(status: number, reason: string, retryAfter: number | null): void;
}

/** An open connection or request. */
export interface Connection {
  send(message: Message): void;
  drop(): void;
}

/** Returns a user's URL (`status.url`) without a trailing slash, for paths to be appended. Throws if it is not one. */
export function baseOf(url: string): string {
  let parsed: URL | null = null;
  try {
    parsed = new URL(url);
  } catch {
    // reported below
  }
  if (parsed === null || !/^https?:$/.test(parsed.protocol) || parsed.search !== "" || parsed.hash !== "") {
    throw new TypeError(`${url} is not the http or https URL of a user, such as status.url of a UserRealtime`);
  }
  return parsed.href.replace(/\/+$/, "");
}

/** Opens a WebSocket. The token is sent as a subprotocol, because browsers do not let a page set headers. */
export function websocket(
  Class: WebSocketClass,
  base: string,
  opening: Open,
  ear: Ear,
  parse: Parse | null,
): Connection {
  const query = queryOf({ last_event_id: opening.cursor, epoch: opening.epoch });
  const socket = new Class(`${base.replace(/^http/, "ws")}/ws${query}`, [SUBPROTOCOL, `bearer.${opening.token}`]);
  socket.onmessage = ({ data }) => {
    ear.message(decodeMessage(data as string, parse));
  };
  socket.onclose = ({ code, reason }) => ear.closed(code, reason);
  socket.onerror = () => {}; // `close` follows with the same information
  return {
    send: (message) => socket.send(JSON.stringify(message)),
    drop: () => {
      socket.onmessage = socket.onclose = null;
      socket.close(1000);
    },
  };
}

/** Opens a stream of Server-Sent Events with `fetch`, because an EventSource cannot send headers. */
export function stream(
  fetch: typeof globalThis.fetch,
  base: string,
  opening: Open,
  sender: string,
  ear: Ear,
  parse: Parse | null,
): Connection {
  const query = queryOf({ last_event_id: opening.cursor, epoch: opening.epoch, sender });
  return request(ear, async (signal) => {
    const headers = { ...authorization(opening.token), Accept: "text/event-stream" };
    const response = await fetch(`${base}/sse${query}`, { headers, signal, cache: "no-store", redirect: "error" });
    if (response.status !== 200) return refuse(response, ear);
    if (!response.headers.get("Content-Type")?.startsWith("text/event-stream") || response.body === null) {
      throw new TypeError(`an answer of type ${response.headers.get("Content-Type")}`);
    }
    const reader = response.body.getReader();
    const parser = new EventStream();
    for (;;) {
      const { done, value } = await reader.read();
      if (done) break;
      ear.heard();
      for (const data of parser.feed(value)) ear.message(decodeMessage(data, parse));
    }
    ear.closed(Code.ABNORMAL, "the stream ended");
  });
}

/** Sends one poll. */
export function poll(
  fetch: typeof globalThis.fetch,
  base: string,
  opening: Open,
  sender: string,
  ear: Ear,
  parse: Parse | null,
): Connection {
  const { cursor, epoch, wait: timeout, broadcasts } = opening;
  const query = queryOf({ cursor, epoch, timeout, broadcasts, sender: broadcasts === null ? null : sender });
  return request(ear, async (signal) => {
    const headers = authorization(opening.token);
    const response = await fetch(`${base}/poll${query}`, { headers, signal, cache: "no-store", redirect: "error" });
    if (response.status !== 200) return refuse(response, ear);
    ear.answered(decodeAnswer(await response.text(), parse));
  });
}

/** Sends a message by POST; reports the status (0 without a response), the body, and `Retry-After` in milliseconds. */
export function post(
  fetch: typeof globalThis.fetch,
  url: string,
  message: Message,
  token: string,
  answered: (status: number, body: Message, retryAfter: number | null) => void,
): Connection {
  const controller = new AbortController();
  const timer = setTimeout(() => controller.abort(), POST_TIMEOUT);
  const ask = async () => {
    const response = await fetch(url, {
      method: "POST",
      headers: { ...authorization(token), "Content-Type": "application/json" },
      body: JSON.stringify(message),
      signal: controller.signal,
      redirect: "error",
    });
    return { status: response.status, body: await objectOf(response), retryAfter: retryAfterOf(response) };
  };
  void ask()
    .catch(() => ({ status: 0, body: {}, retryAfter: null }))
    .then(({ status, body, retryAfter }) => {
      clearTimeout(timer);
      answered(status, body, retryAfter);
    });
  return { send: unsendable, drop: () => controller.abort() };
}

function request(ear: Ear, ask: (signal: AbortSignal) => Promise<void>): Connection {
  const controller = new AbortController();
  ask(controller.signal).catch((error: unknown) => {
    if (!controller.signal.aborted) ear.closed(Code.ABNORMAL, error instanceof Error ? error.message : String(error));
  });
  return { send: unsendable, drop: () => controller.abort() };
}

function unsendable(): never {
  throw new Error("nothing is sent over this transport");
}

/** Reports an error status. Its reason is the relay's error message, empty if the response is not from a relay. */
async function refuse(response: Response, ear: Ear): Promise<void> {
  const { error } = await objectOf(response);
  ear.refused(response.status, typeof error === "string" ? error : "", retryAfterOf(response));
}

async function objectOf(response: Response): Promise<Message> {
  try {
    const body: unknown = await response.json();
    return typeof body === "object" && body !== null ? (body as Message) : {};
  } catch {
    return {};
  }
}

function retryAfterOf(response: Response): number | null {
  const value = response.headers.get("Retry-After") ?? "";
  return /^[0-9]{1,5}$/.test(value) ? 1000 * Number(value) : null;
}

function authorization(token: string): { Authorization: string } {
  return { Authorization: `Bearer ${token}` };
}

function queryOf(parameters: Record<string, string | number | null>): string {
  const given = Object.entries(parameters).filter(([, value]) => value !== null);
  return given.length === 0 ? "" : `?${new URLSearchParams(given.map(([name, value]) => [name, String(value)]))}`;
}
