// The reference server of Durable Streams, which keeps its streams in memory.
import { DurableStreamTestServer } from "@durable-streams/server";

const server = new DurableStreamTestServer({ port: Number(process.env.PORT), host: "127.0.0.1", compression: false });
await server.start();
console.log("listening");
