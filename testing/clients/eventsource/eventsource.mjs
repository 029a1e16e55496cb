// Prints what a standard EventSource receives, as lines of JSON.
//
//     node eventsource.mjs OPTIONS
//
// OPTIONS are JSON: `url`, of the stream, and `token`.
import dns from "node:dns";
import { EventSource } from "eventsource";

const { url, token } = JSON.parse(process.argv[2]);
const print = (line) => process.stdout.write(`${JSON.stringify(line)}\n`);

// Names below `localhost` are this machine (RFC 6761), which some resolvers do not support.
const lookup = dns.lookup;
dns.lookup = (name, ...rest) => lookup(name.endsWith(".localhost") ? "127.0.0.1" : name, ...rest);

const source = new EventSource(url, {
  fetch: (input, init) => fetch(input, { ...init, headers: { ...init.headers, Authorization: `Bearer ${token}` } }),
});
source.onmessage = ({ data }) => print(JSON.parse(data));
source.onerror = () => {
  if (source.readyState === EventSource.CLOSED) print({ type: "stopped" });
};
