// The page: the user's state and events from the client, pods and users from the server, and the buttons.

import { UserRealtime } from "./userrealtime/index.js";

const MOST_EVENTS = 80;
const MOST_MESSAGES = 50; // as the server's state
const MOST_HAPPENINGS = 40;
const RETRY_MS = 1500;
const LOOK_AGAIN_MS = 200;

const TRANSPORTS = { websocket: "WebSocket", sse: "SSE", poll: "Long poll" };
const STATES = {
  loading: "Loading",
  connecting: "Connecting",
  connected: "Connected",
  waiting: "Reconnecting",
  paused: "Paused",
  closed: "Closed",
  off: "Signed off",
};
const USER_STATES = { missing: "None", starting: "Starting", ready: "Ready", asleep: "Asleep", trouble: "In trouble" };

const $ = (id) => document.getElementById(id);

// --- elements: published content is only ever added as text, never as HTML

function element(name, properties = {}, ...children) {
  const made = document.createElement(name);
  const { data = {}, ...others } = properties;
  Object.assign(made, others);
  Object.assign(made.dataset, data);
  made.append(...children);
  return made;
}

function text(id, value) {
  if ($(id).textContent !== value) $(id).textContent = value;
}

function prepend(list, item, most) {
  list.prepend(item);
  while (list.children.length > most) list.lastElementChild.remove();
}

// --- time: events have the time of the database, and ages are relative to its clock

let clockAhead = 0;
const now = () => Date.now() + clockAhead;

function age(since) {
  const seconds = Math.max(0, (now() - Date.parse(since)) / 1000);
  if (seconds < 1) return "now";
  if (seconds < 60) return `${Math.floor(seconds)} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min`;
  if (seconds < 86400) return `${Math.floor(seconds / 3600)} h`;
  return `${Math.floor(seconds / 86400)} d`;
}

function aged(since) {
  return element("time", { dateTime: since, title: new Date(since).toLocaleString(), data: { age: "" } }, age(since));
}

function updateAges() {
  for (const shown of document.querySelectorAll("time[data-age]")) {
    const current = age(shown.dateTime);
    if (shown.textContent !== current) shown.textContent = current;
  }
}

const clock = () => new Date().toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23" });

// --- the server

class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

/** Send GET, or POST with `body`, and return the content of the response. Throws Refused, with a message to show. */
async function call(path, body, signals = []) {
  let answer;
  try {
    answer = await fetch(path, {
      method: body === undefined ? "GET" : "POST",
      body: body === undefined ? undefined : JSON.stringify(body),
      headers: body === undefined ? {} : { "Content-Type": "application/json" },
      signal: AbortSignal.any([AbortSignal.timeout(20_000), ...signals]),
    });
  } catch {
    throw new Refused(0, "The server does not answer.");
  }
  const content = answer.status === 204 ? null : await answer.json().catch(() => null);
  if (!answer.ok) throw new Refused(answer.status, content?.error ?? `The server answered ${answer.status}.`);
  return content;
}

function notice(message, bad = false) {
  $("notice").classList.toggle("bad", bad);
  text("notice", message);
}

/** Run the action of a button, which is disabled meanwhile. */
async function act(button, action) {
  button.disabled = true;
  try {
    await action();
  } catch (error) {
    notice(error.message, true);
    if (error.status === 401) showLogin();
  } finally {
    button.disabled = false;
  }
}

// --- the timeline

function happened(...what) {
  const item = element("li", {}, element("time", {}, clock()), element("span", {}, ...what));
  prepend($("timeline"), item, MOST_HAPPENINGS);
  return item;
}

// --- the user's state: loaded with its position in the log, then changed by each event after that position

let messages = new Map();
let ticks = null;

function applyEvent({ event, data }) {
  if (event === "note") messages.set(data.number, data);
  else if (event === "tick") ticks = data.number;
  else return;
  showState();
}

function applyState(state) {
  messages = new Map(state.messages.map((message) => [message.number, message]));
  ticks = state.ticks;
  showState();
}

function showState() {
  // Numbers are assigned before the commit, so a message can arrive after one with a higher number.
  const newest = [...messages.values()].sort((one, other) => other.number - one.number).slice(0, MOST_MESSAGES);
  messages = new Map(newest.map((message) => [message.number, message]));
  $("messages").replaceChildren(
    ...newest.map(({ number, from, text: content, sent }) =>
      element(
        "li",
        { data: { message: number } },
        element("span", { className: "small quiet" }, from),
        element("span", { className: "what" }, content),
        aged(sent),
      ),
    ),
  );
  $("no-messages").hidden = newest.length > 0;
  text("ticks", ticks === null ? "–" : String(ticks));
}

// --- the user's client

/** Counts the events of a session: ids that are missing or repeated, and events replayed after a disconnect. */
class Account {
  received = 0;
  missed = 0;
  twice = 0;
  last = null;
  #cut = null; // the time of the disconnect, while there is no connection
  #resumed = null; // the last reconnect
  #reloaded = false; // the state was loaded again, and the client has not connected since

  connected() {
    if (this.#reloaded) {
      this.#reloaded = false;
      this.#cut = this.#resumed = null;
      happened("Connected again");
      return;
    }
    if (this.#cut === null) {
      if (this.#resumed === null) happened("Connected");
      return;
    }
    const seconds = ((performance.now() - this.#cut.at) / 1000).toFixed(1);
    this.#resumed = { until: now(), made: 0, seconds, missed: this.missed, item: happened() };
    this.#resumed.item.classList.add("resumed");
    this.#cut = null;
    this.#show();
  }

  disconnected(reason) {
    if (this.#cut !== null) return;
    this.#cut = { at: performance.now() };
    happened("Disconnected", reason ? ` (${reason})` : "");
  }

  /** Count an event, and return whether it was committed while there was no connection. */
  event(event) {
    this.received += 1;
    if (this.last !== null) {
      if (event.id <= this.last) this.twice += 1;
      else this.missed += event.id - this.last - 1;
    }
    this.last = event.id;
    const late = this.#resumed !== null && Date.parse(event.at) < this.#resumed.until;
    if (late) {
      this.#resumed.made += 1;
      this.#show();
    }
    return late;
  }

  loaded({ position, reset }) {
    this.last = position.id;
    if (reset === null) {
      happened(`State loaded, after event ${position.id}`);
      return;
    }
    // The connection that reported the reset has not resumed anything.
    if (this.#resumed?.made === 0) this.#resumed.item.remove();
    this.#reloaded = true;
    const reloaded = element("strong", {}, "State loaded again");
    happened(reloaded, `, after event ${position.id}: the log lacks what followed the tab's position (${reset})`);
    $("timeline").firstElementChild.classList.add("reloaded");
  }

  #show() {
    const { item, made, seconds, missed } = this.#resumed;
    const gap = this.missed - missed;
    item.classList.toggle("incomplete", gap > 0);
    item.dataset.made = made;
    item.lastElementChild.replaceChildren(
      element("strong", {}, `Resumed after ${seconds} s`),
      `: ${made} ${made === 1 ? "event" : "events"} replayed, ${gap} missed`,
    );
  }
}

let user = null;
let client = null;
let signedOff = false;
let account = null;
let feed = null;

function showConnection({ state, transport, reason }) {
  $("state").dataset.state = state;
  text("state", STATES[state] ?? state);
  text("reason", reason ?? "");
  if (transport) text("transport", TRANSPORTS[transport] ?? transport);
}

function showAccount() {
  text("last", account.last === null ? "–" : String(account.last));
  text("received", String(account.received));
  text("missed", String(account.missed));
  $("missed").className = `number ${account.missed ? "bad" : "good"}`;
  text("twice", account.twice ? `${account.twice} twice` : "");
}

function showEvent(event, late) {
  const what = element("span", { className: "what" }, element("span", { className: "name" }, event.event), ` ${words(event)}`);
  const id = element("span", { className: "id" }, `#${event.id}`);
  const item = element("li", { className: late ? "late" : "", data: { id: event.id } }, id, what, aged(event.at));
  if (late) id.title = "replayed after a disconnect";
  prepend($("events"), item, MOST_EVENTS);
  $("no-events").hidden = true;
}

function words({ event, data }) {
  if (event === "note") return data.from === user ? data.text : `${data.from}: ${data.text}`;
  if (event === "echo") return data.error ?? `${data.text} (inbox ${data.inbox})`;
  if (event === "tick") return `number ${data.number}`;
  const json = JSON.stringify(data);
  return json.length > 200 ? `${json.slice(0, 200)}…` : json;
}

/** Connect, from the position of the previous client if there is one. */
async function connect() {
  const mine = user;
  let url;
  while (url === undefined) {
    // A new user has no URL yet; a sleeping user has one.
    const served = latest?.state === "ready" || latest?.state === "asleep";
    try {
      if (served) ({ url } = await call("token"));
      else showConnection({ state: "connecting", reason: "once the pod is ready" });
    } catch (error) {
      if (error.status === 401) return showLogin();
      showConnection({ state: "connecting", reason: error.message });
    }
    if (url === undefined) await new Promise((resolve) => setTimeout(resolve, served ? RETRY_MS : LOOK_AGAIN_MS));
    if (user !== mine) return;
  }
  client = new UserRealtime({
    url,
    token: async () => (await call("token")).token,
    state: ({ signal }) => call("state", undefined, [signal]),
    position: client?.position,
  });
  client.on("state", (change) => {
    showConnection(change);
    if (change.state === "connected") account.connected();
    else if ($("demo").dataset.connected === "true") account.disconnected(change.reason);
    $("demo").dataset.connected = change.state === "connected";
    if (change.error) begin(); // another user may be logged in now
  });
  client.on("event", (event) => {
    applyEvent(event);
    showEvent(event, account.event(event));
    showAccount();
  });
  client.on("loaded", (loaded) => {
    applyState(loaded.state);
    account.loaded(loaded);
    showAccount();
  });
}

// --- pods and people

let podKeys = "";

function showPods({ state, reason, message, maySleep, pods }) {
  $("pod-state").dataset.state = state;
  text("pod-state", USER_STATES[state] ?? state);
  $("pod-message").hidden = state !== "trouble";
  text("pod-message", `${reason}: ${message}`);
  const key = JSON.stringify(pods);
  if (key !== podKeys) {
    podKeys = key;
    $("pods").replaceChildren(...(pods.length ? pods.map(podItem) : [element("li", { className: "quiet" }, "No pod.")]));
  }
  $("kill").disabled = !pods.some((pod) => pod.phase !== "Terminating");
  $("sleep").hidden = !maySleep || signedOff;
  $("wake").hidden = !signedOff;
}

function podItem(pod) {
  const kind = pod.phase === "Terminating" ? "leaving" : pod.ready ? "ready" : "starting";
  const badge = element("span", { className: "badge", data: { state: kind } }, pod.phase);
  const restarts = pod.restarts ? `, ${pod.restarts} restarts` : "";
  return element(
    "li",
    { data: { pod: pod.name } },
    element("code", {}, pod.name),
    element("span", { className: "small quiet" }, badge, " ", aged(pod.created), restarts),
  );
}

let peopleKey = "";

function showPeople(people) {
  const key = JSON.stringify(people);
  if (key === peopleKey) return;
  peopleKey = key;
  if (people === null) {
    $("people").replaceChildren(element("li", { className: "quiet" }, "The database does not answer."));
    return;
  }
  const items = Object.entries(people).map(([name, { clients, since }]) => {
    const told = clients ? [`${clients} ${clients === 1 ? "client" : "clients"}, `, aged(since)] : ["offline"];
    return element(
      "li",
      { data: { person: name } },
      element("span", { className: `avatar ${name}`, ariaHidden: "true" }, name[0].toUpperCase()),
      element("span", {}, name === user ? `${name} (you)` : name),
      element("span", { className: "online", data: { online: clients > 0 } }, element("span", {}, ...told)),
    );
  });
  $("people").replaceChildren(...items);
}

let latest = null;

function show(state) {
  latest = state;
  clockAhead = Date.parse(state.now) - Date.now();
  showPods(state);
  showPeople(state.people);
}

function watch() {
  feed?.close();
  const mine = (feed = new EventSource("watch"));
  feed.onmessage = ({ data }) => show(JSON.parse(data));
  feed.onerror = () => {
    $("pod-message").hidden = false;
    text("pod-message", "The server does not answer: this information may be out of date.");
    // The browser reconnects, unless the server rejected the request.
    if (mine.readyState === EventSource.CLOSED && mine === feed) setTimeout(() => mine === feed && begin(), RETRY_MS);
  };
}

// --- login and logout

function showLogin() {
  client?.close();
  feed?.close();
  user = client = feed = null;
  signedOff = false;
  $("demo").hidden = $("who").hidden = true;
  $("login").hidden = false;
  document.querySelector("[data-login]").focus();
}

function enter(about) {
  if (about.user === null) return showLogin();
  watch();
  if (user === about.user) return;
  user = about.user;
  client?.close();
  client = null;
  signedOff = false;
  account = new Account();
  messages.clear();
  ticks = null;
  showState();
  for (const list of ["events", "timeline", "pods", "people"]) $(list).replaceChildren();
  podKeys = peopleKey = "";
  latest = null;
  $("no-events").hidden = false;
  showAccount();
  text("me", user);
  text("notice", "");
  const avatar = document.querySelector("[data-initial]");
  avatar.textContent = user[0].toUpperCase();
  avatar.className = `avatar ${user}`;
  $("to").replaceChildren(...about.users.map((name) => element("option", { value: name, selected: name === user }, name)));
  $("login").hidden = true;
  $("demo").hidden = $("who").hidden = false;
  connect();
}

async function begin() {
  try {
    enter(await call("me"));
  } catch {
    setTimeout(begin, RETRY_MS);
  }
}

for (const button of document.querySelectorAll("[data-login]")) {
  button.addEventListener("click", () =>
    act(button, async () => enter(await call("login", { user: button.dataset.login }))),
  );
}

$("logout").addEventListener("click", () =>
  act($("logout"), async () => {
    await call("logout", {});
    showLogin();
  }),
);

$("publish").addEventListener("submit", (submitted) => {
  submitted.preventDefault();
  const button = submitted.submitter;
  act(button, async () => {
    const said = $("text").value;
    if (button.value === "socket") {
      const id = await client.publish("note", { text: said });
      notice(`Stored in the inbox as number ${id}.`);
    } else {
      await call("publish", { to: $("to").value, text: said });
      notice(`Published to ${$("to").value}.`);
    }
    // Keep a text that was edited in the meantime.
    if ($("text").value === said) $("text").value = "";
  });
});

$("traffic").addEventListener("click", () =>
  act($("traffic"), async () => {
    await call("traffic", {});
    notice("Four events a second, for 30 seconds.");
  }),
);

$("kill").addEventListener("click", () =>
  act($("kill"), async () => {
    await call("kill", {});
    happened("You killed the pod");
  }),
);

$("sleep").addEventListener("click", () =>
  act($("sleep"), async () => {
    await call("sleep", {});
    signedOff = true;
    client.close();
    showConnection({ state: "off", reason: "the pod can sleep" });
    happened("You signed off: without a connected client, the pod sleeps within half a minute");
    show(latest);
  }),
);

$("wake").addEventListener("click", () =>
  act($("wake"), async () => {
    await call("wake", {});
    signedOff = false;
    happened("You came back: the connection wakes the pod");
    show(latest);
    await connect();
  }),
);

setInterval(updateAges, 1000);
begin();
