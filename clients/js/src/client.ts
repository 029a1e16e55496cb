/** The client for applications: runs the machine with WebSocket, fetch and timers. */

import {
  DEFAULTS,
  Machine,
  parsePosition,
  type Action,
  type Broadcast,
  type ErrorCode,
  type Limits,
  type Message,
  type Open,
  type Position,
  type PostBroadcast,
  type Reset,
  type StateName,
  type Transport,
  type UserEvent,
} from "./machine.js";
import { Unparsed, type Parse } from "./decode.js";
import * as transports from "./transports.js";

/** Messages that wait for the application before the client pauses. It resumes when half of them are taken. */
const BUFFER = 1000;
const WATCH = 5_000;
/** The longest delay that `setTimeout` supports. */
const LONGEST_TIMER = 2 ** 31 - 1;
/** The time by which a timer may fire too early. */
const EARLY = 5;
/** The difference between wall clock and monotonic clock from which the machine is taken to have been suspended. */
const JUMP = 10_000;

/** A state, and its position in the log, which `userrealtime.position` returned in the same snapshot. */
export interface Snapshot<AppState> {
  state: AppState;
  position: string;
}

/** The state of the application. It replaces all earlier messages; events follow. */
export interface Loaded<AppState> {
  type: "loaded";
  state: AppState;
  /** The state contains the changes of all events up to this one. It may contain later ones. */
  position: Position;
  /** The reason of the `Reset` after which the state was loaded; null the first time. */
  reset: string | null;
}

export interface Options<AppState = never> {
  /** The user's URL, `status.url` of the UserRealtime. */
  url: string;
  /**
   * A token, or a function that returns one. It is called for the first token, before a token expires, and after a
   * token was rejected.
   */
  token: string | (() => string | Promise<string>);
  /**
   * The position after which to start, by default the head of the log. A text is one that `userrealtime.position`
   * returned.
   */
  position?: Position | string | null;
  /**
   * Returns the state of the application and its position. It is called before the client connects, unless there is a
   * `position`, and after each reset. The client then delivers `loaded` first, and in place of each `reset`. `signal`
   * is aborted when the result is no longer needed.
   */
  state?: (context: { signal: AbortSignal }) => Promise<Snapshot<AppState>>;
  /** False for a client that only publishes. It keeps no messages for the iterator. */
  receive?: boolean;
  /** A WebSocket class for platforms without one (Node.js before 22). Without any, SSE is the first transport. */
  WebSocket?: transports.WebSocketClass;
  fetch?: typeof globalThis.fetch;
  limits?: Partial<Limits>;
  /**
   * Converts the JSON text of an event's data; by default `JSON.parse`, which rounds integers above 2^53. If it throws,
   * the event has `error` and `text` instead of `data`.
   */
  parse?: Parse;
}

export interface State {
  /** `loading`: the application's state; `waiting`: before a retry; `paused`: until the application takes messages. */
  state: StateName;
  /** The transport of the connection, or of the attempt to connect. */
  transport: Transport;
  /** Why the client is not connected. */
  reason: string;
  /** Why the client is closed permanently; null if the application closed it. */
  error: ClientError | null;
}

export interface Listeners<AppState = never> {
  event: (event: UserEvent) => void;
  loaded: (loaded: Loaded<AppState>) => void;
  reset: (reset: Reset) => void;
  /** Receives events that are not part of the log, as soon as they arrive. Some may be lost. */
  broadcast: (broadcast: Broadcast) => void;
  state: (state: State) => void;
}

/** The client has ended permanently. `code` is "unauthorized" or "refused". */
export class ClientError extends Error {
  override readonly name: string = "ClientError";

  constructor(
    readonly code: string,
    message: string,
  ) {
    super(message === "" ? code : `${code}: ${message}`);
  }
}

/**
 * A message was not published, and is not retried. `code` is "invalid", "too-big", "queue-full", "refused",
 * "invalid-publish" or "closed". With "closed", the message may have been published.
 */
export class PublishError extends ClientError {
  override readonly name = "PublishError";
}

/**
 * A broadcast can never be sent. `code` is "invalid", "too-big", or "refused" if the relay does not allow broadcasts of
 * clients.
 */
export class BroadcastError extends ClientError {
  override readonly name = "BroadcastError";
}

interface Promised {
  resolve: (id: number) => void;
  reject: (error: Error) => void;
}

/** The messages that a client delivers. */
export type Delivered<AppState = never> = UserEvent | Reset | ([AppState] extends [never] ? never : Loaded<AppState>);

/** A message for the application, and the epoch of its log. */
interface Handed<AppState> {
  message: UserEvent | Reset | Loaded<AppState>;
  epoch: string | null;
}

/**
 * A client that delivers one user's events, each once and in order: to listeners (`on("event", …)` and
 * `on("reset", …)`), or to `for await (const message of client)`, which receives both. It starts to connect in a
 * microtask, after the code that creates it has added its listeners.
 */
export class UserRealtime<AppState = never> implements AsyncIterable<Delivered<AppState>> {
  readonly #base: string;
  readonly #options: Options<AppState>;
  readonly #fetch: typeof globalThis.fetch;
  readonly #WebSocket: transports.WebSocketClass | undefined;
  readonly #machine: Machine;
  readonly #listeners = {
    event: new Set(),
    loaded: new Set(),
    reset: new Set(),
    broadcast: new Set(),
    state: new Set(),
  } as {
    [Name in keyof Listeners<AppState>]: Set<Listeners<AppState>[Name]>;
  };
  readonly #published = new Map<string, Promised>();
  #buffer: Handed<AppState>[] = [];
  #takers: (() => void)[] = [];
  #position: Position | null;
  #state: State;
  #connection: transports.Connection | null = null;
  #posting: transports.Connection | null = null;
  #broadcasting: transports.Connection | null = null;
  /** Over HTTP, the relay recognizes the broadcasts of this client by it. */
  readonly #sender = newRef();
  #ear: symbol | null = null;
  #asking: symbol | null = null;
  #loading: AbortController | null = null;
  #result: AppState | undefined;
  #settling = false;
  #closing = false;
  #timer: ReturnType<typeof setTimeout> | undefined;
  #stopWatching: () => void = () => {};

  constructor(options: Options<AppState>) {
    this.#base = transports.baseOf(options.url);
    this.#options = options;
    this.#fetch = options.fetch ?? globalThis.fetch.bind(globalThis);
    this.#WebSocket = options.WebSocket ?? (globalThis.WebSocket as transports.WebSocketClass | undefined);
    const limits = { ...DEFAULTS, ...options.limits };
    if (this.#WebSocket === undefined) {
      limits.transports = limits.transports.filter((transport) => transport !== "websocket");
    }
    const [transport] = limits.transports;
    if (transport === undefined) throw new TypeError("there is no transport: give a WebSocket class, or others");
    const { position = null, state } = options;
    this.#position = typeof position === "string" ? parsePosition(position) : position;
    this.#state = { state: "connecting", transport, reason: "", error: null };
    this.#machine = new Machine(limits, Math.random, this.#position, state !== undefined);
    queueMicrotask(() => {
      if (this.#closing) return;
      this.#stopWatching = this.#watch();
      this.#machine.start(performance.now());
      this.#settle();
    });
  }

  // --- for the application

  get state(): StateName {
    return this.#state.state;
  }

  /** The transport of the connection, or of the attempt to connect. */
  get transport(): Transport {
    return this.#state.transport;
  }

  /** The position after the last message that the application has taken. Store it to continue there later. */
  get position(): Position | null {
    return this.#position;
  }

  /** Why the client is closed permanently; null if it is open or the application closed it. */
  get error(): ClientError | null {
    return this.#state.error;
  }

  /** Adds a listener. The returned function removes it. */
  on<Name extends keyof Listeners>(name: Name, listener: Listeners<AppState>[Name]): () => void {
    this.#listeners[name].add(listener);
    if (name === "broadcast") this.#machine.broadcasts = true;
    if (name === "event" || name === "loaded") queueMicrotask(() => this.#deliver());
    return () => void this.#listeners[name].delete(listener);
  }

  /**
   * Sends a message to the application's inbox, and resolves with its id when it is stored. The message is repeated on
   * new connections until it is acknowledged, and stored once. Rejects with a PublishError if it is not stored.
   */
  publish(event: string, data: unknown = {}, { ref = newRef() }: { ref?: string } = {}): Promise<number> {
    return new Promise((resolve, reject) => {
      if (this.#published.has(ref)) {
        reject(new PublishError("invalid", "a message with this ref is under way"));
        return;
      }
      this.#published.set(ref, { resolve, reject });
      try {
        this.#machine.publish(performance.now(), ref, event, data);
      } catch (error) {
        this.#published.delete(ref); // JSON cannot represent it
        throw error;
      }
      this.#settle();
    });
  }

  /**
   * Sends an event to the user's other clients that are connected, at most once. It is not stored. Returns false if it
   * was dropped, because this client is not connected or sends too many; after true, it may be lost as well. Throws a
   * BroadcastError if the name or the data is not valid, or if the relay has rejected an earlier broadcast because
   * broadcasts of clients are disabled.
   */
  broadcast(event: string, data: unknown = {}): boolean {
    const unsent = this.#machine.broadcast(performance.now(), event, data);
    this.#settle();
    if (unsent !== null && unsent.code !== "not-connected" && unsent.code !== "too-many") {
      throw new BroadcastError(unsent.code, unsent.message);
    }
    return unsent === null;
  }

  /** Closes the connection. The publication of messages without an acknowledgement fails. */
  close(): void {
    this.#closing = true;
    this.#machine.close();
    this.#settle();
  }

  /** Yields the messages in order. Ends when `close` is called; throws a ClientError if the client ends permanently. */
  async *[Symbol.asyncIterator](): AsyncGenerator<Delivered<AppState>, void, void> {
    for (;;) {
      const handed = this.#buffer.shift();
      if (handed !== undefined) {
        if (this.state === "paused" && this.#buffer.length <= BUFFER / 2) {
          this.#machine.resume(performance.now());
          this.#settle();
        }
        this.#take(handed);
        yield handed.message as Delivered<AppState>;
      } else if (this.state === "closed") {
        if (this.error !== null) throw this.error;
        return;
      } else {
        await new Promise<void>((resolve) => this.#takers.push(resolve));
      }
    }
  }

  // --- actions and inputs of the machine

  /** Executes the actions of the machine, and schedules the next `tick`. */
  #settle(): void {
    if (this.#settling) return; // called by a listener: the loop below also executes the new actions
    this.#settling = true;
    try {
      for (let actions = this.#machine.take(); actions.length > 0; actions = this.#machine.take()) {
        for (const action of actions) this.#carryOut(action);
      }
    } finally {
      this.#settling = false;
    }
    clearTimeout(this.#timer);
    const { deadline } = this.#machine;
    if (deadline === null) return;
    const wait = Math.min(Math.max(0, deadline - performance.now()), LONGEST_TIMER);
    this.#timer = setTimeout(() => {
      const now = performance.now();
      this.#machine.tick(deadline - now < EARLY ? Math.max(now, deadline) : now);
      this.#settle();
    }, wait);
  }

  #carryOut(action: Action): void {
    switch (action.do) {
      case "load":
        this.#buffer = [];
        void this.#load(action.load);
        break;
      case "loaded": {
        const { cursor: id, epoch, reset } = action;
        const state = this.#result as AppState;
        this.#result = undefined;
        this.#hand({ message: { type: "loaded", state, position: { id, epoch }, reset }, epoch });
        break;
      }
      case "token":
        void this.#askToken();
        break;
      case "open":
        this.#open(action);
        break;
      case "send":
        this.#connection?.send(action.message);
        break;
      case "post":
        this.#post(action.message, action.token);
        break;
      case "postBroadcast":
        this.#postBroadcast(action);
        break;
      case "drop":
        this.#ear = null;
        this.#connection?.drop();
        this.#connection = null;
        break;
      case "hand":
        this.#hand(action);
        break;
      case "broadcast":
        this.#emit("broadcast", convertible(action.message));
        break;
      case "state":
        this.#change(action.state, action.transport, action.reason, action.error);
        break;
      case "published":
        this.#published.get(action.ref)?.resolve(action.id);
        this.#published.delete(action.ref);
        break;
      case "failed":
        this.#published.get(action.ref)?.reject(new PublishError(action.code, action.message));
        this.#published.delete(action.ref);
        break;
    }
  }

  async #askToken(): Promise<void> {
    const asking = (this.#asking = Symbol("asking"));
    const { token: source } = this.#options;
    let tell: () => void;
    try {
      const token = typeof source === "string" ? source : await source();
      if (typeof token !== "string") throw new TypeError("the token is no string");
      tell = () => this.#machine.token(performance.now(), token, lifeOf(token));
    } catch (error) {
      const reason = error instanceof Error ? error.message : String(error);
      tell = () => this.#machine.noToken(performance.now(), reason);
    }
    if (this.#asking !== asking) return; // a newer request has replaced this one
    tell();
    this.#settle();
  }

  async #load(load: number): Promise<void> {
    this.#loading?.abort();
    const { signal } = (this.#loading = new AbortController());
    let tell: () => void;
    try {
      const found = await this.#options.state?.({ signal });
      if (typeof found?.position !== "string") {
        throw new TypeError("`state` must return {state, position}, with the text of userrealtime.position()");
      }
      tell = () => {
        this.#result = found.state;
        this.#machine.loaded(performance.now(), load, found.position);
      };
    } catch (error) {
      const reason = error instanceof Error ? error.message : String(error);
      tell = () => this.#machine.notLoaded(performance.now(), load, reason);
    }
    if (signal.aborted) return; // a newer call has replaced this one, or the result is no longer needed
    tell();
    this.#settle();
  }

  #open(opening: Open): void {
    const ear = (this.#ear = Symbol("ear"));
    const whileCurrent = (tell: (now: number) => void) => {
      if (this.#ear !== ear) return;
      tell(performance.now());
      this.#settle();
    };
    const told: transports.Ear = {
      message: (message) => whileCurrent((now) => this.#machine.message(now, message)),
      answered: (answer) => whileCurrent((now) => this.#machine.answered(now, answer)),
      heard: () => whileCurrent((now) => this.#machine.heard(now)),
      closed: (code, reason) =>
        whileCurrent((now) => {
          this.#ear = null;
          this.#machine.closed(now, code, reason);
        }),
      refused: (status, reason, retryAfter) =>
        whileCurrent((now) => {
          this.#ear = null;
          this.#machine.refused(now, status, reason, retryAfter);
        }),
    };
    const { parse = null } = this.#options;
    if (opening.transport === "websocket" && this.#WebSocket !== undefined) {
      try {
        this.#connection = transports.websocket(this.#WebSocket, this.#base, opening, told, parse);
      } catch (error) {
        // The token is not a valid subprotocol, or the page may not connect. Report it after this action has ended.
        const reason = error instanceof Error ? error.message : String(error);
        queueMicrotask(() => told.closed(1006, reason));
      }
    } else {
      const open = opening.transport === "sse" ? transports.stream : transports.poll;
      this.#connection = open(this.#fetch, this.#base, opening, this.#sender, told, parse);
    }
  }

  #post(message: Message, token: string): void {
    this.#posting = transports.post(this.#fetch, `${this.#base}/publish`, message, token, (status, body, retryAfter) => {
      this.#machine.posted(performance.now(), message.ref as string, status, body, retryAfter);
      this.#settle();
    });
  }

  #postBroadcast({ number, message, token }: PostBroadcast): void {
    const url = `${this.#base}/broadcast?sender=${this.#sender}`;
    this.#broadcasting = transports.post(this.#fetch, url, message, token, (status, body) => {
      this.#machine.broadcastPosted(number, status, body);
      this.#settle();
    });
  }

  #hand(handed: Handed<AppState>): void {
    if (handed.message.type === "event") handed = { ...handed, message: convertible(handed.message) };
    if (this.#options.receive === false && !this.#listens()) {
      this.#take(handed);
      return;
    }
    this.#buffer.push(handed);
    this.#deliver();
    if (this.#buffer.length >= BUFFER) this.#machine.pause();
    this.#wake();
  }

  /** Delivers the waiting messages to the listeners, if there are any. */
  #deliver(): void {
    while (this.#listens() && !this.#closing) {
      const handed = this.#buffer.shift();
      if (handed === undefined) break;
      this.#take(handed);
      if (handed.message.type === "event") this.#emit("event", handed.message);
      else if (handed.message.type === "loaded") this.#emit("loaded", handed.message);
      else this.#emit("reset", handed.message);
    }
    if (this.state === "paused" && this.#buffer.length <= BUFFER / 2) {
      this.#machine.resume(performance.now());
      this.#settle();
    }
  }

  #listens(): boolean {
    return this.#listeners.event.size + this.#listeners.loaded.size > 0;
  }

  #take({ message, epoch }: Handed<AppState>): void {
    if (message.type === "loaded") this.#position = message.position;
    else this.#position = { id: message.type === "event" ? message.id : message.cursor, epoch };
  }

  #wake(): void {
    const takers = this.#takers;
    this.#takers = [];
    for (const wake of takers) wake();
  }

  #change(state: StateName, transport: Transport, reason: string, error: ErrorCode | null): void {
    this.#state = { state, transport, reason, error: error === null ? null : new ClientError(error, reason) };
    if (state === "connected") this.#position ??= this.#machine.position;
    if (state === "closed") this.#stopWatching();
    if (state !== "loading") this.#loading?.abort(); // no effect after the call has ended
    if (state !== "connected") {
      this.#posting?.drop(); // the machine would ignore the response
      this.#posting = null;
      this.#broadcasting?.drop();
      this.#broadcasting = null;
    }
    this.#wake();
    this.#emit("state", this.#state);
  }

  #emit<Name extends keyof Listeners>(name: Name, value: Parameters<Listeners<AppState>[Name]>[0]): void {
    for (const listener of [...this.#listeners[name]] as ((value: unknown) => void)[]) {
      try {
        listener(value);
      } catch (error) {
        // An error of the application must not stop the client.
        queueMicrotask(() => {
          throw error;
        });
      }
    }
  }

  /** Watches for changes of the network and for a suspended machine. The returned function stops that. */
  #watch(): () => void {
    const probe = () => {
      this.#machine.probe(performance.now());
      this.#settle();
    };
    const offline = () => this.#machine.offline();
    let ahead = Date.now() - performance.now();
    const timer = setInterval(() => {
      const before = ahead;
      ahead = Date.now() - performance.now();
      if (ahead - before > JUMP) probe();
    }, WATCH);
    const window = typeof globalThis.addEventListener === "function" ? globalThis : null;
    window?.addEventListener("online", probe);
    window?.addEventListener("offline", offline);
    return () => {
      clearInterval(timer);
      window?.removeEventListener("online", probe);
      window?.removeEventListener("offline", offline);
    };
  }
}

/** Returns a message whose data, if it could not be converted, is replaced by the error and the text. */
function convertible<Kind extends UserEvent | Broadcast>(message: Kind): Kind {
  if (!(message.data instanceof Unparsed)) return message;
  const { text, error } = message.data;
  return { ...message, data: null, error, text };
}

/** Returns the milliseconds until a token expires, by the local clock; null if it has no readable `exp`. */
function lifeOf(token: string): number | null {
  try {
    const payload = (token.split(".")[1] ?? "").replace(/-/g, "+").replace(/_/g, "/");
    const { exp } = JSON.parse(atob(payload)) as { exp?: unknown };
    return typeof exp === "number" ? 1000 * exp - Date.now() : null;
  } catch {
    return null;
  }
}

/** Returns a UUID. `crypto.randomUUID` exists only in secure contexts, and a page under test may not be one. */
function newRef(): string {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  bytes[6] = ((bytes[6] ?? 0) & 0x0f) | 0x40;
  bytes[8] = ((bytes[8] ?? 0) & 0x3f) | 0x80;
  const hex = [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
  return hex.replace(/^(.{8})(.{4})(.{4})(.{4})(.{12})$/, "$1-$2-$3-$4-$5");
}
