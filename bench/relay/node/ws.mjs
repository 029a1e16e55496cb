// A node server with `ws`: each event is made JSON once and sent to each client.
import { WebSocketServer } from "ws";
import { openLog } from "./log.mjs";

const log = await openLog(process.env.DATABASE_URL, process.env.USER_ID);
const server = new WebSocketServer({ port: Number(process.env.PORT), host: "127.0.0.1", perMessageDeflate: false });
const live = new Set();

function sent(socket, text) {
  // Wait for the socket only when it is behind, as one must not to run out of memory.
  if (socket.bufferedAmount < 1 << 20) {
    socket.send(text);
    return undefined;
  }
  return new Promise((resolve) => socket.send(text, resolve));
}

server.on("connection", async (socket, request) => {
  socket.on("error", () => {});
  const since = new URL(request.url, "http://localhost").searchParams.get("since");
  socket.send(JSON.stringify({ type: "connected" }));
  if (since !== null) await log.catchUp(Number(since), (event) => sent(socket, JSON.stringify(event)));
  live.add(socket);
  socket.on("close", () => live.delete(socket));
});

await log.follow((events) => {
  for (const event of events) {
    const text = JSON.stringify(event);
    for (const socket of live) socket.send(text);
  }
});
console.log("listening");
