// Subscribes with a client from npm, and prints what it reports as lines of JSON.
//
//     node pusher.mjs OPTIONS
//
// OPTIONS are JSON: `client`, one of `pusher` and `echo`; `host`, `port` and `path`, of the relay; `tokens`, the URL of
// the test's tokens; `auth`, one of `handler`, `endpoint` and `signature`, the last with the `key` of the user;
// `channels`, by default `private-log`; `resume`, whether the position is passed; `envelope`, whether each event has its
// position; `signin`, whether the user signs in; `token`, to be used instead of the test's; `first_life_s` and `life_s`,
// of the tokens; `activityTimeout` and `pongTimeout`, of pusher-js.
// A line on the standard input is `{"trigger": event, "data": {}}` or `{"subscribe": channel}`.
import { createHmac } from "node:crypto";
import { createInterface } from "node:readline";
import Echo from "laravel-echo";
import Pusher from "pusher-js";

const options = JSON.parse(process.argv[2]);
const print = (line) => process.stdout.write(`${JSON.stringify(line)}\n`);
const fetched = async (life_s = options.life_s ?? 3600) => (await fetch(`${options.tokens}?life_s=${life_s}`)).text();
const url = `http://${options.host}:${options.port}${options.path}`;
const channels = options.channels ?? ["private-log"];
const resumes = options.resume ?? true;
const first = options.token ?? (await fetched(options.first_life_s));
const user = JSON.stringify({ id: "alice" });
let position = "";
let used = 0;

const token = async () => (used++ === 0 ? first : (options.token ?? fetched()));
let current = first; // what the providers of the endpoint return, which must not wait

async function authorize({ channelName, socketId }, callback) {
  const presence = channelName?.startsWith("presence-");
  const member = presence ? { channel_data: JSON.stringify({ user_id: "alice", user_info: { name: "Alice" } }) } : {};
  const data = channelName === undefined ? { user_data: user } : member;
  let auth;
  if (options.auth === "signature") {
    const name = channelName ?? ":user:";
    const text = [socketId, name, ...Object.values(data)].join(":");
    auth = `urt:${createHmac("sha256", options.key).update(text).digest("hex")}`;
  } else {
    auth = `urt:${await token()}`;
  }
  if (resumes) auth += `;${position}`;
  if (options.envelope) auth += ";envelope";
  callback(null, { auth, ...data });
}

const endpoint = (path) => ({
  endpoint: `${url}${path}`,
  transport: "ajax",
  paramsProvider: () => ({
    ...(resumes ? { last_event_id: position } : {}),
    ...(options.envelope ? { envelope: "1" } : {}),
  }),
  headersProvider: () => ({ Authorization: `Bearer ${current}` }),
});
const atEndpoint = options.auth === "endpoint";
const configuration = {
  cluster: "",
  wsHost: options.host,
  wsPort: options.port,
  wsPath: options.path,
  forceTLS: false,
  enabledTransports: ["ws"],
  activityTimeout: options.activityTimeout ?? 120_000,
  pongTimeout: options.pongTimeout ?? 30_000,
  channelAuthorization: atEndpoint ? endpoint("/pusher/auth") : { customHandler: authorize },
  userAuthentication: atEndpoint ? endpoint("/pusher/user-auth") : { customHandler: authorize },
};

function observe(channel) {
  if (channel.members) channel.bind("client-typing", (_, { user_id: from }) => print({ from }));
  channel.bind_global((event, data) => {
    if (event === "userrealtime:position") {
      position = `${data.id}:${data.epoch}`;
      print({ position: data, channel: channel.name });
    } else if (event === "pusher:subscription_succeeded") {
      print({ subscribed: channel.name, data: channel.members ? { members: channel.members } : data });
    } else if (event === "pusher:subscription_error") {
      print({ refused: channel.name, data });
    } else if (event === "userrealtime:reset") {
      print({ reset: data, channel: channel.name });
    } else if (options.envelope) {
      position = data.position;
      print({ event, data: data.data, channel: channel.name });
    } else {
      print({ event, data, channel: channel.name });
    }
  });
}

function pusher() {
  const client = new Pusher("urt", configuration);
  for (const name of channels) observe(client.subscribe(name));
  if (options.signin) {
    client.signin();
    client.user.bind_global?.((event, data) => print({ event, data, channel: "user" }));
    client.user.bind("test.event", (data) => print({ user_event: data }));
  }
  return client;
}

function echo() {
  const instance = new Echo({ broadcaster: "pusher", key: "urt", Pusher, ...configuration });
  for (const name of channels) {
    const presence = name.startsWith("presence-");
    const channel = presence ? instance.join(name.slice(9)) : instance.private(name.slice(8));
    channel.listen(".test.event", (data) => print({ listened: data }));
    channel.listenForWhisper("typing", (data) => print({ whispered: data }));
    if (presence) channel.here((users) => print({ here: users }));
    observe(instance.connector.channels[name].subscription);
  }
  return instance.connector.pusher;
}

const client = options.client === "echo" ? echo() : pusher();
client.connection.bind("state_change", ({ current: state }) => print({ state }));
client.connection.bind("error", (error) => print({ error: error?.data ?? error?.error?.data ?? String(error) }));
for await (const line of createInterface({ input: process.stdin })) {
  const { trigger, subscribe, data } = JSON.parse(line);
  if (trigger) client.channel(channels[0]).trigger(trigger, data);
  if (subscribe) {
    current = await fetched();
    client.subscribe(subscribe);
  }
}
