/**
 * Decodes messages of the relay: JSON, with the data of events converted by the application's function. Data that
 * JavaScript cannot represent is replaced by its text.
 */
/** Replaces data that could not be converted. */
export class Unparsed {
    text;
    error;
    constructor(text, error) {
        this.text = text;
        this.error = error;
    }
}
/** A run of digits that may be a number beyond the range of JavaScript: Postgres writes numbers without an exponent. */
const MANY_DIGITS = /[0-9]{309}/;
/** Returns a message of the relay; null, which is not a message, if the text is not JSON. */
export function decodeMessage(text, parse) {
    const decoded = decode(text);
    if (decoded !== DEEP && parse === null && !MANY_DIGITS.test(text))
        return decoded;
    if (decoded !== DEEP && !isEvent(decoded))
        return decoded;
    return decodeEvent(text, parse);
}
/** Returns the response to a poll; null if the text is not JSON. */
export function decodeAnswer(text, parse) {
    const decoded = decode(text);
    if (decoded !== DEEP && parse === null && !MANY_DIGITS.test(text))
        return decoded;
    if (decoded !== DEEP && (!isObject(decoded) || !Array.isArray(decoded.events)))
        return decoded;
    const { events, broadcasts, ...others } = members(text);
    if (events === undefined)
        return null;
    const answer = decode(`{${Object.entries(others).map(([name, value]) => `${JSON.stringify(name)}:${value}`)}}`);
    if (!isObject(answer))
        return null;
    const all = (list) => parts(list).map((event) => decodeEvent(event, parse));
    return { ...answer, events: all(events), ...(broadcasts === undefined ? {} : { broadcasts: all(broadcasts) }) };
}
const DEEP = Symbol("deep");
/** Returns a JSON value; null if the text is not JSON; DEEP if this engine cannot parse it although it may be JSON. */
function decode(text) {
    try {
        return JSON.parse(text);
    }
    catch (error) {
        return error instanceof SyntaxError ? null : DEEP;
    }
}
function decodeEvent(text, parse) {
    const { data, ...others } = members(text);
    const event = decode(`{${Object.entries(others).map(([name, value]) => `${JSON.stringify(name)}:${value}`)}}`);
    if (!isObject(event))
        return null;
    if (data === undefined)
        return event;
    try {
        event.data = (parse ?? parseFinite)(data);
    }
    catch (error) {
        event.data = new Unparsed(data, error instanceof Error ? error : new Error(String(error)));
    }
    return event;
}
function parseFinite(text) {
    if (!MANY_DIGITS.test(text))
        return JSON.parse(text);
    return JSON.parse(text, (_, value) => {
        if (value === Infinity || value === -Infinity)
            throw new RangeError("a number is beyond the range of JavaScript");
        return value;
    });
}
function isObject(value) {
    return typeof value === "object" && value !== null && !Array.isArray(value);
}
function isEvent(value) {
    return isObject(value) && (value.type === "event" || value.type === "broadcast");
}
/** Returns the members of an object, as JSON text. */
function members(text) {
    const found = [];
    const list = parts(text);
    for (let place = 0; place + 1 < list.length; place += 2) {
        found.push([String(decode(list[place])), list[place + 1]]);
    }
    return Object.fromEntries(found);
}
/** Returns the names and values of a valid object, or the items of a valid list, as JSON text. */
function parts(text) {
    const found = [];
    let depth = 0;
    let start = 0;
    let quoted = false;
    const end = (place) => {
        const part = text.slice(start, place).trim();
        if (part !== "")
            found.push(part);
        start = place + 1;
    };
    for (let place = 0; place < text.length; place += 1) {
        const sign = text[place];
        if (quoted) {
            if (sign === "\\")
                place += 1;
            else if (sign === '"')
                quoted = false;
        }
        else if (sign === '"') {
            quoted = true;
        }
        else if (sign === "{" || sign === "[") {
            depth += 1;
            if (depth === 1)
                start = place + 1;
        }
        else if (sign === "}" || sign === "]") {
            depth -= 1;
            if (depth === 0)
                end(place);
        }
        else if ((sign === "," || sign === ":") && depth === 1) {
            end(place);
        }
    }
    return found;
}
