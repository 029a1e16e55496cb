/**
 * The wire: each function is one connection, or one request, and tells an `Ear` what came of it. None of them throws;
 * what ends one is told as the last thing. Ended by the function they return, they tell nothing more.
 */
import { decodeAnswer, decodeMessage } from "./decode.js";
import { Code } from "./machine.js";
import { EventStream } from "./stream.js";
const SUBPROTOCOL = "userrealtime.v1";
const POST_TIMEOUT = 30_000;
/** A user's URL, as `status.url` has it, without what would stand in the way of a path. Throws if it is none. */
export function baseOf(url) {
    let parsed = null;
    try {
        parsed = new URL(url);
    }
    catch {
        // told below
    }
    if (parsed === null || !/^https?:$/.test(parsed.protocol) || parsed.search !== "" || parsed.hash !== "") {
        throw new TypeError(`${url} is not the http or https URL of a user, such as status.url of a UserRealtime`);
    }
    return parsed.href.replace(/\/+$/, "");
}
/** A WebSocket. The token goes as a subprotocol, since browsers let no header be set. */
export function websocket(Class, base, opening, ear, parse) {
    const query = queryOf({ last_event_id: opening.cursor, epoch: opening.epoch });
    const socket = new Class(`${base.replace(/^http/, "ws")}/ws${query}`, [SUBPROTOCOL, `bearer.${opening.token}`]);
    socket.onmessage = ({ data }) => {
        ear.message(decodeMessage(data, parse));
    };
    socket.onclose = ({ code, reason }) => ear.closed(code, reason);
    socket.onerror = () => { }; // `close` follows, and says no less
    return {
        send: (message) => socket.send(JSON.stringify(message)),
        drop: () => {
            socket.onmessage = socket.onclose = null;
            socket.close(1000);
        },
    };
}
/** A stream of Server-Sent Events, over `fetch`, since an EventSource sends no header. */
export function stream(fetch, base, opening, ear, parse) {
    const query = queryOf({ last_event_id: opening.cursor, epoch: opening.epoch });
    return request(ear, async (signal) => {
        const headers = { ...authorization(opening.token), Accept: "text/event-stream" };
        const response = await fetch(`${base}/sse${query}`, { headers, signal, cache: "no-store", redirect: "error" });
        if (response.status !== 200)
            return refuse(response, ear);
        if (!response.headers.get("Content-Type")?.startsWith("text/event-stream") || response.body === null) {
            throw new TypeError(`an answer of type ${response.headers.get("Content-Type")}`);
        }
        const reader = response.body.getReader();
        const parser = new EventStream();
        for (;;) {
            const { done, value } = await reader.read();
            if (done)
                break;
            ear.heard();
            for (const data of parser.feed(value))
                ear.message(decodeMessage(data, parse));
        }
        ear.closed(Code.ABNORMAL, "the stream ended");
    });
}
/** One poll. */
export function poll(fetch, base, opening, ear, parse) {
    const query = queryOf({ cursor: opening.cursor, epoch: opening.epoch, timeout: opening.wait });
    return request(ear, async (signal) => {
        const headers = authorization(opening.token);
        const response = await fetch(`${base}/poll${query}`, { headers, signal, cache: "no-store", redirect: "error" });
        if (response.status !== 200)
            return refuse(response, ear);
        ear.answered(decodeAnswer(await response.text(), parse));
    });
}
/** `POST /publish`: tells the status, or 0 without one, the answer's object, and milliseconds to wait, if told. */
export function post(fetch, base, message, token, answered) {
    const controller = new AbortController();
    const timer = setTimeout(() => controller.abort(), POST_TIMEOUT);
    const ask = async () => {
        const response = await fetch(`${base}/publish`, {
            method: "POST",
            headers: { ...authorization(token), "Content-Type": "application/json" },
            body: JSON.stringify(message),
            signal: controller.signal,
            redirect: "error",
        });
        return { status: response.status, body: await objectOf(response), retryAfter: retryAfterOf(response) };
    };
    void ask()
        .catch(() => ({ status: 0, body: {}, retryAfter: null }))
        .then(({ status, body, retryAfter }) => {
        clearTimeout(timer);
        answered(status, body, retryAfter);
    });
    return { send: unsendable, drop: () => controller.abort() };
}
function request(ear, ask) {
    const controller = new AbortController();
    ask(controller.signal).catch((error) => {
        if (!controller.signal.aborted)
            ear.closed(Code.ABNORMAL, error instanceof Error ? error.message : String(error));
    });
    return { send: unsendable, drop: () => controller.abort() };
}
function unsendable() {
    throw new Error("nothing is sent over this transport");
}
/** Passes on what the relay says is wrong; nothing of what others say. */
async function refuse(response, ear) {
    const { error } = await objectOf(response);
    ear.refused(response.status, typeof error === "string" ? error : "", retryAfterOf(response));
}
async function objectOf(response) {
    try {
        const body = await response.json();
        return typeof body === "object" && body !== null ? body : {};
    }
    catch {
        return {};
    }
}
function retryAfterOf(response) {
    const value = response.headers.get("Retry-After") ?? "";
    return /^[0-9]{1,5}$/.test(value) ? 1000 * Number(value) : null;
}
function authorization(token) {
    return { Authorization: `Bearer ${token}` };
}
function queryOf(parameters) {
    const given = Object.entries(parameters).filter(([, value]) => value !== null);
    return given.length === 0 ? "" : `?${new URLSearchParams(given.map(([name, value]) => [name, String(value)]))}`;
}
