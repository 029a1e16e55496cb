// The shop with Drizzle, on postgres.js. See docs/guides.md.
import { asc, eq, sql as expression } from "drizzle-orm";
import { bigint, numeric, pgTable, text } from "drizzle-orm/pg-core";
import { drizzle } from "drizzle-orm/postgres-js";
import postgres from "postgres";
import { position, publish, readKeys, sign, take } from "userrealtime/server";

import { serve } from "./http.mjs";

const CHECK_VIOLATION = "23514";
const orders = pgTable("orders", {
  id: bigint("id", { mode: "number" }).primaryKey().generatedAlwaysAsIdentity(),
  customer: text("customer").notNull(),
  total: numeric("total", { precision: 10, scale: 2, mode: "number" }).notNull(),
});
const credit = pgTable("credit", {
  customer: text("customer").primaryKey(),
  available: numeric("available", { precision: 10, scale: 2, mode: "number" }).notNull(),
});
const db = drizzle(postgres(process.env.DATABASE_URL));

/** The connection of a transaction of Drizzle, which `userrealtime/server` accepts. */
const of = (tx) => tx.session.client;

/** The order, the event and the credit in one transaction: all of them or none. */
async function place({ customer, total }) {
  try {
    const id = await db.transaction(async (tx) => {
      const [order] = await tx.insert(orders).values({ customer, total: Number(total) }).returning();
      await publish(of(tx), customer, "order.placed", { id: order.id, total });
      const available = expression`${credit.available} - ${total}`;
      await tx.update(credit).set({ available }).where(eq(credit.customer, customer));
      return order.id;
    });
    return [201, { id }];
  } catch (error) {
    if ((error.cause ?? error).code === CHECK_VIOLATION) return [409, { error: "the credit is too low" }];
    throw error;
  }
}

/** State and position in one snapshot: a transaction with REPEATABLE READ. */
async function list({ customer }) {
  const answer = await db.transaction(
    async (tx) => ({
      state: await tx.select().from(orders).where(eq(orders.customer, customer)).orderBy(asc(orders.id)),
      position: await position(of(tx), customer),
    }),
    { isolationLevel: "repeatable read", accessMode: "read only" },
  );
  return [200, answer];
}

/** One pass over the inbox. In a real application a worker does this whenever it is notified. */
async function inbox() {
  const taken = await db.transaction(async (tx) => {
    const messages = await take(of(tx));
    for (const { id, userId, data } of messages) await publish(of(tx), userId, "echo", { message: id, data });
    return messages.length;
  });
  return [200, { taken }];
}

serve(
  {
    "POST /orders": place,
    "GET /orders": list,
    "GET /position": async ({ customer }) => [200, await position(db.$client, customer)],
    "POST /inbox": inbox,
    // TOKEN_KEYS is where the Secret of the user is mounted.
    "GET /token": async ({ customer }) => [200, await sign(await readKeys(process.env.TOKEN_KEYS), customer)],
  },
  Number(process.argv[2]),
);
