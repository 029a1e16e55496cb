/** Svelte: a readable store of the state of an application, kept up to date. It does not import Svelte. */

import { firstView, sharedStore, storeOf, type StoreOptions, type View } from "./store.js";

export type { StoreOptions, View } from "./store.js";

export interface Realtime<AppState> {
  /** The contract of a Svelte store: `$realtime` is a view with `state`, `status`, `reason` and `error`. */
  subscribe: (run: (view: View<AppState>) => void) => () => void;
  publish: (event: string, data?: unknown, options?: { ref?: string }) => Promise<number>;
  broadcast: (event: string, data?: unknown) => boolean;
}

/** Stores of the same `url` share one connection and one state. */
export function userRealtime<AppState>(options: StoreOptions<AppState>): Realtime<AppState> {
  return {
    subscribe: (run) => {
      if (typeof document === "undefined") {
        run(firstView(options)); // a server renders the first view and connects nothing
        return () => {};
      }
      const store = sharedStore(options);
      run(store.view);
      return store.subscribe(() => run(store.view));
    },
    publish: (event, data, more) => sharedStore(options).publish(event, data, more),
    broadcast: (event, data) => storeOf<AppState>(options.url)?.broadcast(event, data) ?? false,
  };
}
