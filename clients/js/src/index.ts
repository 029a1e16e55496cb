export { ClientError, PublishError, UserRealtime } from "./client.js";
export type { Listeners, Options, State } from "./client.js";
export type { Limits, Position, Reset, StateName, Transport, UserEvent } from "./machine.js";
export type { Parse } from "./decode.js";
export type { WebSocketClass, WebSocketLike } from "./transports.js";
