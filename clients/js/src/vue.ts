/** Vue 3: `useUserRealtime` returns the state of an application as refs, and keeps it up to date. */

import { computed, onMounted, onScopeDispose, shallowRef, type ComputedRef } from "vue";

import { firstView, sharedStore, storeOf, type StoreOptions, type View } from "./store.js";

export type { StoreOptions } from "./store.js";

export interface Realtime<AppState> {
  state: ComputedRef<AppState | undefined>;
  status: ComputedRef<View<AppState>["status"]>;
  reason: ComputedRef<string>;
  error: ComputedRef<View<AppState>["error"]>;
  publish: (event: string, data?: unknown, options?: { ref?: string }) => Promise<number>;
  broadcast: (event: string, data?: unknown) => boolean;
}

/** Returns the state of the application; call it in `setup`. Components with the same `url` share it. */
export function useUserRealtime<AppState>(options: StoreOptions<AppState>): Realtime<AppState> {
  const view = shallowRef(firstView(options));
  let stop = () => {};
  // Only when mounted: a server renders the first view and opens no connection.
  onMounted(() => {
    const store = sharedStore(options, view.value);
    stop = store.subscribe(() => (view.value = store.view));
    view.value = store.view;
  });
  onScopeDispose(() => stop());
  return {
    state: computed(() => view.value.state),
    status: computed(() => view.value.status),
    reason: computed(() => view.value.reason),
    error: computed(() => view.value.error),
    publish: (event, data, more) => sharedStore(options).publish(event, data, more),
    broadcast: (event, data) => storeOf<AppState>(options.url)?.broadcast(event, data) ?? false,
  };
}
