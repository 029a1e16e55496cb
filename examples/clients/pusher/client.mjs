import Pusher from "pusher-js";
import { logIn, show } from "../demo.mjs";

const { url, token } = await logIn();
const { protocol, hostname, port, pathname } = new URL(url);
let position = "";

const pusher = new Pusher("urt", {
  cluster: "",
  wsHost: hostname,
  wsPort: Number(port || 80),
  wssPort: Number(port || 443),
  wsPath: pathname,
  forceTLS: protocol === "https:",
  enabledTransports: ["ws", "wss"],
  channelAuthorization: {
    customHandler: async (_, callback) => callback(null, { auth: `urt:${await token()};${position};envelope` }),
  },
});
pusher.connection.bind("state_change", ({ current }) => show({ state: current }));
const channel = pusher.subscribe("private-log");
channel.bind("pusher:subscription_succeeded", () => show({ connected: true }));
channel.bind("pusher:subscription_error", (error) => show({ error }));
channel.bind("userrealtime:position", ({ id, epoch }) => (position = `${id}:${epoch}`));
channel.bind("userrealtime:reset", (reset) => show({ reset }));
channel.bind_global((event, envelope) => {
  if (event.startsWith("pusher:") || event.startsWith("userrealtime:")) return;
  show({ event, data: envelope.data });
  position = envelope.position ?? position; // a broadcast has none
});
