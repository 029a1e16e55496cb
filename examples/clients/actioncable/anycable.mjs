import { createCable } from "@anycable/core";
import WebSocket from "ws";
import { logIn, show } from "../demo.mjs";

const { url, token } = await logIn();

const cable = createCable(`${url.replace(/^http/, "ws")}/cable`, {
  protocol: "actioncable-v1-ext-json",
  websocketImplementation: WebSocket, // node 20 has none
  websocketAuthStrategy: "sub-protocol",
  auth: { token: await token() },
  tokenRefresher: async (transport) => transport.setToken(await token()),
});
cable.on("close", (event) => show({ error: event?.reason ?? "closed" }));
const channel = cable.subscribeTo("Log");
channel.on("connect", () => show({ connected: true }));
channel.on("disconnect", () => show({ disconnected: true }));
channel.on("message", ({ type, event, data, ...message }) => {
  if (type === "event" || type === "broadcast") show({ event, data });
  if (type === "reset") show({ reset: message });
});
