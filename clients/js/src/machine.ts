/**
 * The protocol of a client (docs/protocol.md) as a state machine, without I/O and without a clock.
 *
 * The caller passes inputs (`message`, `closed`, `tick` at `deadline` …) and executes the actions that `take` returns.
 * clients/python/userrealtime_client/machine.py is the same machine in Python; protocol/vectors/client.json has the
 * tests of both.
 *
 *     new --start--> token --token--> opening --connected--> connected
 *                      ^                 |                       |
 *                      '---- waiting <---+-----------------------'   paused: dropped until `resume`; closed: for good
 *
 * With a state function, `loading` comes before `token`, initially and after each `reset`.
 *
 * All times are milliseconds. `now` is the time of a monotonic clock.
 */

/** A JSON object of the protocol. */
export type Message = Record<string, unknown>;
export type Transport = "websocket" | "sse" | "poll";
export type StateName = "loading" | "connecting" | "connected" | "waiting" | "paused" | "closed";

/** An event of the user's log. */
export interface UserEvent<Data = unknown> {
  type: "event";
  /** Its number in the log: one more than that of the event before. */
  id: number;
  event: string;
  /** The time just before the commit of its transaction; RFC 3339, UTC. */
  at: string;
  data: Data;
  /** The error of the conversion of `data`. In this case, `data` is null and `text` is its JSON. */
  error?: Error;
  text?: string;
}

/** An event that is not part of the log, for the clients that are connected (docs/publish.md, "Broadcast"). */
export interface Broadcast<Data = unknown> {
  type: "broadcast";
  event: string;
  data: Data;
  /** The error of the conversion of `data`. In this case, `data` is null and `text` is its JSON. */
  error?: Error;
  text?: string;
}

/** The log cannot deliver all events after the position: load the state again, then apply the events that follow. */
export interface Reset {
  type: "reset";
  reason: "too-old" | "ahead" | "epoch" | (string & {});
  cursor: number;
  epoch: string | null;
  earliest?: number;
}

/** A client's position in the log: the last event that it has, and the epoch of the log. */
export interface Position {
  id: number;
  epoch: string | null;
}

/** Returns the position in a text that `userrealtime.position` has returned. Throws if the text is not a position. */
export function parsePosition(text: string): Position {
  const [, id, epoch] = /^([0-9]{1,16})(?::(.*))?$/s.exec(text) ?? [];
  if (id === undefined || !Number.isSafeInteger(Number(id))) {
    throw new TypeError(
      `${JSON.stringify(text).slice(0, 60)} is not a position: return the text of userrealtime.position() unchanged`,
    );
  }
  return { id: Number(id), epoch: epoch === undefined || epoch === "" ? null : epoch };
}

/** Timeouts in milliseconds, and limits of a client. */
export interface Limits {
  transports: readonly Transport[];
  /** The time until `connected` must arrive. A sleeping pod may take 30 s to wake. */
  openTimeout: number;
  /** The time without a message on a WebSocket after which a ping is sent. */
  pingInterval: number;
  pongTimeout: number;
  /** The time without a byte after which a stream is dead: more than twice the relay's PING_INTERVAL. */
  silence: number;
  backoff: number;
  backoffMost: number;
  /** The largest number of published messages that are not acknowledged. */
  maxPending: number;
  maxMessageBytes: number;
  messagesPerSecond: number;
  broadcastsPerSecond: number;
}

export const DEFAULTS: Limits = {
  transports: ["websocket", "sse", "poll"],
  openTimeout: 35_000,
  pingInterval: 25_000,
  pongTimeout: 10_000,
  silence: 60_000,
  backoff: 500,
  backoffMost: 30_000,
  maxPending: 100,
  maxMessageBytes: 65_536,
  messagesPerSecond: 50,
  broadcastsPerSecond: 30,
};

/** Open a connection, or send one poll that requests the relay to wait `wait` seconds. */
export interface Open {
  do: "open";
  transport: Transport;
  token: string;
  cursor: number | null;
  epoch: string | null;
  wait: number;
  /** After which broadcasts a poll receives broadcasts; empty: from now on; null: none. */
  broadcasts: string | null;
}

export interface PostBroadcast {
  do: "postBroadcast";
  number: number;
  message: Message;
  token: string;
}

/** Why a broadcast was not sent. `refused`: the relay has rejected one, because they are disabled. */
export interface Unsent {
  code: "invalid" | "too-big" | "refused" | "not-connected" | "too-many";
  message: string;
}

export interface StateChange {
  do: "state";
  state: StateName;
  transport: Transport;
  /** Why the client is not connected. */
  reason: string;
  /** Why the client is closed permanently; null if the application closed it. */
  error: ErrorCode | null;
}

/** Why a client is closed permanently. */
export type ErrorCode = "unauthorized" | "refused";

export type Action =
  /**
   * Call the application's state function. The result is passed to `loaded` or `notLoaded`, with the same number.
   * Messages that the application has not received yet are obsolete, as is the result of an earlier call: discard them.
   */
  | { do: "load"; load: number }
  /** Deliver the state that this call has returned. `reset` is the reason of the reset that required it. */
  | { do: "loaded"; load: number; cursor: number; epoch: string | null; reset: string | null }
  /** Request a token from the application. The result is passed to `token` or `noToken`. */
  | { do: "token" }
  | Open
  /** Send a message over the WebSocket. */
  | { do: "send"; message: Message }
  /** Send `POST /publish`. The result is passed to `posted`. */
  | { do: "post"; message: Message; token: string }
  /** Send `POST /broadcast`. The result is passed to `broadcastPosted`, with the same number. */
  | PostBroadcast
  /** Abort the connection and all requests, and report none of their results. */
  | { do: "drop" }
  /** Deliver an `event` or a `reset` to the application, with the epoch of its log; null if it is not known. */
  | { do: "hand"; message: UserEvent | Reset; epoch: string | null }
  /** Deliver a broadcast to the application, if it listens to broadcasts. */
  | { do: "broadcast"; message: Broadcast }
  | StateChange
  /** The message is stored in the application's inbox with this id. */
  | { do: "published"; ref: string; id: number }
  /** The message was not published, and is not retried. */
  | { do: "failed"; ref: string; code: string; message: string };

/** Consecutive failures to connect after which the next transport is tried. */
const ATTEMPTS = 3;
/** How long a connection must have lasted to reset the backoff. */
const STABLE = 5_000;
/** How long a connection by a fallback must have lasted for the next attempt to use the first transport again. */
const RETURN = 60_000;
const TOKEN_TIMEOUT = 30_000;
const LOAD_TIMEOUT = 30_000;
/** A token is renewed this long before its expiry, or after three quarters of its remaining time if that is later. */
const RENEW_LEAD = 60_000;
const RENEW_LEAST = 2_000;
const RENEW_AGAIN = 5_000;
const PROBE_TIMEOUT = 5_000;
/** Seconds that a poll asks the relay to wait. */
const POLL_WAIT = 25;
/** The same for the first poll, whose response proves the connection. A relay that has just started needs some time. */
const POLL_FIRST = 2;
const POLL_GRACE = 10_000;
/** The delay after 1013: the minimum, and the bound of a random addition. */
const TRY_LATER = { least: 10_000, more: 20_000 };
/** The longest `Retry-After` that is respected. A proxy may send a longer one. */
const RETRY_AFTER_MOST = 300_000;
const LONGEST_NAME = 253;
/** The limit of the JSON of a broadcast's name and data. */
const MOST_BROADCAST_BYTES = 7000;
/** Broadcasts that wait for the response to the one before, over HTTP. */
const MAX_WAITING_BROADCASTS = 32;
/** Consecutive rejected tokens after which the client ends. A single one may have expired. */
const LAST_REFUSAL = 2;

/** Close codes that a client treats specially. After any other code, it reconnects. */
export const Code = {
  /** Never sent: the connection was lost or could not be opened. */
  ABNORMAL: 1006,
  POLICY_VIOLATION: 1008,
  MESSAGE_TOO_BIG: 1009,
  TRY_LATER: 1013,
  TOKEN_EXPIRED: 4001,
} as const;

const isInteger = (value: unknown) => Number.isSafeInteger(value);
const isString = (value: unknown) => typeof value === "string";
const isEpoch = (value: unknown) => value === null || isString(value);

/** The members of messages, and of the response to a poll, that a client relies on. */
const SHAPES: Record<string, Record<string, (value: unknown) => boolean>> = {
  connected: { cursor: isInteger, epoch: isEpoch },
  event: { id: isInteger, event: isString },
  broadcast: { event: isString },
  reset: { reason: isString, cursor: isInteger, epoch: isEpoch },
  ack: { ref: isString, id: isInteger },
  error: { code: isString, message: isString },
  renewed: { expiresIn: isInteger },
  close: { code: isInteger, reason: isString },
  answer: { cursor: isInteger, epoch: isEpoch, events: Array.isArray },
};

interface Publication {
  message: Message;
  size: number;
  sent: boolean;
}

type Phase = "new" | "loading" | "token" | "opening" | "connected" | "waiting" | "paused" | "closed";

/** A token bucket that limits the messages per second. */
class Allowance {
  #level: number;
  #at = 0;

  constructor(private readonly rate: number) {
    this.#level = rate;
  }

  /** Takes one token and returns 0, or returns the time until one is available. */
  wait(now: number): number {
    this.#level = Math.min(this.rate, this.#level + ((now - this.#at) / 1000) * this.rate);
    this.#at = now;
    if (this.#level < 1) return Math.ceil(((1 - this.#level) / this.rate) * 1000);
    this.#level -= 1;
    return 0;
  }
}

/**
 * The state machine of one client. `random` returns numbers from 0 to 1, 1 excluded. `stateful`: whether the
 * application has a state function (docs/protocol.md, "State").
 */
export class Machine {
  readonly #limits: Limits;
  readonly #random: () => number;
  #actions: Action[] = [];
  #phase: Phase = "new";
  readonly #timers = new Map<string, number>();
  #place = 0; // the index of the transport
  #cursor: number | null;
  #epoch: string | null;
  readonly #stateful: boolean;
  #stale: boolean; // the state must be loaded before the next connection
  #resetReason: string | null = null;
  #load = 0; // the number of the last call of the state function
  #token: string | null = null;
  #goodUntil: number | null = null;
  #renewing = false; // the next token has been requested from the application
  #offered: string | null = null; // the next token, sent to the relay
  #refused = 0; // consecutive tokens
  #offline = false;
  #attempt = 0;
  #unopened = 0; // consecutive attempts of this transport that did not connect
  #connectedAt = 0;
  #askedAt = 0;
  #waited = 0; // seconds that the last poll requested
  /** Whether the application listens to broadcasts. Polls request them only then. */
  broadcasts = false;
  #broadcastCursor = ""; // of the last response to a poll
  readonly #pending = new Map<string, Publication>();
  #holdUntil = 0;
  #postAttempt = 0;
  #posting: string | null = null;
  readonly #allowance: Allowance;
  readonly #broadcastAllowance: Allowance;
  #outgoing: Message[] = []; // broadcasts that wait, over HTTP
  #broadcastNumber = 0;
  #postingBroadcast = false;
  #broadcastsRefused: string | null = null; // the reason, from the relay of this connection
  #biggestBroadcast = 0; // bytes of the largest message with one, on this connection
  #mostBroadcastBytes: number;

  constructor(limits: Limits, random: () => number, position: Position | null = null, stateful = false) {
    this.#limits = limits;
    this.#random = random;
    this.#cursor = position?.id ?? null;
    this.#epoch = position?.epoch ?? null;
    this.#stateful = stateful;
    this.#stale = stateful && position === null;
    this.#allowance = new Allowance(limits.messagesPerSecond);
    this.#broadcastAllowance = new Allowance(limits.broadcastsPerSecond);
    this.#mostBroadcastBytes = limits.maxMessageBytes;
  }

  /** The time at which to call `tick`, null for never. */
  get deadline(): number | null {
    return this.#timers.size === 0 ? null : Math.min(...this.#timers.values());
  }

  /** The position after the last delivered message; null until it is known. */
  get position(): Position | null {
    return this.#cursor === null ? null : { id: this.#cursor, epoch: this.#epoch };
  }

  /** Returns the actions to execute now, in order. Each is returned once. */
  take(): Action[] {
    const actions = this.#actions;
    this.#actions = [];
    return actions;
  }

  // --- calls of the application

  /** Starts to connect. */
  start(now: number): void {
    if (this.#phase === "new") this.#connect(now);
  }

  /** Sends a message to the application's inbox; `published` or `failed` follows. */
  publish(now: number, ref: string, event: string, data: unknown): void {
    const message = { type: "publish", ref, event, data };
    const size = sizeOf(message);
    const fail = (code: string, why: string) => this.#actions.push({ do: "failed", ref, code, message: why });
    if (this.#phase === "closed") {
      fail("closed", "the client is closed");
    } else if (!isName(ref) || !isName(event)) {
      fail("invalid", `ref and event have 1 to ${LONGEST_NAME} characters, none of them a control one`);
    } else if (this.#pending.has(ref)) {
      fail("invalid", "a message with this ref is under way");
    } else if (size > this.#limits.maxMessageBytes) {
      fail("too-big", `the message has ${size} bytes; ${this.#limits.maxMessageBytes} are allowed`);
    } else if (this.#pending.size >= this.#limits.maxPending) {
      const most = this.#limits.maxPending;
      fail("queue-full", `${most} messages wait to be acknowledged: wait for some, then try again`);
    } else {
      this.#pending.set(ref, { message, size, sent: false });
      this.#flush(now);
    }
  }

  /** Sends a broadcast to the user's other connected clients, at most once. Returns the reason if it is not sent. */
  broadcast(now: number, event: string, data: unknown): Unsent | null {
    const message = { type: "broadcast", event, data };
    const size = sizeOf(message);
    if (!isName(event)) {
      return { code: "invalid", message: `event has 1 to ${LONGEST_NAME} characters, none of them a control one` };
    }
    const content = sizeOf(event) + sizeOf(data);
    if (content > MOST_BROADCAST_BYTES) {
      const why = `event and data have ${content} bytes of JSON; ${MOST_BROADCAST_BYTES} are allowed`;
      return { code: "too-big", message: why };
    }
    if (size > this.#mostBroadcastBytes) {
      return { code: "too-big", message: `the message has ${size} bytes, more than the relay takes` };
    }
    if (this.#phase !== "connected") return { code: "not-connected", message: "the client is not connected" };
    if (this.#broadcastsRefused !== null) return { code: "refused", message: this.#broadcastsRefused };
    if (this.#outgoing.length >= MAX_WAITING_BROADCASTS || this.#broadcastAllowance.wait(now) > 0) {
      return { code: "too-many", message: "too many broadcasts" };
    }
    if (this.#transport === "websocket") {
      this.#biggestBroadcast = Math.max(this.#biggestBroadcast, size);
      this.#actions.push({ do: "send", message });
    } else {
      this.#outgoing.push(message);
      this.#postBroadcast();
    }
    return null;
  }

  /** Closes the connection until `resume`, because too many messages wait for the application. */
  pause(): void {
    if (this.#phase !== "new" && this.#phase !== "paused" && this.#phase !== "closed") {
      this.#drop();
      this.#phase = "paused";
      this.#state("paused", "events wait to be taken");
    }
  }

  /** Connects again after `pause`. */
  resume(now: number): void {
    if (this.#phase === "paused") this.#connect(now);
  }

  /** Checks the connection immediately. The network may be available again, or the machine was suspended. */
  probe(now: number): void {
    this.#offline = false;
    if (this.#phase === "waiting" || this.#phase === "loading") {
      this.#timers.clear();
      this.#connect(now);
    } else if (this.#phase === "connected" && this.#transport === "websocket") {
      this.#ping(now, PROBE_TIMEOUT);
    } else if (this.#phase === "connected") {
      this.#drop();
      this.#connect(now);
    }
  }

  /** Records that there is no network until `probe`. Failures in this time do not count against a transport. */
  offline(): void {
    this.#offline = true;
  }

  /** Closes the client permanently. */
  close(): void {
    if (this.#phase === "closed") return;
    this.#drop();
    this.#end("", null);
  }

  // --- inputs

  /** Processes the result of call number `load` of the state function: a state, read at this position. */
  loaded(now: number, load: number, position: string): void {
    if (this.#phase !== "loading" || load !== this.#load) return;
    let parsed: Position;
    try {
      parsed = parsePosition(position);
    } catch (error) {
      this.notLoaded(now, load, (error as Error).message);
      return;
    }
    this.#timers.delete("load");
    this.#cursor = parsed.id;
    this.#epoch = parsed.epoch;
    this.#actions.push({ do: "loaded", load, cursor: parsed.id, epoch: parsed.epoch, reset: this.#resetReason });
    this.#stale = false;
    this.#resetReason = null;
    this.#connect(now);
  }

  /** Processes the failure of call number `load` of the state function. */
  notLoaded(now: number, load: number, reason: string): void {
    if (this.#phase === "loading" && load === this.#load) this.#retry(now, `no state: ${reason}`);
  }

  /** Processes a token of the application, which is valid for `goodFor` milliseconds; null if that is not known. */
  token(now: number, token: string, goodFor: number | null): void {
    this.#timers.delete("token");
    if (this.#phase === "token") {
      this.#token = token;
      // A new token that seems to have expired indicates a wrong local clock: the relay decides.
      this.#goodUntil = goodFor === null || goodFor <= 0 ? null : now + goodFor;
      this.#open(now);
    } else if (this.#renewing) {
      this.#renewing = false;
      if (token !== this.#token) {
        this.#offered = token;
        this.#actions.push({ do: "send", message: { type: "auth", token } });
      }
    }
  }

  /** Processes the failure of the application to provide a token. */
  noToken(now: number, reason: string): void {
    this.#timers.delete("token");
    if (this.#phase === "token") {
      this.#retry(now, `no token: ${reason}`);
    } else if (this.#renewing) {
      this.#renewing = false;
      this.#timers.set("renew", now + RENEW_AGAIN);
    }
  }

  /** Processes the arrival of any data over the connection. */
  heard(now: number): void {
    if (this.#phase !== "connected") return;
    if (this.#transport === "websocket") {
      this.#timers.delete("silence");
      this.#timers.set("ping", now + this.#limits.pingInterval);
    } else if (this.#transport === "sse") {
      this.#timers.set("silence", now + this.#limits.silence);
    }
  }

  /** Processes a message of the relay over a WebSocket or a stream: a JSON value. */
  message(now: number, message: unknown): void {
    if (this.#phase !== "opening" && this.#phase !== "connected") return;
    this.heard(now);
    if (!isSound(kindOf(message), message)) {
      this.lose(now, "what the relay says cannot be understood");
      return;
    }
    switch (message.type) {
      case "connected":
        this.#greet(now, message.cursor as number, message.epoch as string | null);
        break;
      case "event":
        this.#event(now, message as unknown as UserEvent);
        break;
      case "broadcast":
        this.#broadcast(message as unknown as Broadcast);
        break;
      case "reset":
        this.#reset(now, message as unknown as Reset);
        break;
      case "ack":
        this.#published(message.ref as string, message.id as number);
        break;
      case "error":
        this.#complain(now, message);
        break;
      case "renewed":
        this.#refused = 0;
        this.#token = this.#offered ?? this.#token;
        this.#offered = null;
        this.#goodUntil = now + 1000 * (message.expiresIn as number);
        this.#planRenewal(now);
        break;
      case "close":
        this.#actions.push({ do: "drop" });
        this.closed(now, message.code as number, message.reason as string);
        break;
    }
  }

  /** Processes the response to a poll with status 200. */
  answered(now: number, answer: unknown): void {
    if (this.#phase !== "opening" && this.#phase !== "connected") return;
    if (!isSound("answer", answer) || !(answer.events as unknown[]).every((event) => isSound("event", event))) {
      this.lose(now, "what the relay says cannot be understood");
      return;
    }
    const cursor = answer.cursor as number;
    const epoch = answer.epoch as string | null;
    const events = answer.events as UserEvent[];
    const reason = (answer.reset as string | undefined) ?? null;
    // `connected` contains the position at which a client begins; so does the response to a poll without events.
    this.#greet(now, this.#cursor ?? cursor, reason === null ? epoch : null);
    if (reason !== null) this.#reset(now, { type: "reset", reason, cursor, epoch });
    for (const event of events) this.#event(now, event);
    const broadcasts = Array.isArray(answer.broadcasts) ? (answer.broadcasts as unknown[]) : [];
    for (const broadcast of broadcasts) {
      if (isSound("broadcast", broadcast)) this.#broadcast(broadcast as unknown as Broadcast);
    }
    if (isString(answer.broadcastCursor)) this.#broadcastCursor = answer.broadcastCursor as string;
    if (this.#is("connected")) {
      const idle = reason === null && events.length === 0 && broadcasts.length === 0;
      if (idle && this.#waited === POLL_WAIT && now - this.#askedAt < 1000) {
        // A proxy responds instead of the relay.
        this.#timers.delete("silence");
        this.#timers.set("poll", now + 1000 * this.#random());
      } else {
        this.#poll(now, POLL_WAIT);
      }
    }
  }

  /** Processes the end of the connection, or the failure to open one (1006). */
  closed(now: number, code: number, reason: string): void {
    if (this.#phase !== "opening" && this.#phase !== "connected") return;
    if (code === Code.ABNORMAL) this.#countUnopened();
    const why = `${code} ${reason}`.trimEnd();
    if (code === Code.POLICY_VIOLATION && reason === "Unauthorized") {
      this.#refuse(now, why);
    } else if (code === Code.POLICY_VIOLATION) {
      this.#end(why, "refused");
    } else if (code === Code.MESSAGE_TOO_BIG) {
      this.#failBiggest(now, why);
    } else if (code === Code.TRY_LATER) {
      this.#retry(now, why, { delay: TRY_LATER.least + TRY_LATER.more * this.#random() });
    } else {
      if (code === Code.TOKEN_EXPIRED) this.#token = null;
      this.#retry(now, why);
    }
  }

  /** Processes an error status in the response to a stream, a poll or the handshake of a WebSocket. */
  refused(now: number, status: number, reason: string, retryAfter: number | null): void {
    if (this.#phase !== "opening" && this.#phase !== "connected") return;
    const why = `HTTP ${status} ${reason}`.trimEnd();
    if (status === 401) {
      this.#refuse(now, why);
    } else if (status === 400 || status === 403) {
      this.#end(why, "refused");
    } else {
      if (status !== 429 && status !== 503) this.#countUnopened();
      this.#retry(now, why, { atLeast: Math.min(retryAfter ?? 0, RETRY_AFTER_MOST) });
    }
  }

  /** Processes the response to `POST /publish`. The status is 0 without a response. */
  posted(now: number, ref: string, status: number, body: Message, retryAfter: number | null): void {
    if (this.#posting !== ref) return;
    this.#posting = null;
    if (status === 401) {
      this.#drop();
      this.#refuse(now, "HTTP 401");
      return;
    }
    if (status === 200 && isInteger(body.id)) {
      this.#postAttempt = 0;
      this.#published(ref, body.id as number);
    } else if (status === 400 || status === 403 || status === 413) {
      const why = typeof body.error === "string" ? body.error : `HTTP ${status}`;
      this.#failed(ref, status === 413 ? "too-big" : "refused", why);
    } else {
      const publication = this.#pending.get(ref);
      if (publication !== undefined) publication.sent = false;
      const bound = Math.min(this.#limits.backoffMost, this.#limits.backoff * 2 ** this.#postAttempt);
      this.#postAttempt = Math.min(this.#postAttempt + 1, 30);
      this.#holdUntil = now + Math.min(retryAfter ?? 0, RETRY_AFTER_MOST) + bound * this.#random();
    }
    this.#flush(now);
  }

  /** Processes the response to `POST /broadcast`. The status is 0 without a response. Nothing is repeated. */
  broadcastPosted(number: number, status: number, body: Message): void {
    if (!this.#postingBroadcast || number !== this.#broadcastNumber) return;
    this.#postingBroadcast = false;
    if (status === 403) {
      this.#broadcastsRefused = typeof body.error === "string" ? body.error : "HTTP 403";
      this.#outgoing = [];
    }
    this.#postBroadcast();
  }

  /** Processes the timers that are due. */
  tick(now: number): void {
    const due = [...this.#timers].filter(([, at]) => at <= now).map(([name]) => name);
    for (const name of due.sort()) {
      if (!this.#timers.delete(name)) continue; // an earlier timer has cancelled it
      switch (name) {
        case "retry":
          this.#connect(now);
          break;
        case "load":
          this.notLoaded(now, this.#load, "the application did not answer");
          break;
        case "token":
          this.noToken(now, "the application did not answer");
          break;
        case "open":
          this.#actions.push({ do: "drop" });
          this.closed(now, Code.ABNORMAL, "no greeting in time");
          break;
        case "ping":
          this.#ping(now, this.#limits.pongTimeout);
          break;
        case "silence":
          this.lose(now, "silent");
          break;
        case "poll":
          this.#poll(now, POLL_WAIT);
          break;
        case "renew":
          this.#renewing = true;
          this.#timers.set("token", now + TOKEN_TIMEOUT);
          this.#actions.push({ do: "token" });
          break;
        case "publish":
          this.#flush(now);
          break;
      }
    }
  }

  /** Aborts the connection, because it is dead or violates the protocol. */
  lose(now: number, reason: string): void {
    if (this.#phase === "opening" || this.#phase === "connected") {
      this.#actions.push({ do: "drop" });
      this.closed(now, Code.ABNORMAL, reason);
    }
  }

  // --- connecting

  get #transport(): Transport {
    return this.#limits.transports[this.#place] as Transport;
  }

  /** Returns whether this is the current phase. In a comparison, TypeScript would assume the phase from before a call. */
  #is(phase: Phase): boolean {
    return this.#phase === phase;
  }

  #state(state: StateName, reason = "", error: ErrorCode | null = null): void {
    this.#actions.push({ do: "state", state, transport: this.#transport, reason, error });
  }

  #connect(now: number): void {
    if (this.#stale) {
      this.#phase = "loading";
      this.#load += 1;
      this.#timers.set("load", now + LOAD_TIMEOUT);
      this.#state("loading");
      this.#actions.push({ do: "load", load: this.#load });
      return;
    }
    this.#phase = "token";
    this.#state("connecting");
    if (this.#token === null || (this.#goodUntil !== null && this.#goodUntil <= now)) {
      this.#timers.set("token", now + TOKEN_TIMEOUT);
      this.#actions.push({ do: "token" });
    } else {
      this.#open(now);
    }
  }

  #open(now: number): void {
    this.#phase = "opening";
    this.#broadcastCursor = "";
    if (this.#transport === "poll") {
      this.#poll(now, POLL_FIRST);
    } else {
      this.#actions.push(this.#opening(0));
    }
    this.#timers.set("open", now + this.#limits.openTimeout);
  }

  #opening(wait: number): Open {
    const token = this.#token ?? "";
    const broadcasts = this.broadcasts ? this.#broadcastCursor : null;
    return { do: "open", transport: this.#transport, token, cursor: this.#cursor, epoch: this.#epoch, wait, broadcasts };
  }

  #poll(now: number, wait: number): void {
    this.#askedAt = now;
    this.#waited = wait;
    this.#actions.push(this.#opening(wait));
    if (this.#phase === "connected") this.#timers.set("silence", now + 1000 * wait + POLL_GRACE);
  }

  #greet(now: number, cursor: number, epoch: string | null): void {
    if (this.#cursor === null) {
      this.#cursor = cursor;
      this.#epoch = epoch;
    } else if (this.#epoch === null && cursor === this.#cursor) {
      this.#epoch = epoch;
    }
    // A different cursor belongs to the `reset` that follows. Until then, this client's cursor stays.
    if (this.#phase !== "opening") return;
    this.#phase = "connected";
    this.#timers.delete("open");
    this.#connectedAt = now;
    this.#refused = 0;
    this.#unopened = 0;
    this.#state("connected");
    this.heard(now);
    if (this.#transport === "websocket") this.#planRenewal(now);
    this.#flush(now);
  }

  #ping(now: number, timeout: number): void {
    this.#actions.push({ do: "send", message: { type: "ping" } });
    this.#timers.delete("ping");
    this.#timers.set("silence", Math.min(this.#timers.get("silence") ?? Infinity, now + timeout));
  }

  #countUnopened(): void {
    if (this.#phase === "opening" && !this.#offline) this.#unopened += 1;
  }

  /** Resets the state of the connection. Messages without an acknowledgement are sent again on the next one. */
  #leave(): void {
    this.#timers.clear();
    this.#renewing = false;
    this.#offered = null;
    this.#posting = null;
    this.#outgoing = [];
    this.#postingBroadcast = false;
    this.#broadcastsRefused = null;
    this.#biggestBroadcast = 0;
    for (const publication of this.#pending.values()) publication.sent = false;
  }

  #drop(): void {
    if (this.#phase === "opening" || this.#phase === "connected") this.#actions.push({ do: "drop" });
    this.#leave();
  }

  /** Connects after a random delay, whose bound doubles with each consecutive attempt. */
  #retry(now: number, why: string, { delay, atLeast = 0 }: { delay?: number; atLeast?: number } = {}): void {
    if (this.#phase === "connected") {
      const lasted = now - this.#connectedAt;
      this.#attempt = lasted >= STABLE ? 0 : Math.min(this.#attempt, 2);
      if (this.#place > 0 && lasted >= RETURN) {
        this.#place = 0;
        this.#unopened = 0;
      }
    }
    if (this.#unopened >= ATTEMPTS) {
      this.#place = (this.#place + 1) % this.#limits.transports.length;
      this.#unopened = 0;
    }
    this.#leave();
    const bound = Math.min(this.#limits.backoffMost, this.#limits.backoff * 2 ** this.#attempt);
    this.#attempt = Math.min(this.#attempt + 1, 30);
    this.#phase = "waiting";
    this.#timers.set("retry", now + (delay ?? atLeast + bound * this.#random()));
    this.#state("waiting", why);
  }

  /** Discards a rejected token and retries with a new one; after `LAST_REFUSAL` of them, ends. */
  #refuse(now: number, why: string): void {
    this.#refused += 1;
    this.#token = null;
    if (this.#refused >= LAST_REFUSAL) this.#end(why, "unauthorized");
    else this.#retry(now, why);
  }

  #end(reason: string, error: ErrorCode | null): void {
    this.#leave();
    this.#phase = "closed";
    for (const ref of [...this.#pending.keys()]) {
      this.#failed(ref, "closed", "the client is closed; whether the message has arrived is not known");
    }
    this.#state("closed", reason, error);
  }

  // --- the log

  #event(now: number, event: UserEvent): void {
    if (!this.#is("connected") || this.#cursor === null) {
      this.lose(now, "an event before the greeting");
    } else if (event.id > this.#cursor + 1) {
      this.lose(now, `event ${event.id} after ${this.#cursor}`);
    } else if (event.id === this.#cursor + 1) {
      this.#cursor = event.id;
      this.#actions.push({ do: "hand", message: event, epoch: this.#epoch });
    }
  }

  #broadcast(message: Broadcast): void {
    if (this.#is("connected")) this.#actions.push({ do: "broadcast", message });
  }

  #reset(now: number, message: Reset): void {
    this.#cursor = message.cursor;
    this.#epoch = message.epoch;
    if (this.#stateful) {
      // With a random delay, as for any other reconnection: a restored database resets all clients together.
      this.#stale = true;
      this.#resetReason = message.reason;
      this.#actions.push({ do: "drop" });
      this.#retry(now, `reset: ${message.reason}`);
      return;
    }
    this.#actions.push({ do: "hand", message, epoch: this.#epoch });
  }

  #planRenewal(now: number): void {
    this.#timers.delete("renew");
    if (this.#goodUntil === null) return;
    const left = this.#goodUntil - now;
    if (left >= RENEW_LEAST) this.#timers.set("renew", now + left - Math.min(RENEW_LEAD, left / 4));
  }

  // --- publishing

  /** Sends the messages that the rate limit allows now. */
  #flush(now: number): void {
    if (this.#phase !== "connected") return;
    for (const [ref, publication] of this.#pending) {
      if (publication.sent) continue;
      if (this.#posting !== null) return;
      let wait = this.#holdUntil - now;
      if (wait <= 0) wait = this.#allowance.wait(now);
      if (wait > 0) {
        this.#timers.set("publish", now + wait);
        return;
      }
      publication.sent = true;
      if (this.#transport === "websocket") {
        this.#actions.push({ do: "send", message: publication.message });
      } else {
        this.#posting = ref;
        this.#actions.push({ do: "post", message: publication.message, token: this.#token ?? "" });
      }
    }
  }

  #postBroadcast(): void {
    const message = this.#postingBroadcast ? undefined : this.#outgoing.shift();
    if (message === undefined) return;
    this.#postingBroadcast = true;
    this.#broadcastNumber += 1;
    this.#actions.push({ do: "postBroadcast", number: this.#broadcastNumber, message, token: this.#token ?? "" });
  }

  #published(ref: string, id: number): void {
    if (this.#pending.delete(ref)) this.#actions.push({ do: "published", ref, id });
  }

  #failed(ref: string, code: string, message: string): void {
    if (this.#pending.delete(ref)) this.#actions.push({ do: "failed", ref, code, message });
  }

  #complain(now: number, message: Message): void {
    const code = message.code as string;
    if (typeof message.ref !== "string") {
      if (code === "unavailable") this.#timers.set("renew", now + RENEW_AGAIN); // the token keys
      else if (code === "broadcasts-disabled") this.#broadcastsRefused = message.message as string;
      return;
    }
    const publication = this.#pending.get(message.ref);
    if (code !== "unavailable") {
      this.#failed(message.ref, code, message.message as string);
    } else if (publication !== undefined) {
      publication.sent = false;
      this.#holdUntil = now + this.#limits.backoff + this.#limits.backoff * this.#random();
      this.#flush(now);
    }
  }

  #failBiggest(now: number, why: string): void {
    let biggest: string | null = null;
    let most = 0;
    for (const [ref, { sent, size }] of this.#pending) {
      if (sent && size > most) [biggest, most] = [ref, size];
    }
    if (this.#biggestBroadcast > most) {
      this.#mostBroadcastBytes = this.#biggestBroadcast - 1;
      this.#retry(now, why);
      return;
    }
    if (biggest === null) {
      this.#end(why, "refused");
      return;
    }
    this.#failed(biggest, "too-big", "the relay does not take a message of this size");
    this.#retry(now, why);
  }
}

/** Returns the bytes of a value as JSON; 0 if it has none, such as undefined. */
function sizeOf(value: unknown): number {
  const text = JSON.stringify(value) as string | undefined;
  return text === undefined ? 0 : new TextEncoder().encode(text).length;
}

function kindOf(message: unknown): unknown {
  return typeof message === "object" && message !== null ? (message as Message).type : undefined;
}

/** Returns whether a message has the required members. A message of an unknown type has none. */
function isSound(kind: unknown, message: unknown): message is Message {
  if (typeof kind !== "string" || typeof message !== "object" || message === null) return false;
  const shape = Object.hasOwn(SHAPES, kind) ? SHAPES[kind] : {};
  return Object.entries(shape ?? {}).every(([name, fits]) => fits((message as Message)[name]));
}

function isName(value: string): boolean {
  // A lone surrogate is a character in JSON, but not in UTF-8.
  const length = [...value].length;
  return length >= 1 && length <= LONGEST_NAME && !/[\u0000-\u001f\u007f]|\p{Surrogate}/u.test(value);
}
