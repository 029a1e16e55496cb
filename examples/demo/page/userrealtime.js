// A stand-in with the API of the JavaScript client.
export class UserRealtime {
  #options; #listeners = { event: [], reset: [], state: [] }; #socket; #cursor = null; #epoch = null; #closed = false; #acks = new Map();
  constructor(options) {
    this.#options = options;
    this.#cursor = options.position?.id ?? null;
    this.#epoch = options.position?.epoch ?? null;
    queueMicrotask(() => this.#open());
  }
  get position() { return this.#cursor === null ? null : { id: this.#cursor, epoch: this.#epoch }; }
  on(name, listener) { this.#listeners[name].push(listener); return this; }
  #emit(name, value) { for (const listener of this.#listeners[name]) listener(value); }
  async #open() {
    if (this.#closed) return;
    this.#emit("state", { state: "connecting", transport: "websocket", reason: "" });
    let token;
    try { token = await this.#options.token(); } catch (error) { return this.#retry(error.message); }
    const url = new URL(this.#options.url.replace(/^http/, "ws") + "/ws");
    if (this.#cursor !== null) { url.searchParams.set("last_event_id", this.#cursor); if (this.#epoch) url.searchParams.set("epoch", this.#epoch); }
    this.#socket = new WebSocket(url, ["userrealtime.v1", `bearer.${token}`]);
    this.#socket.onmessage = ({ data }) => {
      const message = JSON.parse(data);
      if (message.type === "connected") { this.#cursor ??= message.cursor; this.#epoch ??= message.epoch; this.#emit("state", { state: "connected", transport: "websocket", reason: "" }); }
      if (message.type === "event") { this.#cursor = message.id; this.#emit("event", message); }
      if (message.type === "reset") { this.#cursor = message.cursor; this.#epoch = message.epoch; this.#emit("reset", message); }
      if (message.type === "ack") { this.#acks.get(message.ref)?.(message.id); this.#acks.delete(message.ref); }
    };
    this.#socket.onclose = ({ code, reason }) => this.#retry(`${code} ${reason}`.trim());
  }
  #retry(reason) {
    if (this.#closed) return;
    this.#emit("state", { state: "waiting", transport: "websocket", reason });
    setTimeout(() => this.#open(), 300 + 400 * Math.random());
  }
  publish(event, data) {
    return new Promise((resolve) => { const ref = crypto.randomUUID(); this.#acks.set(ref, resolve); this.#socket.send(JSON.stringify({ type: "publish", ref, event, data })); });
  }
  close() { this.#closed = true; this.#socket?.close(); this.#emit("state", { state: "closed", transport: "websocket", reason: "" }); }
}
