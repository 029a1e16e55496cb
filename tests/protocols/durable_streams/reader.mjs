// Reads a stream with the client from npm, and prints each message, and each offset after them, as a line of JSON.
//
//     node reader.mjs STREAM_URL TOKEN_URL LIVE OFFSET
//
// As an application does, it continues from the last offset when a read has failed, and stops at 410.
import { stream } from "@durable-streams/client";

const [url, tokens, live, begin] = process.argv.slice(2);
const print = (line) => process.stdout.write(`${JSON.stringify(line)}\n`);
let offset = begin;

async function read() {
  const response = await stream({
    url,
    offset,
    live,
    json: true,
    headers: { Authorization: async () => `Bearer ${await (await fetch(tokens)).text()}` },
    backoffOptions: { initialDelay: 50, maxDelay: 500, multiplier: 1.3 },
    sseResilience: { maxShortConnections: 1000, backoffMaxDelay: 200, logWarnings: false },
  });
  response.subscribeJson((batch) => {
    for (const item of batch.items) print(item);
    if (batch.offset !== offset || batch.items.length === 0) print({ offset: batch.offset, upToDate: batch.upToDate });
    offset = batch.offset;
  });
  await response.closed;
}

for (;;) {
  try {
    await read();
    print({ ended: true });
  } catch (error) {
    print({ failed: error.status ?? error.code ?? error.name, details: error.details ?? error.json ?? null });
    if (error.status === 410 || error.status === 401) break;
  }
  await new Promise((resolve) => setTimeout(resolve, 50));
}
