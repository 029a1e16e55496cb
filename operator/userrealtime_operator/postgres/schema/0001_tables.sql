-- The tables of the log.
--
-- From release 0.1.0 on, a released file is never changed: tables change by a further numbered file. Functions, triggers
-- and policies are in repeatable/, and are applied again whenever their text changes.

create table userrealtime.log (
    user_id text collate "C" primary key,
    head bigint not null default 0,
    epoch text not null default gen_random_uuid()::text
);
comment on table userrealtime.log is
    'One row per user: head is the number of the newest event, epoch identifies this incarnation of the log.';

create table userrealtime.event (
    user_id text collate "C" not null,
    id bigint not null,
    event text not null,
    at timestamptz not null,
    data jsonb not null,
    primary key (user_id, id)
);
comment on table userrealtime.event is
    'The events. Rows are only appended and pruned. Per user, id has no gaps and follows the order of the commits.';

-- Rows of transactions that have not committed. A crash leaves no such transaction, so the tables need no WAL.
create unlogged table userrealtime.pending (
    transaction xid8 primary key default pg_current_xact_id(),
    user_id text collate "C" not null,
    event text not null,
    data jsonb not null,
    more boolean not null default false
);
comment on table userrealtime.pending is
    'The first event of each open publishing transaction. The row carries the deferred trigger: numbering runs once per '
    'transaction. more is true if the transaction has rows in staged.';

create unlogged table userrealtime.staged (
    transaction xid8 not null default pg_current_xact_id(),
    position bigint generated always as identity,
    user_id text collate "C" not null,
    event text not null,
    data jsonb not null,
    primary key (transaction, position)
);
comment on table userrealtime.staged is 'Further events of open publishing transactions. Empty for every other session.';

-- The announcer reads this queue by transaction id and deletes what it has read (repeatable/signals.sql). Signals are
-- hints, so nothing is lost when a crash empties the table.
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
comment on table userrealtime.signal_queue is
    'Users whose log has grown and who have not been announced yet. A row without a user stands for a message in the '
    'inbox.';

-- Sequences and not tables: a reader sees the current value whatever its snapshot, and no writer waits for another.
create sequence userrealtime.announcer_lease;
comment on sequence userrealtime.announcer_lease is
    'Until when an announcer polls signal_queue, in milliseconds since 1970, times 1024, plus a number that identifies '
    'the announcer. Within this lease publishers insert into the queue and do not notify.';

create sequence userrealtime.doorbell;
comment on sequence userrealtime.doorbell is
    'Until when somebody listens, in milliseconds since 1970. After that publishers neither insert nor notify.';

-- Broadcasts wait here until an announcer takes them (repeatable/broadcast.sql). They are sent at most once, so nothing
-- that matters is lost when a crash empties the table.
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
comment on table userrealtime.broadcast_queue is
    'Broadcasts that have not been sent yet, each as the text that clients receive. forwarded: a relay has sent it for a '
    'client.';

create sequence userrealtime.broadcast_lease;
comment on sequence userrealtime.broadcast_lease is
    'Until when an announcer polls broadcast_queue, in milliseconds since 1970, times 1024, plus a number that identifies '
    'the announcer.';

create sequence userrealtime.broadcast_doorbell;
comment on sequence userrealtime.broadcast_doorbell is
    'Until when an announcer waits for broadcasts, in milliseconds since 1970. After that they are dropped.';

create sequence userrealtime.broadcast_taken;
comment on sequence userrealtime.broadcast_taken is
    'How many positions of broadcast_queue announcers have taken: the difference to the newest position bounds the queue.';

create sequence userrealtime.broadcast_dropped;
comment on sequence userrealtime.broadcast_dropped is
    'Counts broadcasts that were dropped: no announcer ran, or the queue was full.';

create table userrealtime.broadcast_secret (
    secret text not null default gen_random_uuid()::text || gen_random_uuid()::text
);
comment on table userrealtime.broadcast_secret is
    'One row, from which the names of the channels of broadcasts are computed: a relay knows only that of its user.';
insert into userrealtime.broadcast_secret default values;

create table userrealtime.registration (
    resource uuid primary key,
    scope text collate "C" not null,
    user_id text collate "C" not null
);
create index registration_user_id_idx on userrealtime.registration (user_id);
create index registration_scope_idx on userrealtime.registration (scope);
comment on table userrealtime.registration is
    'The UserRealtime resources that are served from this database, by uid, written by the operator. scope names the '
    'cluster and namespace. A user''s log is removed with the last registration.';

create table userrealtime.role (
    name text collate "C" primary key,
    scope text collate "C" not null,
    resource uuid not null,
    user_id text collate "C" not null,
    fingerprint text not null,
    drop_after timestamptz,
    series text,
    resource_name text
);
create index role_resource_idx on userrealtime.role (resource);
create index role_scope_idx on userrealtime.role (scope);
comment on table userrealtime.role is
    'The database roles of relays, created by the operator. fingerprint is the SHA-256 of the password, which is 256 '
    'random bits. drop_after is set once another role has replaced this one. series is that of the Secret with the '
    'password: another one revokes this role. resource_name is the name of the resource, for the audit log.';

create table userrealtime.revoked_role (
    name text collate "C" primary key,
    scope text collate "C" not null,
    revoked_at timestamptz not null default now()
);
create index revoked_role_scope_idx on userrealtime.revoked_role (scope);
comment on table userrealtime.revoked_role is
    'Database roles of relays that serve no user any more, until they are dropped.';

create table userrealtime.inbox (
    id bigint generated always as identity primary key,
    user_id text collate "C" not null,
    ref text collate "C" not null,
    event text not null,
    data jsonb not null,
    at timestamptz not null default now(),
    done timestamptz,
    constraint inbox_ref unique (user_id, ref)
);
create index inbox_waiting on userrealtime.inbox (id) where done is null;
create index inbox_done on userrealtime.inbox (done) where done is not null;
comment on table userrealtime.inbox is
    'Messages from users. The application sets done when it has processed a message. The ref of a message is '
    'remembered until its row is deleted.';

create index inbox_waiting_of_user on userrealtime.inbox (user_id) where done is null;

create table userrealtime.inbox_quota (
    singleton boolean primary key default true check (singleton),
    max_messages bigint,
    max_bytes bigint
);
comment on table userrealtime.inbox_quota is
    'How much one user may have waiting in the inbox, written by the operator. Null or no row: no limit.';

-- A crash empties the table. The next message of a user then counts what is waiting.
create unlogged table userrealtime.inbox_usage (
    user_id text collate "C" primary key,
    messages bigint not null,
    bytes bigint not null,
    done_messages bigint not null default 0,
    done_bytes bigint not null default 0
) with (fillfactor = 50);
comment on table userrealtime.inbox_usage is
    'The messages of each user that were waiting when they were last counted, and all that were stored since then. The '
    'columns done_* have the processed messages that the last call of trim_inbox left, and those of later counts.';

create table userrealtime.presence (
    user_id text collate "C" not null,
    instance text collate "C" not null,
    clients int not null check (clients between 0 and 100000),
    since timestamptz not null default now(),
    seen_at timestamptz not null default now(),
    listens boolean not null default true,
    active_at timestamptz not null default now(),
    parked boolean not null default false,
    wanted boolean not null default false,
    primary key (user_id, instance)
);
comment on table userrealtime.presence is
    'One row per running relay: its clients, since when it has any or none, when it last reported, whether it receives '
    'its signals by LISTEN, and when it last had traffic. An activator has a row for each user whose clients it keeps '
    'without a pod (parked); wanted: a broadcast for them was dropped.';

create view userrealtime.online as
    select user_id, least(sum(clients), 2147483647)::int as clients, min(since) as since, max(seen_at) as seen_at,
        least(coalesce(sum(clients) filter (where parked), 0), 2147483647)::int as parked
    from userrealtime.presence
    where clients > 0 and seen_at > now() - interval '3 minutes'
    group by user_id;
comment on view userrealtime.online is
    'The users that have clients connected now. parked: the clients whose connections activators keep without a pod.';
