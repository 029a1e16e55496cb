// Many clients of one user, for a while: `k6 run -e URL=... bench/load/user.js`, with TOKEN in the environment.
// README.md beside this file says more.

import { WebSocket } from "k6/websockets";
import { Counter, Trend } from "k6/metrics";
import { fail } from "k6";

const url = (__ENV.URL || fail("URL is missing: the status.url of a user, such as https://realtime.example.com/alice"))
  .replace(/^http/, "ws")
  .replace(/(\/ws)?\/?$/, "/ws");
const token = __ENV.TOKEN || fail("TOKEN is missing: export TOKEN=$(userrealtime token alice)");
const clients = number("CLIENTS", 10);
const seconds = number("SECONDS", 30);
const rampSeconds = number("RAMP_SECONDS", 5);
const enough = number("EVENTS", 0);
const publishPerSecond = number("PUBLISH_PER_SECOND", 0);

// The inbox stores a message with a known ref only once, so each run needs new refs.
const run = Math.floor(Math.random() * 1e9);
const LAST_BACKOFF_MS = 15000;
// Close codes after which a reconnection would be closed again; docs/relay.md describes all codes.
const TERMINAL = [1003, 1007, 1008, 1009, 4001];

const connecting = new Trend("userrealtime_connecting", true);
const latency = new Trend("userrealtime_latency", true);
const acks = new Trend("userrealtime_ack", true);
const events = new Counter("userrealtime_events");
const wrong = new Counter("userrealtime_wrong");
const resets = new Counter("userrealtime_resets");
const reconnects = new Counter("userrealtime_reconnects");
const failures = new Counter("userrealtime_failures");
const refusals = new Counter("userrealtime_refusals");

export const options = {
  scenarios: {
    clients: {
      executor: "per-vu-iterations",
      vus: clients,
      iterations: 1,
      maxDuration: `${seconds + rampSeconds + 30}s`,
    },
  },
  thresholds: {
    // Each of these is a broken promise of docs/delivery.md, or a client that did not get what it came for.
    userrealtime_wrong: ["count==0"],
    userrealtime_failures: ["count==0"],
  },
  summaryTrendStats: ["min", "med", "p(95)", "p(99)", "max"],
};

export default function () {
  const start = ((__VU - 1) / clients) * rampSeconds * 1000;
  setTimeout(() => new Client().connect(), start);
}

class Client {
  constructor() {
    this.cursor = null;
    this.epoch = null;
    this.attempt = 0;
    this.greeted = false;
    this.failed = false;
    this.leaving = false;
    this.events = 0;
    this.sent = {};
    this.lastRef = 0;
    this.staying = setTimeout(() => this.leave(), seconds * 1000);
  }

  connect() {
    const epoch = this.epoch === null ? "" : `:${this.epoch}`;
    const resume = this.cursor === null ? "" : `?last_event_id=${this.cursor}${epoch}`;
    const began = Date.now();
    this.socket = new WebSocket(url + resume, null, { headers: { Authorization: `Bearer ${token}` } });
    this.socket.addEventListener("open", () => connecting.add(Date.now() - began));
    this.socket.addEventListener("message", (message) => this.take(JSON.parse(message.data)));
    this.socket.addEventListener("error", (error) => this.note(error.error));
    this.socket.addEventListener("close", (close) => this.closed(close.code));
  }

  take(message) {
    switch (message.type) {
      case "connected":
        this.attempt = 0;
        this.greeted = true;
        this.epoch = message.epoch;
        if (this.cursor === null) this.cursor = message.cursor;
        if (publishPerSecond > 0) this.publishing = setInterval(() => this.publish(), 1000 / publishPerSecond);
        break;
      case "event":
        events.add(1);
        latency.add(Math.max(0, Date.now() - Date.parse(message.at)));
        if (message.id !== this.cursor + 1) wrong.add(1);
        this.cursor = message.id;
        if (++this.events === enough) this.leave();
        break;
      case "reset":
        resets.add(1);
        this.cursor = message.cursor;
        this.epoch = message.epoch;
        break;
      case "ack":
        acks.add(Date.now() - this.sent[message.ref]);
        delete this.sent[message.ref];
        break;
      case "error":
        refusals.add(1);
        this.note(message.message);
        break;
    }
  }

  publish() {
    const ref = `k6-${run}-${__VU}-${++this.lastRef}`;
    this.sent[ref] = Date.now();
    this.socket.send(JSON.stringify({ type: "publish", ref, event: "load.test", data: { vu: __VU, n: this.lastRef } }));
  }

  closed(code) {
    clearInterval(this.publishing);
    if (this.leaving) return;
    if (TERMINAL.includes(code)) {
      this.fail(`closed for good with ${code}`);
      return;
    }
    reconnects.add(1);
    const longest = Math.min(LAST_BACKOFF_MS, 500 * 2 ** this.attempt++);
    this.waiting = setTimeout(() => this.connect(), Math.random() * longest);
  }

  leave() {
    if (!this.greeted && !this.failed) this.fail("never connected");
    else if (this.events < enough) this.fail(`left with ${this.events} of ${enough} events`);
    this.leaving = true;
    clearTimeout(this.staying);
    clearTimeout(this.waiting);
    clearInterval(this.publishing);
    this.socket.close();
  }

  fail(text) {
    this.failed = true;
    failures.add(1);
    this.note(text);
  }

  note(text) {
    if (!this.leaving) console.warn(`client ${__VU}: ${text}`);
  }
}

function number(name, otherwise) {
  const value = Number(__ENV[name] || otherwise);
  return value >= 0 ? value : fail(`${name} must be a number that is not negative`);
}
