import { RealtimeClient } from "@supabase/realtime-js";
import WebSocket from "ws";
import { logIn, show } from "../demo.mjs";

const { url, token } = await logIn();

const client = new RealtimeClient(`${url.replace(/^http/, "ws")}/realtime/v1`, {
  params: { apikey: "any" }, // required by the client; not a secret
  accessToken: token,
  transport: WebSocket, // node 20 has none
});
await client.setAuth();
const channel = client.channel("log");
const resumeAfter = (id, epoch) => channel.updateJoinPayload({ last_event_id: id, epoch });
resumeAfter("", "");
channel
  .on("system", {}, ({ message, cursor, epoch }) => {
    if (cursor !== undefined) resumeAfter(cursor, epoch);
    if (message === "connected") show({ connected: true });
    if (message.startsWith("reset")) show({ reset: message });
  })
  .on("postgres_changes", { event: "*", schema: "public", table: "order" }, ({ eventType, new: row, old }) => {
    show({ change: eventType, row: eventType === "DELETE" ? old : row });
  })
  .on("broadcast", { event: "*" }, ({ event, payload, meta }) => {
    show({ event, data: payload });
    if (meta) resumeAfter(meta.id, meta.epoch);
  })
  .subscribe((status, error) => show({ status, error: error?.message }));
