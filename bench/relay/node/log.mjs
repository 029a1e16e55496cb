// Reads the log for a Node.js server: pages from Postgres, and LISTEN for notifications.
import { EventEmitter, once } from "node:events";
import pg from "pg";

const PAGE = 1000;
// The numbers of the log fit into a JavaScript number.
pg.types.setTypeParser(20, Number);

export async function openLog(url, userId) {
  const listener = new pg.Client({ connectionString: url });
  const reader = new pg.Client({ connectionString: url });
  await listener.connect();
  await reader.connect();
  // Register like a relay. Otherwise publishers would not notify, and the announcer would not know this server.
  await reader.query("select userrealtime.attend($1, 'node', true)", [userId]);
  const channel = (await reader.query("select userrealtime.channel($1) as name", [userId])).rows[0].name;

  async function page(after, upTo = Number.MAX_SAFE_INTEGER) {
    const answer = await reader.query(
      `select id, event, at, data from userrealtime.event
       where user_id = $1 and id > $2 and id <= $3 order by id limit ${PAGE}`,
      [userId, after, upTo],
    );
    return answer.rows.map((row) => ({ type: "event", ...row }));
  }

  async function head() {
    const answer = await reader.query("select head from userrealtime.log where user_id = $1", [userId]);
    return answer.rows.length ? answer.rows[0].head : 0;
  }

  // The last number that was delivered to the followers.
  let position = await head();
  const progress = new EventEmitter().setMaxListeners(0);

  // Calls `deliver` with each new page, in order.
  async function follow(deliver) {
    let reading = false;
    let more = false;
    async function read() {
      more = true;
      if (reading) return;
      reading = true;
      while (more) {
        more = false;
        for (let events = await page(position); events.length; events = await page(position)) {
          position = events.at(-1).id;
          deliver(events);
          progress.emit("delivered");
          if (events.length < PAGE) break;
        }
      }
      reading = false;
    }
    listener.on("notification", read);
    await listener.query(`listen "${channel}"`);
    await read();
  }

  // Sends one client the events after the number `since`, if it has one, up to the position of the followers, and lets
  // it join them there in the same step, because it could otherwise receive an event twice or not at all. A client that
  // is ahead of the followers waits for them.
  async function catchUp(since, send, join) {
    let after = Number(since ?? position);
    while (after > position) await once(progress, "delivered");
    while (after < position) {
      const upTo = position;
      const events = await page(after, upTo);
      for (const event of events) await send(event);
      after = events.length < PAGE ? upTo : events.at(-1).id;
    }
    join();
  }

  return { follow, catchUp };
}
