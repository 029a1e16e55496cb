// Connects with the client from npm, and prints what it reports as lines of JSON.
//
//     node socketio.mjs OPTIONS
//
// OPTIONS are JSON: `url` and `path` of the server; `tokens`, the URL of the test's tokens; `token`, to be used instead
// of them; `first_life_s`, of the first token; `auth`, members of the CONNECT packet besides the token; `saved`, whether
// the application passes the last position itself; `io`, options of the client.
// A line on the standard input is an array of JSON: `["emit", ...arguments]` without an acknowledgement, `["ask",
// ...arguments]` with one, `["binary", event]`, `["token", token]` and then a new attempt, `["renew"]`, `["disconnect"]`,
// `["connect"]`, or `["break"]`, which closes the connection as a network does.
import { createInterface } from "node:readline";
import { io } from "socket.io-client";

const options = JSON.parse(process.argv[2]);
const print = (line) => process.stdout.write(`${JSON.stringify(line)}\n`);
const fetched = async (life_s = 3600) => (await fetch(`${options.tokens}?life_s=${life_s}`)).text();
let given = options.token;
let used = 0;
let position = options.auth?.offset;

async function token() {
  return given ?? fetched(used++ === 0 ? options.first_life_s : undefined);
}

const socket = io(options.url, {
  path: options.path,
  auth: async (callback) => {
    callback({ token: await token(), ...options.auth, ...(options.saved && position ? { offset: position } : {}) });
  },
  ...options.io,
});
const manager = socket.io;

socket.on("connect", () => {
  print({ connected: socket.id, recovered: socket.recovered, transport: manager.engine.transport.name });
});
socket.on("disconnect", (reason) => print({ disconnected: reason, active: socket.active }));
socket.on("connect_error", (error) => {
  print({ refused: error.message, data: error.data, active: socket.active });
});
socket.onAny((event, data, place) => {
  if (typeof place === "string") position = place;
  print({ event, data, position: place });
});
manager.on("open", () => {
  manager.engine.on("upgrade", (to) => print({ upgraded: to.name }));
});
manager.on("ping", () => print({ ping: true }));
manager.on("reconnect_attempt", (number) => print({ attempt: number }));

for await (const line of createInterface({ input: process.stdin })) {
  const [command, ...given_arguments] = JSON.parse(line);
  if (command === "emit") socket.emit(...given_arguments);
  if (command === "ask") {
    socket
      .timeout(20_000)
      .emitWithAck(...given_arguments)
      .then((answer) => print({ answer }))
      .catch((error) => print({ unanswered: String(error) }));
  }
  if (command === "binary") {
    socket.timeout(20_000).emitWithAck(given_arguments[0], Buffer.from("x")).then((answer) => print({ answer }));
  }
  if (command === "token") {
    given = given_arguments[0] ?? undefined;
    socket.connect();
  }
  if (command === "renew") socket.emit("userrealtime:auth", await fetched(), (answer) => print({ answer }));
  if (command === "disconnect") socket.disconnect();
  if (command === "connect") socket.connect();
  if (command === "break") manager.engine.close();
}
