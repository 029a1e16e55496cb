/** React: `useUserRealtime` draws the state of an application and keeps it up to date. */

import { useCallback, useEffect, useMemo, useRef, useSyncExternalStore } from "react";

import { firstView, sharedStore, storeOf, type StoreOptions, type View } from "./store.js";

export type { StoreOptions, View } from "./store.js";

export interface Realtime<AppState> extends View<AppState> {
  /** Sends a message to the application's inbox, and resolves with its id when it is stored. */
  publish: (event: string, data?: unknown, options?: { ref?: string }) => Promise<number>;
  /** Sends a broadcast to the user's other devices. Returns false if it was not sent, such as without a connection. */
  broadcast: (event: string, data?: unknown) => boolean;
}

/**
 * The state of the application, the connection status, `publish` and `broadcast`.
 *
 * All components that use the same `url` share one connection and one state: give them the same `state` and `reduce`, for
 * example in a custom hook. On a server, and in the first rendering of a page that a server has rendered, the state is
 * `initial`.
 */
export function useUserRealtime<AppState>(
  options: StoreOptions<AppState> & { initial: object },
): Realtime<AppState> & { state: AppState };
export function useUserRealtime<AppState>(options: StoreOptions<AppState>): Realtime<AppState>;
export function useUserRealtime<AppState>(options: StoreOptions<AppState>): Realtime<AppState> {
  const { url } = options;
  const first = useMemo(() => firstView(options), [url]);
  const latest = useRef(options);
  useEffect(() => {
    latest.current = options;
    const store = storeOf<AppState>(url);
    if (store !== undefined) store.options = options;
  });
  const subscribe = useCallback(
    (listener: () => void) => (url === null ? () => {} : sharedStore(latest.current, first).subscribe(listener)),
    [url, first],
  );
  const view = useSyncExternalStore(
    subscribe,
    () => storeOf<AppState>(url)?.view ?? first,
    () => first,
  );
  const publish = useCallback<Realtime<AppState>["publish"]>(
    async (event, data, more) => {
      if (url === null) throw new Error("there is no user: `url` is null");
      return sharedStore(latest.current, first).publish(event, data, more);
    },
    [url, first],
  );
  const broadcast = useCallback<Realtime<AppState>["broadcast"]>(
    (event, data) => storeOf<AppState>(url)?.broadcast(event, data) ?? false,
    [url],
  );
  return useMemo(() => ({ ...view, publish, broadcast }), [view, publish, broadcast]);
}
