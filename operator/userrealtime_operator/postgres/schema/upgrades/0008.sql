-- From schema version 8, which was used before the first release, to version 1 of the released schema: the tables become
-- those of 0001_tables.sql. The files in repeatable/ follow in the same transaction.

drop trigger announce_epoch on userrealtime.log;
drop function userrealtime.announce(), userrealtime.announcement, userrealtime.page;
-- It has one more parameter now, and two functions of the same name would be ambiguous.
drop function userrealtime.present;

alter table userrealtime.presence
    add column listens boolean not null default true,
    add column active_at timestamptz not null default now(),
    add column parked boolean not null default false,
    add column wanted boolean not null default false;

alter table userrealtime.pending add column more boolean not null default false;

create unlogged table userrealtime.signal_queue (
    transaction xid8 not null default pg_current_xact_id(),
    user_id text collate "C",
    head bigint not null,
    epoch text
) with (
    autovacuum_vacuum_scale_factor = 0,
    autovacuum_vacuum_threshold = 10000,
    autovacuum_vacuum_insert_threshold = -1,
    autovacuum_vacuum_cost_delay = 0
);
create index signal_queue_transaction on userrealtime.signal_queue (transaction);

-- It has one more parameter now.
drop function userrealtime.submit;
create index inbox_waiting_of_user on userrealtime.inbox (user_id) where done is null;
create table userrealtime.inbox_quota (
    singleton boolean primary key default true check (singleton),
    max_messages bigint,
    max_bytes bigint
);
create unlogged table userrealtime.inbox_usage (
    user_id text collate "C" primary key,
    messages bigint not null,
    bytes bigint not null,
    done_messages bigint not null default 0,
    done_bytes bigint not null default 0
) with (fillfactor = 50);

create sequence userrealtime.announcer_lease;
create sequence userrealtime.doorbell;

create unlogged table userrealtime.broadcast_queue (
    transaction xid8 not null default pg_current_xact_id(),
    position bigint generated always as identity,
    at timestamptz not null default clock_timestamp(),
    user_id text collate "C" not null,
    message text not null,
    forwarded boolean not null default false,
    primary key (transaction, position)
) with (
    autovacuum_vacuum_scale_factor = 0,
    autovacuum_vacuum_threshold = 10000,
    autovacuum_vacuum_insert_threshold = -1,
    autovacuum_vacuum_cost_delay = 0
);
create index broadcast_queue_forwarded on userrealtime.broadcast_queue (user_id) where forwarded;

create sequence userrealtime.broadcast_lease;

create sequence userrealtime.broadcast_doorbell;

create sequence userrealtime.broadcast_taken;

create sequence userrealtime.broadcast_dropped;

create table userrealtime.broadcast_secret (
    secret text not null default gen_random_uuid()::text || gen_random_uuid()::text
);
insert into userrealtime.broadcast_secret default values;

-- The order of any other collation can change with the operating system of the server, and then an index misses rows.
alter table userrealtime.registration alter column scope type text collate "C";
alter table userrealtime.role alter column scope type text collate "C";
alter table userrealtime.role add column series text, add column resource_name text;
create table userrealtime.revoked_role (
    name text collate "C" primary key,
    scope text collate "C" not null,
    revoked_at timestamptz not null default now()
);
create index revoked_role_scope_idx on userrealtime.revoked_role (scope);

update userrealtime.presence set clients = 100000 where clients > 100000;
alter table userrealtime.presence
    drop constraint presence_clients_check,
    add constraint presence_clients_check check (clients between 0 and 100000);
-- Replaced and not dropped, so that the rights on it stay.
create or replace view userrealtime.online as
    select user_id, least(sum(clients), 2147483647)::int as clients, min(since) as since, max(seen_at) as seen_at,
        least(coalesce(sum(clients) filter (where parked), 0), 2147483647)::int as parked
    from userrealtime.presence
    where clients > 0 and seen_at > now() - interval '3 minutes'
    group by user_id;
