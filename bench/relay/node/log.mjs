// The log as a node server reads it: pages from Postgres, and LISTEN for the news.
import { EventEmitter, once } from "node:events";
import pg from "pg";

const PAGE = 1000;
// Numbers of the log stay well within what a JavaScript number holds.
pg.types.setTypeParser(20, Number);

export async function openLog(url, userId) {
  const listener = new pg.Client({ connectionString: url });
  const reader = new pg.Client({ connectionString: url });
  await listener.connect();
  await reader.connect();
  // As a relay does, so that publishers notify, and the announcer knows of this server.
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

  // The last number that was delivered to those who follow.
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

  // Sends one client what came after the number `since`, if it says one, up to where the followers are by then, and has
  // it join them there: in the same step, or an event might come to it twice or not at all. One that is ahead of them
  // waits for them.
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
