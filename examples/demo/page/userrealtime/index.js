export { ClientError, PublishError, UserRealtime } from "./client.js";
