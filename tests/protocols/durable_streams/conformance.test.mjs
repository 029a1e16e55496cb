// The conformance tests, against the server at STREAMS_URL. `conformance.json` lists what is left out.
import { runConformanceTests } from "@durable-streams/server-conformance-tests";

runConformanceTests({ baseUrl: process.env.STREAMS_URL });
