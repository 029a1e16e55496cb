// Subscribes with a client from npm, and prints what it reports as lines of JSON.
//
//     node cable.mjs OPTIONS
//
// OPTIONS are JSON: `client`, one of `rails`, `plain` (AnyCable's) and `extended`; `url`, of the cable; `tokens`, the URL
// of the test's tokens; `strategy`, where AnyCable's client has its token; `channel`; `since`, the time of the page;
// `life_s` and `first_life_s`, of the tokens. A line on the standard input is `{"perform": action, "data": {}}` or
// `{"whisper": data}`.
//
// As the documentation recommends, the plain protocol has its position in the URL, and the client of Rails gets a new
// token whenever its connection ends.
import { createInterface } from "node:readline";
import ActionCable from "@rails/actioncable";
import { createCable } from "@anycable/core";
import WebSocket from "ws";

const options = JSON.parse(process.argv[2]);
const print = (line) => process.stdout.write(`${JSON.stringify(line)}\n`);
const token = async (life_s = options.life_s ?? 3600) => (await fetch(`${options.tokens}?life_s=${life_s}`)).text();
const first = async () => options.token ?? token(options.first_life_s);
const position = { id: "", epoch: "" };

function received(message, meta = {}) {
  if (message.type === "event") position.id = message.id;
  if (message.type === "connected" || message.type === "reset") {
    position.id = message.cursor;
    position.epoch = message.epoch ?? "";
  }
  print({ received: message, ...meta });
}

async function rails() {
  globalThis.addEventListener ??= () => {}; // of browsers, for the visibility of the page
  globalThis.removeEventListener ??= () => {};
  ActionCable.adapters.WebSocket = WebSocket;
  const consumer = ActionCable.createConsumer(
    () => `${options.url}?last_event_id=${position.id}&epoch=${position.epoch}`,
  );
  const authenticate = async (give) => (consumer.subprotocols = [`bearer.${await give()}`]);
  await authenticate(first);
  return consumer.subscriptions.create(options.channel ?? { channel: "Log" }, {
    connected: ({ reconnected }) => print({ connected: true, reconnected }),
    disconnected: ({ willAttemptReconnect }) => {
      print({ disconnected: true, again: willAttemptReconnect });
      void authenticate(token);
    },
    rejected: () => print({ rejected: true }),
    received,
  });
}

async function anycable() {
  const extended = options.client === "extended";
  const cable = createCable(options.url, {
    protocol: extended ? "actioncable-v1-ext-json" : "actioncable-v1-json",
    websocketImplementation: WebSocket,
    websocketAuthStrategy: options.strategy ?? "sub-protocol",
    auth: { token: await first() },
    tokenRefresher: async (transport) => transport.setToken(await token()),
    transportConfigurator: async (transport) => {
      if (extended) return;
      transport.setParam("last_event_id", position.id);
      transport.setParam("epoch", position.epoch);
    },
    reconnectStrategy: () => 300,
    historyTimestamp: options.since,
    logLevel: "error",
  });
  cable.on("close", (event) => print({ closed: event?.reason ?? null }));
  const { channel, ...parameters } = options.channel ?? { channel: "Log" };
  const subscription = cable.subscribeTo(channel, parameters);
  subscription.on("connect", ({ reconnect }) => print({ connected: true, reconnected: reconnect ?? false }));
  subscription.on("disconnect", () => print({ disconnected: true }));
  subscription.on("close", (event) => print({ rejected: event?.reason === "rejected" || event?.name || true }));
  subscription.on("info", (event) => print({ info: event.type }));
  subscription.on("message", (message, meta) => received(message, meta ? { meta } : {}));
  return subscription;
}

const subscription = await (options.client === "rails" ? rails() : anycable());
for await (const line of createInterface({ input: process.stdin })) {
  const { perform, whisper, data } = JSON.parse(line);
  if (perform) subscription.perform(perform, data);
  else subscription.whisper(whisper);
}
