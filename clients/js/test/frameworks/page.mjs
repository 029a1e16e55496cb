// React, Vue and a Svelte store on one relay, in a browser. Driven by tests/clients/test_frameworks.py.
import { createElement as h, StrictMode } from "react";
import { flushSync } from "react-dom";
import { createRoot, hydrateRoot } from "react-dom/client";
import { renderToString } from "react-dom/server.browser";
import { UserRealtime } from "userrealtime";
import { useUserRealtime } from "userrealtime/react";
import { userRealtime } from "userrealtime/svelte";
import { useUserRealtime as useVue } from "userrealtime/vue";
import { createApp, h as vueElement } from "vue";

const QUICK = { backoff: 50, backoffMost: 500 };

/** The history of the page: opened and open connections, calls of `state`, and errors. */
const seen = { opened: 0, open: 0, loads: 0, errors: [], published: [], broadcasts: [], heard: [] };

class CountedWebSocket extends WebSocket {
  constructor(...given) {
    super(...given);
    seen.opened += 1;
    seen.open += 1;
    this.addEventListener("close", () => (seen.open -= 1));
  }
}

const stage = async (method, args = []) =>
  (await fetch(`/do/${method}`, { method: "POST", body: JSON.stringify(args) })).json();

const { url } = await stage("describe");

/** The state is {last, events}: the number of the last change, and the number of changes that arrived as events. */
const options = {
  url,
  token: async () => (await fetch("/token")).text(),
  WebSocket: CountedWebSocket,
  limits: QUICK,
  state: async () => {
    seen.loads += 1;
    const { state, position } = await stage("snapshot");
    return { state: { last: state, events: 0 }, position };
  },
  reduce: (state, { data }) => {
    if (data.n !== state.last + 1) seen.errors.push(`${data.n} after ${state.last}`);
    return { last: data.n, events: state.events + 1 };
  },
  onBroadcast: ({ event, data }) => seen.broadcasts.push(`${event} ${data}`),
};

/** How each drawn component sends broadcasts, by its id. */
const senders = {};

const words = ({ state, status }) => `${state?.last ?? "none"} ${status}`;

function Shown({ id, more = {} }) {
  const realtime = useUserRealtime({ ...options, ...more });
  senders[id] = realtime.broadcast;
  const publish = () =>
    realtime.publish("note.added", { by: id }).then(
      (number) => seen.published.push(number),
      (error) => seen.errors.push(error.message),
    );
  return h("button", { id, onClick: publish }, words(realtime));
}

const roots = new Map();

function place(name) {
  const element = document.createElement("div");
  element.id = `root-${name}`;
  document.body.append(element);
  return element;
}

const strict = (...children) => h(StrictMode, null, ...children);
const shown = (ids, more) => ids.map((id) => h(Shown, { key: id, id, more }));

Object.assign(window, {
  seen,
  stage,
  senders,

  /** Another device of the user, which keeps what it receives, and answers it. */
  async listen() {
    const client = new UserRealtime({ url, token: options.token, limits: QUICK });
    client.on("broadcast", ({ event, data }) => {
      seen.heard.push(`${event} ${data}`);
      client.broadcast("reply", data);
    });
    await new Promise((resolve) => client.on("state", ({ state }) => state === "connected" && resolve()));
  },

  text: (id) => document.getElementById(id)?.textContent ?? null,

  /** Renders components in a separate root, or replaces the components in it. */
  draw(name, ids, more) {
    if (!roots.has(name)) roots.set(name, createRoot(place(name)));
    flushSync(() => roots.get(name).render(strict(...shown(ids, more))));
  },

  remove(name) {
    roots.get(name).unmount();
    roots.delete(name);
  },

  /** Renders on a server, and hydrates the result in the browser. */
  async hydrate(name, id) {
    const snapshot = await options.state();
    seen.loads = 0;
    const before = seen.opened;
    const page = strict(...shown([id], { initial: snapshot }));
    const element = place(name);
    element.innerHTML = renderToString(page);
    const rendered = element.textContent;
    if (seen.opened !== before) seen.errors.push("the server has connected");
    await stage("publish", [2]);
    roots.set(name, hydrateRoot(element, page, { onRecoverableError: (error) => seen.errors.push(String(error)) }));
    return rendered;
  },

  vue(name, id) {
    const app = createApp({
      setup() {
        const { state, status, publish, broadcast } = useVue(options);
        senders[id] = broadcast;
        const onClick = async () => seen.published.push(await publish("note.added", { by: id }));
        return () => vueElement("button", { id, onClick }, words({ state: state.value, status: status.value }));
      },
    });
    app.mount(place(name));
    roots.set(name, app);
  },

  svelte(name, id) {
    const element = place(name);
    element.append(document.createElement("button"));
    element.firstChild.id = id;
    const store = userRealtime(options);
    senders[id] = store.broadcast;
    const stop = store.subscribe((view) => (element.firstChild.textContent = words(view)));
    element.firstChild.onclick = async () => seen.published.push(await store.publish("note.added", { by: id }));
    roots.set(name, {
      unmount: () => {
        stop();
        element.firstChild.remove();
      },
    });
  },
});

const { error } = console;
console.error = (...given) => {
  seen.errors.push(given.join(" "));
  error(...given);
};
window.ready = true;
