// The part of an application's server, for the examples beside it: a session, and tokens of the logged-in user.
// Here it is the demo of `make up`, which has no passwords.
import { setTimeout as delay } from "node:timers/promises";

const DEMO = process.env.DEMO_URL ?? "http://localhost:8081/demo";
const ATTEMPTS = 20;

/** Log in. Return the URL of the user's pod, and an asynchronous function that returns a new token. */
export async function logIn(user = "alice") {
  const login = await request("/login", {
    method: "POST",
    headers: { "Content-Type": "application/json", Origin: new URL(DEMO).origin },
    body: JSON.stringify({ user }),
  });
  const [cookie] = login.headers.getSetCookie()[0].split(";");
  const credentials = async () => (await request("/token", { headers: { Cookie: cookie } })).json();
  return { url: (await credentials()).url, token: async () => (await credentials()).token };
}

/** Print what a client reports, as a line of JSON. */
export function show(line) {
  console.log(JSON.stringify(line));
}

/** Return the response of the demo. It limits the rate of requests, so a failed request is repeated. */
async function request(path, options) {
  for (let attempt = 1; ; attempt++) {
    try {
      const response = await fetch(DEMO + path, options);
      if (response.ok) return response;
      throw new Error(`${response.status} ${await response.text()}`);
    } catch (error) {
      if (attempt === ATTEMPTS) {
        throw new Error(`no valid answer from ${DEMO}${path}: run \`make up\`, or set DEMO_URL`, { cause: error });
      }
      if (attempt === 1) console.error(`${DEMO}${path}: ${error.cause?.code ?? error.message}; trying again`);
      await delay(1000);
    }
  }
}
