-- The tables of the demo. They are in the same database as the schema userrealtime: a change and its event are committed in
-- one transaction. docs/demo.md lists the permissions of the demo's role.
create schema if not exists userrealtime_demo;

create table if not exists userrealtime_demo.message (
    number bigint generated always as identity primary key,
    recipient text not null,
    sender text not null,
    text text not null,
    sent timestamptz not null default now()
);
create index if not exists message_of_recipient on userrealtime_demo.message (recipient, number);

create table if not exists userrealtime_demo.counter (
    user_id text primary key,
    ticks bigint not null
);
