/**
 * What a client does, without I/O and without a clock: docs/protocol.md as a state machine.
 *
 * A shell tells it what happened (`message`, `closed`, `tick` at `deadline` …) and carries out what `take` gives. The
 * same machine in Python is clients/python/userrealtime_client/machine.py; protocol/vectors/client.json holds the two
 * to the same behaviour.
 *
 *     new --start--> token --token--> opening --connected--> connected
 *                      ^                 |                       |
 *                      '---- waiting <---+-----------------------'   paused: dropped until `resume`; closed: for good
 *
 * With a state, `loading` comes before `token`: at first, and after each `reset`.
 *
 * All times are milliseconds: `now` is of any clock that only goes forward.
 */

/** A JSON object, as it is on the wire. */
export type Message = Record<string, unknown>;
export type Transport = "websocket" | "sse" | "poll";
export type StateName = "loading" | "connecting" | "connected" | "waiting" | "paused" | "closed";

/** An event of the user's log. */
export interface UserEvent<Data = unknown> {
  type: "event";
  /** Its number in the log: one more than that of the event before. */
  id: number;
  event: string;
  /** When it was numbered, just before its commit; RFC 3339, UTC. */
  at: string;
  data: Data;
  /** Why `data` could not be read: it is null then, and `text` is its JSON. */
  error?: Error;
  text?: string;
}

/** The log cannot give all that follows: fetch the state anew, then go on with what comes. */
export interface Reset {
  type: "reset";
  reason: "too-old" | "ahead" | "epoch" | (string & {});
  cursor: number;
  epoch: string | null;
  earliest?: number;
}

/** Where in the log a client is: after this event, of this incarnation of the log. */
export interface Position {
  id: number;
  epoch: string | null;
}

/** The position that `userrealtime.position` in the database has returned. Throws if the text is none. */
export function parsePosition(text: string): Position {
  const [, id, epoch] = /^([0-9]{1,16})(?::(.*))?$/s.exec(text) ?? [];
  if (id === undefined || !Number.isSafeInteger(Number(id))) {
    throw new TypeError(
      `${JSON.stringify(text).slice(0, 60)} is not a position: return the text of userrealtime.position() unchanged`,
    );
  }
  return { id: Number(id), epoch: epoch === undefined || epoch === "" ? null : epoch };
}

/** How long a client waits for what, in milliseconds, and how much it takes. */
export interface Limits {
  transports: readonly Transport[];
  /** For a connection to be greeted: a sleeping pod may take 30 s to wake. */
  openTimeout: number;
  /** Without a word on a WebSocket for this long, ask. */
  pingInterval: number;
  pongTimeout: number;
  /** Without a byte on a stream for this long, it is dead; more than twice the relay's PING_INTERVAL. */
  silence: number;
  backoff: number;
  backoffMost: number;
  /** Messages published and not acknowledged. */
  maxPending: number;
  maxMessageBytes: number;
  messagesPerSecond: number;
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
};

/** Connect; or, if this is a poll, ask once, and let the relay wait `wait` seconds. */
export interface Open {
  do: "open";
  transport: Transport;
  token: string;
  cursor: number | null;
  epoch: string | null;
  wait: number;
}

export interface StateChange {
  do: "state";
  state: StateName;
  transport: Transport;
  /** Why it is not connected. */
  reason: string;
  /** Why it is closed for good; null if the application closed it. */
  error: ErrorCode | null;
}

/** Why a client is closed for good. */
export type ErrorCode = "unauthorized" | "refused";

export type Action =
  /**
   * Run the application's function for its state; the answer is `loaded` or `notLoaded`, with the same number. Whatever
   * the application has not taken yet is obsolete: discard it, and the result of any earlier run.
   */
  | { do: "load"; load: number }
  /** Deliver the state that this run has returned. `reset` is the reason of the reset that made it necessary. */
  | { do: "loaded"; load: number; cursor: number; epoch: string | null; reset: string | null }
  /** Ask the application for a token; the answer is `token` or `noToken`. */
  | { do: "token" }
  | Open
  /** Send a message over the WebSocket. */
  | { do: "send"; message: Message }
  /** `POST /publish`; the answer is `posted`. */
  | { do: "post"; message: Message; token: string }
  /** End the connection at once, and all requests with it; nothing of them is told any more. */
  | { do: "drop" }
  /** Hand an `event` or a `reset` to the application; the epoch is that of its log, as far as is known. */
  | { do: "hand"; message: UserEvent | Reset; epoch: string | null }
  | StateChange
  /** The application's inbox has it, with this id. */
  | { do: "published"; ref: string; id: number }
  /** It was not published, and is not tried again. */
  | { do: "failed"; ref: string; code: string; message: string };

/** Times in a row that a transport may fail to connect, before the next one is tried. */
const ATTEMPTS = 3;
/** How long a connection must have lasted for the next delay to be the first again. */
const STABLE = 5_000;
/** How long a fallback must have lasted for the next attempt to be by the first transport again. */
const RETURN = 60_000;
const TOKEN_TIMEOUT = 30_000;
const LOAD_TIMEOUT = 30_000;
/** How long before its end a token is renewed, at most; else a quarter of what is left. */
const RENEW_LEAD = 60_000;
const RENEW_LEAST = 2_000;
const RENEW_AGAIN = 5_000;
const PROBE_TIMEOUT = 5_000;
/** Seconds that a poll asks the relay to wait. */
const POLL_WAIT = 25;
/** The same of the first poll, whose answer says that there is a connection; a relay that has just begun needs some. */
const POLL_FIRST = 2;
const POLL_GRACE = 10_000;
/** After 1013: this long, and a random part of that. */
const TRY_LATER = { least: 10_000, more: 20_000 };
/** A longer wait is not believed: it is some proxy's. */
const RETRY_AFTER_MOST = 300_000;
const LONGEST_NAME = 253;
/** Refused tokens in a row that end the client: one may have been old, two are wrong. */
const LAST_REFUSAL = 2;

/** Close codes that mean something to a client; whatever else comes, it connects anew. */
export const Code = {
  /** Not on the wire: the connection broke, or never was. */
  ABNORMAL: 1006,
  POLICY_VIOLATION: 1008,
  MESSAGE_TOO_BIG: 1009,
  TRY_LATER: 1013,
  TOKEN_EXPIRED: 4001,
} as const;

const isInteger = (value: unknown) => Number.isSafeInteger(value);
const isString = (value: unknown) => typeof value === "string";
const isEpoch = (value: unknown) => value === null || isString(value);

/** The members of messages, and of a poll's answer, that a client relies on. */
const SHAPES: Record<string, Record<string, (value: unknown) => boolean>> = {
  connected: { cursor: isInteger, epoch: isEpoch },
  event: { id: isInteger, event: isString },
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

/** A bucket that fills with time: what may be sent, and when the next may. */
class Allowance {
  #level: number;
  #at = 0;

  constructor(private readonly rate: number) {
    this.#level = rate;
  }

  /** Take one; 0 if there was one, else how long until there is. */
  wait(now: number): number {
    this.#level = Math.min(this.rate, this.#level + ((now - this.#at) / 1000) * this.rate);
    this.#at = now;
    if (this.#level < 1) return Math.ceil(((1 - this.#level) / this.rate) * 1000);
    this.#level -= 1;
    return 0;
  }
}

/**
 * One client. `random` gives numbers from 0 to 1, 1 excluded. `stateful`: the application has a function that returns its
 * state (docs/protocol.md, "State").
 */
export class Machine {
  readonly #limits: Limits;
  readonly #random: () => number;
  #actions: Action[] = [];
  #phase: Phase = "new";
  readonly #timers = new Map<string, number>();
  #place = 0; // of the transport among those there are
  #cursor: number | null;
  #epoch: string | null;
  readonly #stateful: boolean;
  #stale: boolean; // the state is to be loaded before anything else
  #resetReason: string | null = null;
  #load = 0; // the number of the last run
  #token: string | null = null;
  #goodUntil: number | null = null;
  #renewing = false; // the application was asked for the next token
  #offered: string | null = null; // the next token, sent to the relay
  #refused = 0; // tokens in a row
  #offline = false;
  #attempt = 0;
  #unopened = 0; // attempts of this transport in a row that did not connect
  #connectedAt = 0;
  #askedAt = 0;
  #waited = 0; // seconds that the last poll asked for
  readonly #pending = new Map<string, Publication>();
  #holdUntil = 0;
  #postAttempt = 0;
  #posting: string | null = null;
  readonly #allowance: Allowance;

  constructor(limits: Limits, random: () => number, position: Position | null = null, stateful = false) {
    this.#limits = limits;
    this.#random = random;
    this.#cursor = position?.id ?? null;
    this.#epoch = position?.epoch ?? null;
    this.#stateful = stateful;
    this.#stale = stateful && position === null;
    this.#allowance = new Allowance(limits.messagesPerSecond);
  }

  /** When to call `tick`; null: not at all. */
  get deadline(): number | null {
    return this.#timers.size === 0 ? null : Math.min(...this.#timers.values());
  }

  /** After the last message handed out; null until it is known. */
  get position(): Position | null {
    return this.#cursor === null ? null : { id: this.#cursor, epoch: this.#epoch };
  }

  /** What to do now, in order; each is given out once. */
  take(): Action[] {
    const actions = this.#actions;
    this.#actions = [];
    return actions;
  }

  // --- what the application wants

  /** Begin to connect. */
  start(now: number): void {
    if (this.#phase === "new") this.#connect(now);
  }

  /** Send a message to the application's inbox; `published` or `failed` follows. */
  publish(now: number, ref: string, event: string, data: unknown): void {
    const message = { type: "publish", ref, event, data };
    const size = new TextEncoder().encode(JSON.stringify(message)).length;
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

  /** Too much waits to be taken in: let go of the connection until `resume`. */
  pause(): void {
    if (this.#phase !== "new" && this.#phase !== "paused" && this.#phase !== "closed") {
      this.#drop();
      this.#phase = "paused";
      this.#state("paused", "events wait to be taken");
    }
  }

  /** Go on after `pause`. */
  resume(now: number): void {
    if (this.#phase === "paused") this.#connect(now);
  }

  /** The network may be back, or the machine has slept: find out at once whether there is a connection. */
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

  /** There is no network, until `probe`: what fails now says nothing of a transport. */
  offline(): void {
    this.#offline = true;
  }

  /** End, for good. */
  close(): void {
    if (this.#phase === "closed") return;
    this.#drop();
    this.#end("", null);
  }

  // --- what happened

  /** Run number `load` of the application's function has returned a state, read at this position. */
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

  /** Run number `load` of the application's function has failed. */
  notLoaded(now: number, load: number, reason: string): void {
    if (this.#phase === "loading" && load === this.#load) this.#retry(now, `no state: ${reason}`);
  }

  /** The application gave a token, good for so many milliseconds, as far as can be told. */
  token(now: number, token: string, goodFor: number | null): void {
    this.#timers.delete("token");
    if (this.#phase === "token") {
      this.#token = token;
      // A token that is over already tells of this clock rather than of the token: the relay is to judge.
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

  /** The application has no token to give now. */
  noToken(now: number, reason: string): void {
    this.#timers.delete("token");
    if (this.#phase === "token") {
      this.#retry(now, `no token: ${reason}`);
    } else if (this.#renewing) {
      this.#renewing = false;
      this.#timers.set("renew", now + RENEW_AGAIN);
    }
  }

  /** Something came over the connection, whatever it was. */
  heard(now: number): void {
    if (this.#phase !== "connected") return;
    if (this.#transport === "websocket") {
      this.#timers.delete("silence");
      this.#timers.set("ping", now + this.#limits.pingInterval);
    } else if (this.#transport === "sse") {
      this.#timers.set("silence", now + this.#limits.silence);
    }
  }

  /** The relay said this, over a WebSocket or a stream. */
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

  /** A poll was answered with 200. */
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
    // `connected` says where a client begins; what an answer says, when nothing is new to it, is the same.
    this.#greet(now, this.#cursor ?? cursor, reason === null ? epoch : null);
    if (reason !== null) this.#reset(now, { type: "reset", reason, cursor, epoch });
    for (const event of events) this.#event(now, event);
    if (this.#is("connected")) {
      const idle = reason === null && events.length === 0;
      if (idle && this.#waited === POLL_WAIT && now - this.#askedAt < 1000) {
        // Something in between answers in the relay's place.
        this.#timers.delete("silence");
        this.#timers.set("poll", now + 1000 * this.#random());
      } else {
        this.#poll(now, POLL_WAIT);
      }
    }
  }

  /** The connection has ended, or could not be made (1006). */
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

  /** A stream, a poll or a WebSocket's handshake was answered with another status than it should be. */
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

  /** `POST /publish` was answered; status 0: it was not. */
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

  /** Let time pass. */
  tick(now: number): void {
    const due = [...this.#timers].filter(([, at]) => at <= now).map(([name]) => name);
    for (const name of due.sort()) {
      if (!this.#timers.delete(name)) continue; // what came before has ended it
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

  /** Give the connection up: it is dead, or says what cannot be. */
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

  /** Whether this is the phase now, whatever it was a moment ago: TypeScript remembers too much. */
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
    if (this.#transport === "poll") {
      this.#poll(now, POLL_FIRST);
    } else {
      this.#actions.push(this.#opening(0));
    }
    this.#timers.set("open", now + this.#limits.openTimeout);
  }

  #opening(wait: number): Open {
    const token = this.#token ?? "";
    return { do: "open", transport: this.#transport, token, cursor: this.#cursor, epoch: this.#epoch, wait };
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
    // Any other cursor than ours is that of a `reset` to come, and no reason to forget ours.
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

  /** The connection is no more; what was sent over it and not answered is to be sent again. */
  #leave(): void {
    this.#timers.clear();
    this.#renewing = false;
    this.#offered = null;
    this.#posting = null;
    for (const publication of this.#pending.values()) publication.sent = false;
  }

  #drop(): void {
    if (this.#phase === "opening" || this.#phase === "connected") this.#actions.push({ do: "drop" });
    this.#leave();
  }

  /** Connect after a random moment: from nothing to a bound that doubles with each attempt in a row. */
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

  /** A token was not good: one may have been old, and another may be. */
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

  #reset(now: number, message: Reset): void {
    this.#cursor = message.cursor;
    this.#epoch = message.epoch;
    if (this.#stateful) {
      // After a random delay like any other reconnection: a restored database resets all clients at once.
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

  /** Send what may be sent now. */
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

  #published(ref: string, id: number): void {
    if (this.#pending.delete(ref)) this.#actions.push({ do: "published", ref, id });
  }

  #failed(ref: string, code: string, message: string): void {
    if (this.#pending.delete(ref)) this.#actions.push({ do: "failed", ref, code, message });
  }

  #complain(now: number, message: Message): void {
    const code = message.code as string;
    if (typeof message.ref !== "string") {
      if (code === "unavailable") this.#timers.set("renew", now + RENEW_AGAIN); // the keys of tokens
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
    if (biggest === null) {
      this.#end(why, "refused");
      return;
    }
    this.#failed(biggest, "too-big", "the relay does not take a message of this size");
    this.#retry(now, why);
  }
}

function kindOf(message: unknown): unknown {
  return typeof message === "object" && message !== null ? (message as Message).type : undefined;
}

/** Whether a message of a kind that is known has what it must have. */
function isSound(kind: unknown, message: unknown): message is Message {
  if (typeof kind !== "string" || typeof message !== "object" || message === null) return false;
  const shape = Object.hasOwn(SHAPES, kind) ? SHAPES[kind] : {};
  return Object.entries(shape ?? {}).every(([name, fits]) => fits((message as Message)[name]));
}

function isName(value: string): boolean {
  // Half of a surrogate pair is a character to JSON, but not to UTF-8.
  const length = [...value].length;
  return length >= 1 && length <= LONGEST_NAME && !/[\u0000-\u001f\u007f]|\p{Surrogate}/u.test(value);
}
