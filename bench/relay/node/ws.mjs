// A Node.js server with `ws`, which serializes each event once and sends it to each client.
import { WebSocketServer } from "ws";
import { openLog } from "./log.mjs";

const log = await openLog(process.env.DATABASE_URL, process.env.USER_ID);
const live = new Set();

function sent(socket, text) {
  // Wait for the socket only if it lags behind, to limit the memory.
  if (socket.bufferedAmount < 1 << 20) {
    socket.send(text);
    return undefined;
  }
  return new Promise((resolve) => socket.send(text, resolve));
}

// Follow the log before the first client can connect.
await log.follow((events) => {
  for (const event of events) {
    const text = JSON.stringify(event);
    for (const socket of live) socket.send(text);
  }
});

const server = new WebSocketServer({ port: Number(process.env.PORT), host: "127.0.0.1", perMessageDeflate: false });
server.on("connection", async (socket, request) => {
  socket.on("error", () => {});
  const since = new URL(request.url, "http://localhost").searchParams.get("since");
  socket.send(JSON.stringify({ type: "connected" }));
  socket.on("close", () => live.delete(socket));
  const join = () => socket.readyState === socket.OPEN && live.add(socket);
  await log.catchUp(since, (event) => sent(socket, JSON.stringify(event)), join);
});

console.log("listening");
