// Scenarios of a client with a real relay over an unreliable network. They run in Node.js and in browsers.
//
// `stage` is the URL of the fixture in pytest (testing/clients/fixture.py), which breaks the network, publishes events,
// and creates tokens.

export const TRANSPORTS = ["websocket", "sse", "poll"];
const QUICK = {
  openTimeout: 3000,
  pingInterval: 500,
  pongTimeout: 500,
  silence: 2500,
  backoff: 50,
  backoffMost: 500,
};
const PATIENCE = 60_000;

export const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

function equal(found, wanted, what = "") {
  const [f, w] = [JSON.stringify(found), JSON.stringify(wanted)];
  if (f !== w) throw new Error(`${what} ${f.slice(0, 500)} is not ${w.slice(0, 500)}`);
}

function within(promise, what) {
  let timer;
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error(`not within ${PATIENCE} ms: ${what}`)), PATIENCE);
  });
  return Promise.race([promise, late]).finally(() => clearTimeout(timer));
}

/** Provides the stage, and clients that are closed when `use` has ended. */
async function withStage({ stage: url, UserRealtime, WebSocket }, use) {
  const clients = [];
  const stage = async (method, args = {}) => {
    const response = await fetch(`${url}/do/${method}`, { method: "POST", body: JSON.stringify(args) });
    if (!response.ok) throw new Error(`${method}: HTTP ${response.status}`);
    return response.json();
  };
  const token = async (life = 3600) => (await fetch(`${url}/token?life_s=${life}`)).text();
  const { url: relay } = await stage("describe");
  const connect = ({ transports, limits, ...options } = {}) => {
    const client = new UserRealtime({
      url: relay,
      token: () => token(),
      ...(WebSocket === undefined ? {} : { WebSocket }),
      ...options,
      limits: { ...QUICK, ...limits, ...(transports === undefined ? {} : { transports }) },
    });
    client.states = [];
    client.on("state", (state) => client.states.push(state));
    clients.push(client);
    return client;
  };
  try {
    return await use({ stage, token, connect });
  } finally {
    for (const client of clients) client.close();
    await stage("refuse", [false]);
    await stage("silence", [false]);
    await stage("block", []);
  }
}

async function until(condition, what) {
  const end = performance.now() + PATIENCE;
  while (!condition()) {
    if (performance.now() > end) throw new Error(`not within ${PATIENCE} ms: ${what}`);
    await sleep(10);
  }
}

const connected = (client) => until(() => client.state === "connected", "connected");

/** Publishes an event every 20 ms while `meanwhile` runs. */
async function publishing(stage, meanwhile) {
  let over = false;
  const publish = (async () => {
    while (!over) {
      await stage("publish");
      await sleep(20);
    }
  })();
  try {
    await meanwhile();
  } finally {
    over = true;
    await publish;
  }
}

/** Asserts that the client delivers exactly the events after `first` up to the newest one, once and in order. */
async function judge(stage, client, first) {
  const last = await stage("publish");
  const ids = [];
  const data = [];
  await within(
    (async () => {
      for await (const message of client) {
        ids.push(message.id);
        data.push(message.data.n);
        if (message.id >= last) break;
      }
    })(),
    `all events up to ${last}`,
  );
  const wanted = Array.from({ length: last - first }, (_, place) => first + 1 + place);
  equal(ids, wanted, "ids");
  equal(data, wanted, "data");
}

async function rejection(promise) {
  try {
    await promise;
  } catch (error) {
    return error;
  }
  throw new Error("it was not refused");
}

/** Every scenario by name: each takes `{stage, token, connect}`. */
export const scenarios = {};

for (const transport of TRANSPORTS) {
  scenarios[`events come once and in order, by ${transport}`] = async ({ stage, connect }) => {
    const client = connect({ transports: [transport] });
    await connected(client);
    const first = client.position.id;
    await stage("publish", [500]);
    await judge(stage, client, first);
    equal([client.transport, client.position.id], [transport, first + 501]);
  };

  scenarios[`broadcasts arrive in order and move no position, by ${transport}`] = async ({ stage, connect }) => {
    const client = connect({ transports: [transport] });
    const found = [];
    client.on("broadcast", ({ event, data }) => found.push(event === "test.broadcast" ? data : event));
    await connected(client);
    const first = client.position.id;
    const end = performance.now() + PATIENCE;
    while (found.length === 0 && performance.now() < end) {
      await stage("broadcast", ["first"]); // the relay starts to listen some time after its start
      await sleep(100);
    }
    await stage("broadcast", [0, 1, 2, 3, 4]);
    await until(() => found.includes(4), "the last broadcast");
    equal(found.filter((data) => data !== "first"), [0, 1, 2, 3, 4]);
    equal(client.position.id, first);
    await judge(stage, client, first);
  };

  scenarios[`a broadcast of a client reaches the others and not itself, by ${transport}`] = async ({ connect }) => {
    const clients = [connect({ transports: [transport] }), connect({ transports: [transport] })];
    const found = [[], []];
    clients.forEach((client, place) => client.on("broadcast", ({ event, data }) => found[place].push([event, data])));
    const [one, two] = clients;
    await connected(one);
    await connected(two);
    for (let n = 0; n < 5; n++) equal(one.broadcast("typing", { n }), true);
    await until(() => found[1].length >= 5, "the broadcasts");
    equal(two.broadcast("reply"), true);
    await until(() => found[0].length > 0, "the reply");
    equal(found[1], [0, 1, 2, 3, 4].map((n) => ["typing", { n }]));
    equal(found[0], [["reply", {}]]);
    let code = "";
    try {
      one.broadcast("typing", "x".repeat(7000));
    } catch (error) {
      code = error.code;
    }
    equal(code, "too-big");
  };

  scenarios[`whatever breaks, by ${transport}`] = async ({ stage, connect }) => {
    const client = connect({ transports: [transport] });
    await connected(client);
    const first = client.position.id;
    await publishing(stage, async () => {
      await sleep(500);
      await stage("refuse", [true]);
      await sleep(2000);
      await stage("refuse", [false]);
      await sleep(500);
      await stage("restart");
      await sleep(500);
      await stage("silence", [true]);
      await sleep(2000);
      await stage("silence", [false]);
      await sleep(500);
      await stage("restart", { grace_s: 0 });
    });
    await judge(stage, client, first);
    const waits = client.states.filter(({ state }) => state === "waiting").length;
    if (waits < 3) throw new Error(`${waits} waits for three ends`);
  };

  scenarios[`tokens that end are replaced, by ${transport}`] = async ({ stage, token, connect }) => {
    let asked = 0;
    const short = () => {
      asked += 1;
      return token(4);
    };
    const client = connect({ transports: [transport], token: short });
    await connected(client);
    const first = client.position.id;
    await publishing(stage, () => sleep(9000));
    await judge(stage, client, first);
    const reasons = client.states.filter(({ state }) => state === "waiting").map(({ reason }) => reason);
    if (asked < 3) throw new Error(`asked ${asked} times`);
    if (transport === "websocket") equal(reasons, [], "renewed over the connection there is, but");
    else equal(reasons.every((reason) => /^(4001|HTTP 401)/.test(reason)) && reasons.length > 0, true, reasons);
  };

  scenarios[`what is published is stored once and in order, by ${transport}`] = async ({ stage, connect }) => {
    const client = connect({ transports: [transport], receive: false });
    const before = (await stage("inbox")).length;
    let done = 0;
    const waiting = Array.from({ length: 60 }, (_, n) =>
      client.publish("note.added", { n }).finally(() => {
        done += 1;
      }),
    );
    await until(() => done >= 10, "ten acknowledged");
    await stage("refuse", [true]);
    await sleep(500);
    await stage("refuse", [false]);
    await until(() => done >= 30, "thirty acknowledged");
    await stage("restart", { grace_s: 0 });
    const ids = await within(Promise.all(waiting), "all acknowledged");
    const stored = (await stage("inbox")).slice(before);
    equal(stored.map(({ id }) => id), ids);
    equal(stored.map(({ data }) => data.n), Array.from({ length: 60 }, (_, n) => n));
  };

  scenarios[`a token that is refused twice ends the client, by ${transport}`] = async ({ connect }) => {
    let asked = 0;
    const wrong = () => {
      asked += 1;
      return "no.good.token";
    };
    const client = connect({ transports: [transport], token: wrong });
    const error = await rejection(client[Symbol.asyncIterator]().next());
    equal([error.name, error.code, client.error.code, client.state, asked], [
      "ClientError",
      "unauthorized",
      "unauthorized",
      "closed",
      2,
    ]);
    equal((await rejection(client.publish("note.added"))).code, "closed");
  };

  scenarios[`a gap is told, by ${transport}`] = async ({ stage, connect }) => {
    const before = connect({ transports: [transport] });
    await connected(before);
    await stage("publish");
    await before[Symbol.asyncIterator]().next();
    const { position } = before;
    before.close();
    const last = await stage("publish", [100]); // more than the relay keeps in memory
    await stage("forget");
    const client = connect({ transports: [transport], position });
    const messages = client[Symbol.asyncIterator]();
    const next = async () => (await within(messages.next(), "the next message")).value;
    const { reason, cursor, epoch } = await next();
    equal([reason, cursor, epoch], ["too-old", last, position.epoch]);
    const newer = await stage("replace");
    await stage("publish");
    const told = await next();
    equal([told.reason, told.cursor, told.epoch], ["epoch", last + 1, newer]);
    equal(client.position, { id: last + 1, epoch: newer });
    await stage("publish");
    equal((await next()).id, last + 2);
  };
}

scenarios["a connection that goes silent for good is replaced"] = async ({ stage, connect }) => {
  for (const transport of ["websocket", "sse"]) {
    const client = connect({ transports: [transport] });
    await connected(client);
    const first = client.position.id;
    await stage("strand");
    await until(() => client.states.some(({ state }) => state === "waiting"), "waiting");
    await judge(stage, client, first);
  }
};

scenarios["after sleep the connection is asked at once"] = async ({ stage, connect }) => {
  const client = connect({ limits: { pingInterval: 3_600_000 } }); // no ping may detect it first
  await connected(client);
  const first = client.position.id;
  await stage("strand");
  const { now } = Date;
  Date.now = () => now() + 60_000;
  try {
    await until(() => client.states.some(({ state }) => state === "waiting"), "waiting");
  } finally {
    Date.now = now;
  }
  await judge(stage, client, first);
};

scenarios["what does not come through is got round"] = async ({ stage, connect }) => {
  const client = connect();
  await connected(client);
  const first = client.position.id;
  for (const [blocked, transport] of [
    [["websocket"], "sse"],
    [["websocket", "sse"], "poll"],
  ]) {
    await stage("publish", [5]);
    await stage("block", blocked);
    await until(() => client.state === "connected" && client.transport === transport, transport);
  }
  await judge(stage, client, first);
  const id = await client.publish("through.anything", { by: "post" });
  const [last] = (await stage("inbox")).slice(-1);
  equal([last.id, last.event], [id, "through.anything"]);
};

scenarios["the same ref is stored once"] = async ({ stage, connect }) => {
  const client = connect();
  const ref = `the same ${Math.random()}`;
  const first = await client.publish("note.added", "what came first", { ref });
  equal(await client.publish("note.added", "another", { ref }), first);
  equal((await stage("inbox")).filter((message) => message.ref === ref).map(({ data }) => data), ["what came first"]);
};

for (const transport of TRANSPORTS) {
  scenarios[`any value of jsonb arrives or is reported, by ${transport}`] = async ({ stage, connect }) => {
    const [plain, exact] = [connect({ transports: [transport] }), connect({ transports: [transport], parse: String })];
    const [taken, texts] = [[], []];
    plain.on("event", (event) => taken.push(event));
    exact.on("event", ({ data }) => texts.push(data));
    await connected(plain);
    await connected(exact);
    const values = ["('1' || repeat('0', 131071))", "(repeat('[', 5000) || repeat(']', 5000))", "('3458764526536546761')"];
    const written = await stage("publish_values", [values]);
    await until(() => taken.length === 3 && texts.length === 3, "three events");
    const [big, deep, id] = taken;
    equal([big.data, big.error.name, big.text === written[0]], [null, "RangeError", true]);
    let levels = 0;
    for (let value = deep.data; value !== undefined; [value] = value) levels += 1;
    equal([levels, deep.error, id.data], [5000, undefined, 3458764526536547000]);
    equal(texts, written, "texts");
  };
}

for (const transport of TRANSPORTS) {
  scenarios[`a state and its events join without a gap or a duplicate, by ${transport}`] = async ({ stage, connect }) => {
    const failures = ["an error of the application"];
    let loading = 0;
    const state = async () => {
      if (failures.length > 0) throw new Error(failures.pop());
      loading += 1;
      const snapshot = await stage("snapshot");
      await sleep(200);
      loading -= 1;
      return snapshot;
    };
    const client = connect({ transports: [transport], state });
    const wrong = [];
    const loaded = [];
    let last = 0;
    client.on("loaded", (message) => {
      loaded.push(message.reset);
      last = message.state;
      if (client.position !== message.position) wrong.push("position");
    });
    client.on("event", ({ data }) => {
      last += 1;
      if (loading > 0 || data.n !== last) wrong.push([loading, data.n, last]);
    });
    client.on("reset", ({ reason }) => wrong.push(reason));
    const follow = (n) => until(() => last >= n, `the state ${n}`);
    await publishing(stage, async () => {
      await follow(await stage("publish"));
      await stage("replace");
      await stage("restart");
      await follow((await stage("publish")) + 20);
      await stage("refuse", [true]);
      await stage("publish", [3]);
      await stage("forget");
      await stage("restart"); // it has the events in memory
      await stage("refuse", [false]);
      await follow((await stage("publish")) + 20);
    });
    equal(wrong, []);
    equal(loaded.slice(0, 2), [null, "epoch"]);
    equal([...new Set(loaded.slice(2))], ["too-old"]);
    equal(client.states.slice(0, 3).map(({ state }) => state), ["loading", "waiting", "loading"]);
    equal(client.states[1].reason, "no state: an error of the application");
  };
}

scenarios["a client resumes from the text of a position"] = async ({ stage, connect }) => {
  await stage("publish", [2]);
  const { position } = await stage("snapshot");
  const last = await stage("publish", [2]);
  const client = connect({ position });
  const ids = [];
  client.on("event", ({ data }) => ids.push(data.n));
  await until(() => ids.length === 2, "two events");
  equal(ids, [last - 1, last]);
};

scenarios["what cannot be published is told"] = async ({ connect }) => {
  const client = connect({ limits: { maxMessageBytes: 1e7 } });
  equal((await rejection(client.publish(""))).code, "invalid");
  equal((await rejection(client.publish("zero", "\0"))).code, "refused");
  equal((await rejection(client.publish("big", "x".repeat(1e5)))).code, "too-big");
  equal((await rejection(client.publish("loop", 1n))).name, "TypeError");
  await client.publish("note.added"); // a rejected message has not ended it
  client.close();
  equal((await rejection(client.publish("note.added"))).code, "closed");
};

scenarios["listeners get what came before them too, and each message once"] = async ({ stage, connect }) => {
  const client = connect();
  await connected(client);
  const first = client.position.id;
  await stage("publish", [3]);
  await sleep(300);
  const seen = [];
  client.on("event", ({ id }) => seen.push(id - first));
  client.on("reset", ({ reason }) => seen.push(reason));
  await stage("publish", [2]);
  await until(() => seen.length === 5, "five events");
  await stage("replace");
  await stage("publish");
  await until(() => seen.includes("epoch"), "a reset");
  // If the relay detects the new epoch before the event is committed, the event follows the reset.
  equal(seen.slice(0, 6), [1, 2, 3, 4, 5, "epoch"]);
};

scenarios["a listener is heard until it is taken off"] = async ({ stage, connect }) => {
  const client = connect();
  const seen = [];
  const off = client.on("event", ({ id }) => seen.push(id));
  await connected(client);
  await stage("publish");
  await until(() => seen.length === 1, "an event");
  off();
  await stage("publish");
  const messages = client[Symbol.asyncIterator]();
  const { value } = await within(messages.next(), "an event");
  equal(seen, [value.id - 1]);
  client.close();
  equal((await messages.next()).done, true);
};

for (const transport of TRANSPORTS) {
  scenarios[`what a listener does comes after what is being done, by ${transport}`] = async ({ stage, connect }) => {
    const client = connect({ transports: [transport] });
    const seen = [];
    let published;
    client.on("event", ({ id }) => {
      seen.push(id);
      if (seen.length === 1) {
        published = client.publish("note.added", { by: "a listener" }).then(() => "stored", ({ code }) => code);
      }
      if (seen.length === 3) client.close();
    });
    await connected(client);
    const first = client.position.id;
    await stage("publish", [5]);
    await until(() => client.state === "closed", "closed");
    await sleep(300);
    equal(seen, [first + 1, first + 2, first + 3], "none after the client is closed, but");
    equal(client.state, "closed");
    equal(["stored", "closed"].includes(await published), true, "what a listener published");
  };
}

scenarios["a token that cannot be had is asked for again"] = async ({ token, connect }) => {
  let asked = 0;
  const atLast = async () => {
    asked += 1;
    if (asked < 3) throw new Error("logged out");
    return token();
  };
  const client = connect({ token: atLast });
  await connected(client);
  equal(client.states.filter(({ reason }) => reason === "no token: logged out").length, 2);
};

scenarios["a client that does not take its events lets go and misses nothing"] = async ({ stage, connect }) => {
  const client = connect();
  await connected(client);
  const first = client.position.id;
  await stage("publish", [3000]);
  await until(() => client.state === "paused", "paused");
  await judge(stage, client, first);
};

scenarios["a client that only publishes keeps nothing"] = async ({ stage, connect }) => {
  const client = connect({ receive: false });
  await connected(client);
  const last = await stage("publish", [3000]);
  await until(() => client.position.id >= last, "all passed over");
  equal(client.state, "connected");
};

scenarios["a client that is closed at once does nothing"] = async ({ connect }) => {
  const client = connect();
  client.close();
  await sleep(50);
  equal(client.states.map(({ state }) => state), ["closed"]);
};

export const names = Object.keys(scenarios);

/** Runs one scenario. `world` has `stage`, the URL, and `UserRealtime`; and `WebSocket` without a global one. */
export function play(name, world) {
  return withStage(world, scenarios[name]);
}
