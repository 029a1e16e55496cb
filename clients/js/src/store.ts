/**
 * The state of an application, kept up to date by a client, for frameworks that draw it. `react.ts`, `vue.ts` and
 * `svelte.ts` are thin layers over it.
 */

import { UserRealtime, type ClientError, type Options, type Snapshot } from "./client.js";
import type { Broadcast, Position, StateName, UserEvent } from "./machine.js";

export interface StoreOptions<AppState> extends Omit<Options<AppState>, "url" | "position" | "state" | "receive"> {
  /** The user's URL, `status.url` of the UserRealtime; null while there is no user, for no connection. */
  url: string | null;
  /** Returns the state of the application and its position in the log. */
  state: NonNullable<Options<AppState>["state"]>;
  /** Returns the state after an event. It must not change the state that it is given. */
  reduce: (state: AppState, event: UserEvent) => AppState;
  /** Called with each broadcast. It is not part of `state`: it has no position, and may be lost. */
  onBroadcast?: ((broadcast: Broadcast) => void) | undefined;
  /** A state that the page already has, such as from the server that rendered it. `state` is then not called first. */
  initial?: Snapshot<AppState> | undefined;
}

/** The values to render. A view is immutable: a change creates a new one. */
export interface View<AppState> {
  /** Undefined until the first one is loaded. */
  readonly state: AppState | undefined;
  readonly status: StateName;
  /** Why the client is not connected. */
  readonly reason: string;
  /** Why the client is closed permanently. */
  readonly error: ClientError | null;
}

/** The view before there is a client. The same on a server and in a browser. */
export function firstView<AppState>({ url, initial }: StoreOptions<AppState>): View<AppState> {
  return { state: initial?.state, status: url === null ? "closed" : "loading", reason: "", error: null };
}

/** One user's state. It connects with its first subscriber, and closes when it has none and nothing to publish. */
export class Store<AppState> {
  /** The options of the component that was rendered last. Their functions are called. */
  options: StoreOptions<AppState>;
  #view: View<AppState>;
  #client: UserRealtime<AppState> | null = null;
  #position: Position | string | null;
  #publishing = 0;
  #telling = false;
  readonly #subscribers = new Set<() => void>();
  readonly #closed: () => void;

  constructor(options: StoreOptions<AppState>, view = firstView(options), closed: () => void = () => {}) {
    this.options = options;
    this.#view = view;
    this.#closed = closed;
    this.#position = options.initial?.position ?? null;
  }

  get view(): View<AppState> {
    return this.#view;
  }

  /** Calls the listener after each change of the view. The returned function removes it. */
  subscribe(listener: () => void): () => void {
    const subscriber = () => listener();
    this.#subscribers.add(subscriber);
    this.#client ??= this.#connect();
    return () => {
      this.#subscribers.delete(subscriber);
      this.#release();
    };
  }

  /** Sends a message to the application's inbox, as the client's `publish` does. */
  async publish(event: string, data?: unknown, options?: { ref?: string }): Promise<number> {
    if (this.options.url === null) throw new Error("there is no user: `url` is null");
    this.#client ??= this.#connect();
    if (this.#client === null) throw new Error("there is no connection");
    this.#publishing += 1;
    try {
      return await this.#client.publish(event, data, options);
    } finally {
      this.#publishing -= 1;
      this.#release();
    }
  }

  /** Sends a broadcast to the user's other devices, as the client's `broadcast` does. Returns whether it was sent. */
  broadcast(event: string, data?: unknown): boolean {
    return this.#client?.broadcast(event, data) ?? false;
  }

  #connect(): UserRealtime<AppState> | null {
    const { url, reduce: _, initial: __, onBroadcast, ...options } = this.options;
    if (url === null) return null;
    const { token } = options;
    const client = new UserRealtime<AppState>({
      ...options,
      url,
      position: this.#position,
      token: typeof token === "string" ? token : async () => this.#token(),
      state: (context) => this.options.state(context),
    });
    client.on("loaded", ({ state }) => this.#show({ state }));
    client.on("event", (event) => {
      this.#show({ state: this.options.reduce(this.#view.state as AppState, event) });
    });
    if (onBroadcast !== undefined) client.on("broadcast", (broadcast) => this.options.onBroadcast?.(broadcast));
    client.on("state", ({ state: status, reason, error }) => this.#show({ status, reason, error }));
    return client;
  }

  #token(): string | Promise<string> {
    const { token } = this.options;
    return typeof token === "string" ? token : token();
  }

  #show(changes: Partial<View<AppState>>): void {
    this.#view = { ...this.#view, ...changes };
    if (this.#telling) return;
    this.#telling = true; // one notification for all changes of the same task
    queueMicrotask(() => {
      this.#telling = false;
      for (const subscriber of [...this.#subscribers]) subscriber();
    });
  }

  /** Closes an unused client after a delay: a component that replaces another subscribes after the other has left. */
  #release(): void {
    setTimeout(() => {
      if (this.#subscribers.size > 0 || this.#publishing > 0 || this.#client === null) return;
      const client = this.#client;
      this.#client = null;
      this.#position = this.#view.state === undefined ? null : client.position;
      client.close();
      this.#closed();
    }, 0);
  }
}

const stores = new Map<string, Store<never>>();

/** Returns the store of a user, if it has subscribers. */
export function storeOf<AppState>(url: string | null): Store<AppState> | undefined {
  return url === null ? undefined : (stores.get(url) as Store<AppState> | undefined);
}

/** Returns the store that all components with the same URL share. Not for a server: users must not share anything. */
export function sharedStore<AppState>(options: StoreOptions<AppState>, view?: View<AppState>): Store<AppState> {
  const { url } = options;
  const known = storeOf<AppState>(url);
  if (known !== undefined) return known;
  const store: Store<AppState> = new Store(options, view, () => {
    if (url !== null) stores.delete(url);
  });
  if (url !== null) stores.set(url, store as unknown as Store<never>);
  return store;
}
