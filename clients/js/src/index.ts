export { BroadcastError, ClientError, PublishError, UserRealtime } from "./client.js";
export { parsePosition } from "./machine.js";
export type { Delivered, Listeners, Loaded, Options, Snapshot, State } from "./client.js";
export type { Broadcast, Limits, Position, Reset, StateName, Transport, UserEvent } from "./machine.js";
export type { Parse } from "./decode.js";
export type { WebSocketClass, WebSocketLike } from "./transports.js";
