import ActionCable from "@rails/actioncable";
import WebSocket from "ws";
import { logIn, show } from "../demo.mjs";

// This client is made for browsers: node 20 has no WebSocket, and no version of node has the events of a page.
ActionCable.adapters.WebSocket = WebSocket;
globalThis.addEventListener ??= () => {};
globalThis.removeEventListener ??= () => {};

const { url, token } = await logIn();
const position = { id: "", epoch: "" };
const cable = `${url.replace(/^http/, "ws")}/cable`;

const consumer = ActionCable.createConsumer(() => `${cable}?last_event_id=${position.id}&epoch=${position.epoch}`);
const authenticate = async () => (consumer.subprotocols = [`bearer.${await token()}`]);
await authenticate();
consumer.subscriptions.create(
  { channel: "Log" },
  {
    disconnected({ willAttemptReconnect }) {
      show({ disconnected: true, again: willAttemptReconnect });
      void authenticate(); // a new token for the next connection
    },
    rejected: () => show({ error: "the subscription is rejected" }),
    received({ type, ...message }) {
      if (type === "event") position.id = message.id;
      else if ("cursor" in message) Object.assign(position, { id: message.cursor, epoch: message.epoch ?? "" });
      if (type === "event" || type === "broadcast") show({ event: message.event, data: message.data });
      if (type === "connected") show({ connected: true });
      if (type === "reset") show({ reset: message });
    },
  },
);
