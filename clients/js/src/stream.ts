/** A parser of Server-Sent Events that returns the data of each message, in order. */

/** The largest size of a message in characters. */
const LONGEST_MESSAGE = 64 << 20;

/**
 * Parses a stream from pieces of any size. The fields `id` and `retry` are ignored: the messages contain the ids, and
 * the machine computes the delays.
 */
export class EventStream {
  readonly #decoder = new TextDecoder("utf-8", { fatal: true });
  #rest = "";
  #data: string[] = [];

  /** Returns the data of the messages that this piece completes. Throws if a message is too long or is not UTF-8. */
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
