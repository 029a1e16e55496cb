// The log as a node server reads it: pages from Postgres, and LISTEN for the news.
import pg from "pg";

const PAGE = 1000;
// Numbers of the log stay well within what a JavaScript number holds.
pg.types.setTypeParser(20, Number);

export async function openLog(url, userId) {
  const listener = new pg.Client({ connectionString: url });
  const reader = new pg.Client({ connectionString: url });
  await listener.connect();
  await reader.connect();
  const channel = (await reader.query("select userrealtime.channel($1) as name", [userId])).rows[0].name;

  async function page(after) {
    const answer = await reader.query(
      `select id, event, at, data from userrealtime.event
       where user_id = $1 and id > $2 order by id limit ${PAGE}`,
      [userId, after],
    );
    return answer.rows.map((row) => ({ type: "event", ...row }));
  }

  async function head() {
    const answer = await reader.query("select head from userrealtime.log where user_id = $1", [userId]);
    return answer.rows.length ? answer.rows[0].head : 0;
  }

  // Calls `deliver` with each new page, in order.
  async function follow(deliver) {
    let position = await head();
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
          if (events.length < PAGE) break;
        }
      }
      reading = false;
    }
    listener.on("notification", read);
    await listener.query(`listen "${channel}"`);
    await read();
  }

  // Sends one client what came after `after`, up to the head as it is by then; gives the last number sent.
  async function catchUp(after, send) {
    let position = after;
    for (;;) {
      const events = await page(position);
      for (const event of events) await send(event);
      if (events.length) position = events.at(-1).id;
      if (events.length < PAGE) return position;
    }
  }

  return { follow, catchUp, head };
}
