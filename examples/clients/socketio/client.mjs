import { io } from "socket.io-client";
import { logIn, show } from "../demo.mjs";

const { url, token } = await logIn();
const { origin, pathname } = new URL(`${url}/socket.io`);

const socket = io(origin, {
  path: pathname,
  auth: async (callback) => callback({ token: await token() }),
});
socket.on("connect", () => show({ connected: true, recovered: socket.recovered }));
socket.on("disconnect", (reason) => show({ disconnected: reason }));
socket.on("connect_error", (error) => show({ error: error.message }));
socket.on("userrealtime:reset", (reset) => show({ reset }));
socket.onAny((event, data) => {
  if (!event.startsWith("userrealtime:")) show({ event, data });
});
