// The shop with postgres.js. See docs/guides.md.
import postgres from "postgres";
import { position, publish, readKeys, sign, take } from "userrealtime/server";

import { serve } from "./http.mjs";

const CHECK_VIOLATION = "23514";
const sql = postgres(process.env.DATABASE_URL);

/** The order, the event and the credit in one transaction: all of them or none. */
async function place({ customer, total }) {
  try {
    const id = await sql.begin(async (sql) => {
      const [order] = await sql`insert into orders (customer, total) values (${customer}, ${total}) returning id`;
      await publish(sql, customer, "order.placed", { id: Number(order.id), total });
      await sql`update credit set available = available - ${total} where customer = ${customer}`;
      return Number(order.id);
    });
    return [201, { id }];
  } catch (error) {
    if (error.code === CHECK_VIOLATION) return [409, { error: "the credit is too low" }];
    throw error;
  }
}

/** State and position in one snapshot: a transaction with REPEATABLE READ. */
async function orders({ customer }) {
  const answer = await sql.begin("isolation level repeatable read read only", async (sql) => {
    const rows = await sql`select id, customer, total from orders where customer = ${customer} order by id`;
    const state = rows.map(({ id, total, ...order }) => ({ id: Number(id), ...order, total: Number(total) }));
    return { state, position: await position(sql, customer) };
  });
  return [200, answer];
}

/** One pass over the inbox. In a real application a worker does this whenever it is notified: `sql.listen`. */
async function inbox() {
  const taken = await sql.begin(async (sql) => {
    const messages = await take(sql);
    for (const { id, userId, data } of messages) await publish(sql, userId, "echo", { message: id, data });
    return messages.length;
  });
  return [200, { taken }];
}

serve(
  {
    "POST /orders": place,
    "GET /orders": orders,
    "GET /position": async ({ customer }) => [200, await position(sql, customer)],
    "POST /inbox": inbox,
    // TOKEN_KEYS is where the Secret of the user is mounted.
    "GET /token": async ({ customer }) => [200, await sign(await readKeys(process.env.TOKEN_KEYS), customer)],
  },
  Number(process.argv[2]),
);
