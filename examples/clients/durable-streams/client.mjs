import { setTimeout as delay } from "node:timers/promises";
import { stream } from "@durable-streams/client";
import { logIn, show } from "../demo.mjs";

const { url, token } = await logIn();
let offset = "now"; // or the offset that the application has saved

for (;;) {
  try {
    const response = await stream({
      url: `${url}/streams/log`,
      headers: { Authorization: async () => `Bearer ${await token()}` },
      offset,
      live: "sse",
    });
    offset = response.offset;
    show({ connected: true, offset });
    response.subscribeJson((batch) => {
      for (const { event, data } of batch.items) show({ event, data });
      offset = batch.offset;
    });
    await response.closed;
    show({ disconnected: true });
  } catch (error) {
    show({ disconnected: true, error: error.message });
    if (error.status === 410) {
      show({ reset: error.details ?? null });
      offset = "now"; // load the state again, and continue at its position
    }
  }
  await delay(1000);
}
