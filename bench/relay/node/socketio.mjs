// A Node.js server with Socket.IO, which emits events to all of its clients.
import { createServer } from "node:http";
import { Server } from "socket.io";
import { openLog } from "./log.mjs";

const log = await openLog(process.env.DATABASE_URL, process.env.USER_ID);
const http = createServer();
const server = new Server(http, { transports: ["websocket"], perMessageDeflate: false });

server.on("connection", async (socket) => {
  const send = (event) => {
    socket.emit("event", event);
    // Let the transport write from time to time, because there is no callback to wait for.
    return event.id % 1000 === 0 ? new Promise((resolve) => setImmediate(resolve)) : undefined;
  };
  await log.catchUp(socket.handshake.query.since, send, () => socket.join("live"));
});

await log.follow((events) => {
  for (const event of events) server.to("live").emit("event", event);
});
http.listen(Number(process.env.PORT), "127.0.0.1", () => console.log("listening"));
