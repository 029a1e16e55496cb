/** Server-Sent Events as a client of a relay reads them: the data of each message, in order. */

/** Characters that are kept of a message that does not end. */
const LONGEST_MESSAGE = 64 << 20;

/**
 * Takes pieces of a stream, cut wherever the network cut them. Ids and delays are passed over: a client knows both from
 * the messages themselves.
 */
export class EventStream {
  readonly #decoder = new TextDecoder("utf-8", { fatal: true });
  #rest = "";
  #data: string[] = [];

  /** The data of the messages that this piece completes. Throws if a message is too long, or no UTF-8. */
  feed(piece: Uint8Array): string[] {
    const lines = (this.#rest + this.#decoder.decode(piece, { stream: true })).split("\n");
    this.#rest = lines.pop() ?? "";
    if (this.#rest.length > LONGEST_MESSAGE) throw new RangeError("a message without an end");
    const messages: string[] = [];
    for (const line of lines) {
      const text = line.endsWith("\r") ? line.slice(0, -1) : line;
      if (text.startsWith("data:")) {
        this.#data.push(text.slice(text[5] === " " ? 6 : 5));
      } else if (text === "" && this.#data.length > 0) {
        messages.push(this.#data.join("\n"));
        this.#data = [];
      }
    }
    return messages;
  }
}
