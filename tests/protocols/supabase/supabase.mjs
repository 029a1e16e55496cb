// Subscribes with a client from npm, and prints what it reports as lines of JSON.
//
//     node supabase.mjs OPTIONS
//
// OPTIONS are JSON: `client`, one of `realtime` and `supabase`; `url`, of the relay; `tokens`, the URL of the test's
// tokens; `token`, to be used instead of them; `first_life_s` and `life_s`, of the tokens; `early`, whether the client has
// a token before it subscribes; `resume`, whether the position is passed; `channels`, objects with a `name`, a `config`,
// `changes` (bindings of `postgres_changes`) and `presence`, by default the channel `log`; `vsn`, `timeout` and
// `heartbeatIntervalMs`, of the client.
// A line on the standard input is an object with a `channel`, by default the first one, and one of `send`, `http`, `track`,
// `unsubscribe` and `subscribe`. The result of the first three is printed as `{"result": …, "id": …}`, with the `id` of
// the line.
import { createInterface } from "node:readline";
import { RealtimeClient } from "@supabase/realtime-js";
import { createClient } from "@supabase/supabase-js";
import WebSocket from "ws";

const options = JSON.parse(process.argv[2]);
const print = (line) => process.stdout.write(`${JSON.stringify(line)}\n`);
const fetched = async (life_s = options.life_s ?? 3600) => (await fetch(`${options.tokens}?life_s=${life_s}`)).text();
const given = options.channels ?? [{ name: "log" }];
const realtime = {
  transport: WebSocket, // node 20 has none of its own
  vsn: options.vsn,
  timeout: options.timeout,
  heartbeatIntervalMs: options.heartbeatIntervalMs,
};
let used = 0;
const accessToken = async () => options.token ?? fetched(used++ === 0 ? options.first_life_s : options.life_s);

function connect() {
  if (options.client === "supabase") return createClient(options.url, "any", { accessToken, realtime });
  const socket = options.url.replace(/^http/, "ws");
  return new RealtimeClient(`${socket}/realtime/v1`, { params: { apikey: "any" }, accessToken, ...realtime });
}

const client = connect();
const socket = client.realtime ?? client;
const channels = {};

function subscribe({ name, config, changes = [], presence = false }) {
  const channel = client.channel(name, { config: config ?? {} });
  channels[name] = channel;
  const keep = (id, epoch) => {
    if (!(options.resume ?? true)) return;
    channel.updateJoinPayload({ last_event_id: id, epoch: epoch ?? "" });
    if (id !== "") print({ position: id, channel: name });
  };
  keep("", "");
  channel.on("broadcast", { event: "*" }, ({ event, payload, meta }) => {
    print({ event, data: payload, meta: meta ?? null, channel: name });
    if (meta) keep(meta.id, meta.epoch);
  });
  channel.on("system", {}, (message) => {
    print({ system: message, channel: name });
    if ("cursor" in message) keep(message.cursor, message.epoch);
  });
  for (const binding of changes) {
    channel.on("postgres_changes", binding, (change) => print({ change, binding, channel: name }));
  }
  if (presence) channel.on("presence", { event: "sync" }, () => print({ presence: channel.presenceState() }));
  channel.subscribe((status, error) => print({ status, error: error?.message ?? null, channel: name }));
}

if (options.early ?? true) await socket.setAuth();
for (const each of given) subscribe(each);
for await (const text of createInterface({ input: process.stdin })) {
  const line = JSON.parse(text);
  const channel = channels[line.channel ?? given[0].name];
  const answer = (result) => print({ result, id: line.id ?? null });
  if (line.send) channel.send(line.send).then(answer);
  if (line.http) {
    channel.httpSend(line.http.event, line.http.payload).then(answer, (error) => answer({ error: error.message }));
  }
  if (line.binary) channel.send({ type: "broadcast", event: line.binary, payload: new ArrayBuffer(3) }).then(answer);
  if (line.track) channel.track(line.track).then(answer);
  if (line.unsubscribe) channel.unsubscribe();
  if (line.subscribe) subscribe(line.subscribe);
}
