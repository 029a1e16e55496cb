export { BroadcastError, ClientError, PublishError, UserRealtime } from "./client.js";
export { parsePosition } from "./machine.js";
