-- Signals: how a commit wakes the relays of the users it publishes to.
--
-- NOTIFY takes one lock for the whole server at commit and holds it through the WAL flush, so transactions that notify
-- commit one after another. While events arrive, publishers therefore do not notify. They insert a row into signal_queue,
-- and the *announcer* polls the queue and notifies in separate transactions, which write no WAL and are not flushed.
--
-- The announcer holds the *lease* while it polls. Outside the lease, when no announcer runs or too little happens to
-- poll for, a publisher *rings*: it notifies the channel of each user, and the channel userrealtime_doorbell, on which the
-- announcers listen. It rings only while the *doorbell* is armed: by an announcer, or by a relay that listens. Without
-- a listener, a publisher only writes its events.
--
-- No signal is lost when the lease ends or the doorbell is armed:
--   * A publisher takes a lock on pending or on signal_queue before it reads the lease and the doorbell.
--   * The other side changes the lease or the doorbell before it reads who holds such a lock, and polls until these
--     transactions have ended.
-- A lease that expires because its announcer died leaves at most its last second in the queue, for the next announcer.

create or replace function userrealtime.channel(user_id text) returns text
    language sql immutable parallel safe
    return 'urt_' || left(encode(sha256(convert_to(user_id, 'UTF8')), 'hex'), 32);
comment on function userrealtime.channel is
    'The NOTIFY channel of a user. It is a hash, since a channel name has at most 63 bytes, and anyone may listen on any '
    'channel.';

create or replace function userrealtime.is_leased(lease bigint) returns boolean
    language sql volatile
    -- A lease that ends later than any announcer asks for was written before the clock was set back.
    return (lease >> 10) - (date_part('epoch', clock_timestamp()) * 1000)::bigint between 1 and 10000;
comment on function userrealtime.is_leased is 'Whether an announcer polls the queue, given the value of announcer_lease.';

create or replace function userrealtime.is_armed(doorbell bigint) returns boolean
    language sql volatile
    return doorbell - (date_part('epoch', clock_timestamp()) * 1000)::bigint between 1 and 600000;
comment on function userrealtime.is_armed is 'Whether somebody listens, given the value of doorbell.';

create or replace function userrealtime.arm_doorbell() returns text[]
    language plpgsql volatile security definer
    set search_path = pg_catalog, pg_temp
    as $$
declare
    armed_until constant bigint := (select last_value from userrealtime.doorbell);
    clock constant bigint := (date_part('epoch', clock_timestamp()) * 1000)::bigint;
begin
    if armed_until - clock not between 120000 and 600000 then
        perform setval('userrealtime.doorbell', clock + 180000);
    end if;
    return case when userrealtime.is_armed(armed_until) then '{}' else userrealtime.unsettled() end;
end
$$;
comment on function userrealtime.arm_doorbell is
    'Has publishers notify for three minutes from now. Returns the transactions that may still commit without doing so: '
    'the caller polls until they have ended.';

create or replace function userrealtime.may_notify() returns boolean
    language sql volatile
    return pg_notification_queue_usage() < 0.5;
comment on function userrealtime.may_notify is
    'Whether the notification queue of the server has room. A NOTIFY that finds it full fails the commit, while a signal '
    'that is left out only makes the event wait for the poll of the relay.';

-- Only publishers may call ring() and signal().
create or replace function userrealtime.ring(users text[]) returns void
    language plpgsql
    set search_path = pg_catalog, pg_temp
    as $$
begin
    if (select userrealtime.is_armed(last_value) from userrealtime.doorbell) and userrealtime.may_notify() then
        perform pg_notify(userrealtime.channel(u), '') from unnest(users) u;
        -- 200 channels of 36 bytes: a payload has at most 8,000 bytes.
        perform pg_notify('userrealtime_doorbell', string_agg(userrealtime.channel(u), ' '))
        from unnest(users) with ordinality as listed (u, place)
        group by place / 200;
    end if;
end
$$;
comment on function userrealtime.ring is
    'Notifies the channels of these users, and the doorbell of their channels. For publishers outside the lease.';

-- It runs at every commit of a publisher, with the search path of the caller (repeatable/publish.sql).
create or replace function userrealtime.signal(user_id text, head bigint, epoch text) returns void
    language plpgsql
    as $$
declare
    -- Expressions and not statements: a statement costs about a tenth of a commit.
    lease constant bigint := pg_catalog.pg_sequence_last_value('userrealtime.announcer_lease');
    doorbell bigint;
begin
    if userrealtime.is_leased(lease) then
        insert into userrealtime.signal_queue (user_id, head, epoch) values (signal.user_id, signal.head, signal.epoch);
        return;
    end if;
    doorbell := pg_catalog.pg_sequence_last_value('userrealtime.doorbell');
    if userrealtime.is_armed(doorbell) then
        perform userrealtime.ring(array[signal.user_id]);
    end if;
end
$$;
comment on function userrealtime.signal is
    'Signals that the log of a user has another head or epoch. The caller holds a lock on pending or on signal_queue.';

create or replace function userrealtime.signal_inbox(id bigint) returns void
    language plpgsql
    set search_path = pg_catalog, pg_temp
    as $$
begin
    insert into userrealtime.signal_queue (head)
    select signal_inbox.id from userrealtime.announcer_lease where userrealtime.is_leased(last_value);
    if not found and userrealtime.may_notify() then
        perform pg_notify('userrealtime_inbox', signal_inbox.id::text),
                pg_notify('userrealtime_doorbell', '');
    end if;
end
$$;
comment on function userrealtime.signal_inbox is 'Signals at commit that the inbox has a message with this id.';

create or replace function userrealtime.renew_lease(announcer int, duration_ms int) returns boolean
    language plpgsql volatile security definer
    set search_path = pg_catalog, pg_temp
    as $$
declare
    held constant bigint := (select last_value from userrealtime.announcer_lease);
begin
    if userrealtime.is_leased(held) and held & 1023 <> announcer then
        return false;
    end if;
    perform setval(
        'userrealtime.announcer_lease',
        ((date_part('epoch', clock_timestamp()) * 1000)::bigint + least(duration_ms, 5000) << 10) + announcer
    );
    return true;
end
$$;
comment on function userrealtime.renew_lease is
    'Takes or extends the lease for an announcer, a number from 0 to 1023. False if another announcer holds it.';

create or replace function userrealtime.end_lease(announcer int) returns text[]
    language plpgsql volatile security definer
    set search_path = pg_catalog, pg_temp
    as $$
begin
    if (select last_value from userrealtime.announcer_lease) & 1023 = announcer then
        perform setval('userrealtime.announcer_lease', 1);
    end if;
    return userrealtime.unsettled();
end
$$;
comment on function userrealtime.end_lease is
    'Ends the lease of an announcer. Returns the transactions that may still commit a row of signal_queue: the announcer '
    'polls until they have ended.';

create or replace function userrealtime.unsettled(among text[] default null) returns text[]
    language sql volatile security definer
    set search_path = pg_catalog, pg_temp
    return (
        select coalesce(array_agg(l.virtualtransaction), '{}')
        from pg_locks l
        where l.locktype = 'relation'
          and l.relation in ('userrealtime.pending'::regclass, 'userrealtime.signal_queue'::regclass)
          and l.database = (select d.oid from pg_database d where d.datname = current_database())
          and l.mode = 'RowExclusiveLock'
          and l.pid is distinct from pg_backend_pid()
          and (among is null or l.virtualtransaction = any (among))
    );
comment on function userrealtime.unsettled is
    'The open transactions that have published or signalled; of those in `among`, if it is given.';

create or replace function userrealtime.leased() returns boolean
    language sql volatile security definer
    set search_path = pg_catalog, pg_temp
    return (select userrealtime.is_leased(last_value) from userrealtime.announcer_lease);
comment on function userrealtime.leased is 'Whether any announcer holds the lease.';

create or replace function userrealtime.announce(
    since text,
    notifying boolean,
    out user_id text,
    out head bigint,
    out epoch text,
    out listens boolean,
    out upto text,
    out queued int
) returns setof record
    language plpgsql volatile security definer
    set search_path = pg_catalog, pg_temp
    -- The queue has no statistics, and its dead rows must not be read at each poll.
    set enable_seqscan = off
    set enable_hashjoin = off
    set enable_mergejoin = off
    set plan_cache_mode = force_generic_plan
    as $$
declare
    -- A transaction is read once: it was not visible to the snapshot of the last poll, and is visible now.
    later constant xid8 := pg_snapshot_xmax(coalesce(since, '3:3:')::pg_snapshot);
    overlapping constant xid8[] := array(select pg_snapshot_xip(coalesce(since, '3:3:')::pg_snapshot));
    messages boolean := false;
    parked boolean := false;
begin
    for announce.user_id, announce.head, announce.epoch, announce.listens, announce.upto,
        announce.queued, messages, parked in
        with committed as materialized (
            select q.user_id, q.head, q.epoch from userrealtime.signal_queue q where q.transaction >= later
            union all
            select q.user_id, q.head, q.epoch from userrealtime.signal_queue q where q.transaction = any (overlapping)
        ), newest as materialized (
            select distinct on (c.user_id) c.user_id, c.head, c.epoch from committed c order by c.user_id, c.head desc
        ), known as (
            select n.user_id, n.head, n.epoch, p.listens, p.parked, n.user_id is null as messages
            from newest n cross join lateral (
                select bool_or(r.listens) as listens, bool_or(r.parked) as parked from userrealtime.presence r
                where r.user_id = n.user_id and r.seen_at > now() - interval '3 minutes'
            ) p
            where p.listens is not null or n.user_id is null
        )
        select k.user_id, k.head, k.epoch, k.listens, now_at.upto, (select count(*) from newest),
            coalesce(k.messages, false), coalesce(k.parked, false)
        from (select pg_current_snapshot()::text as upto) now_at left join known k on true
    loop
        if messages then
            if notifying then
                perform pg_notify('userrealtime_inbox', announce.head::text);
            end if;
            announce.head := null;
        elsif notifying then
            if announce.listens then
                perform pg_notify(userrealtime.channel(announce.user_id), '');
            end if;
            if parked then
                perform pg_notify('userrealtime_parked', userrealtime.channel(announce.user_id));
            end if;
        end if;
        return next;
    end loop;
end
$$;
comment on function userrealtime.announce is
    'Reads what has been committed to signal_queue since a position, and notifies the relays that listen, and the '
    'activators about users without a pod whose clients they keep. Returns the users that have a running relay, with the newest head of each, and in every row the position for the next call and '
    'the number of users that were found, with and without a relay. If none has one, user_id is null in one row. `since` '
    'is null for all that the queue holds.';

create or replace function userrealtime.forget_signals(since text, before text) returns void
    language sql volatile security definer
    set search_path = pg_catalog, pg_temp
    set enable_seqscan = off
    begin atomic
        -- The lower bound leaves out the dead rows of earlier calls.
        delete from userrealtime.signal_queue
        where transaction >= pg_snapshot_xmin(coalesce(since, '3:3:')::pg_snapshot)
          and transaction < pg_snapshot_xmin(before::pg_snapshot);
    end;
comment on function userrealtime.forget_signals is
    'Deletes the rows of signal_queue that were announced between two positions.';

create or replace function userrealtime.standings(
    channels text[], out user_id text, out head bigint, out epoch text, out listens boolean
) returns setof record
    language sql stable security definer
    set search_path = pg_catalog, pg_temp
    as $$
    select l.user_id, l.head, l.epoch, p.listens
    from (
        select r.user_id, bool_or(r.listens) as listens from userrealtime.presence r
        where r.seen_at > now() - interval '3 minutes' and userrealtime.channel(r.user_id) = any (channels)
        group by r.user_id
    ) p join userrealtime.log l using (user_id)
$$;
comment on function userrealtime.standings is
    'The heads of the logs whose channels the doorbell named, for users that have a running relay.';

create or replace function userrealtime.listeners() returns bigint
    language sql stable security definer
    set search_path = pg_catalog, pg_temp
    return (select count(*) from userrealtime.presence p where p.listens and p.seen_at > now() - interval '3 minutes');
comment on function userrealtime.listeners is
    'How many relays receive their signals by LISTEN. Each notification wakes all of them.';

create or replace function userrealtime.heads(out user_id text, out head bigint, out epoch text) returns setof record
    language sql stable security definer
    set search_path = pg_catalog, pg_temp
    as $$
    select l.user_id, l.head, l.epoch from userrealtime.log l
    where l.user_id in (
        select p.user_id from userrealtime.presence p where p.seen_at > now() - interval '3 minutes' and not p.parked
    )
$$;
comment on function userrealtime.heads is 'The heads of the logs of all users that have a running relay.';

create or replace function userrealtime.signal_epoch() returns trigger
    language plpgsql security definer
    set search_path = pg_catalog, pg_temp
    as $$
begin
    -- Before signal() reads the lease and the doorbell: nothing was published, so pending is not locked.
    lock table userrealtime.signal_queue in row exclusive mode;
    perform userrealtime.signal(new.user_id, new.head, new.epoch);
    return null;
end
$$;
comment on function userrealtime.signal_epoch is 'Signals that a log has got another epoch.';

do $$
begin
    if not exists (select from pg_trigger where tgrelid = 'userrealtime.log'::regclass and tgname = 'signal_epoch') then
        create trigger signal_epoch after update of epoch on userrealtime.log
            for each row execute function userrealtime.signal_epoch();
        alter table userrealtime.log enable always trigger signal_epoch;
    end if;
    -- For standings(): one index entry per running relay.
    create index if not exists presence_channel on userrealtime.presence (userrealtime.channel(user_id));
end
$$;

create or replace function userrealtime.grant_bridge(role name) returns void
    language plpgsql
    set search_path = pg_catalog, pg_temp
    as $$
begin
    execute format('grant connect on database %I to %I', current_database(), role);
    execute format('grant usage on schema userrealtime to %I', role);
    execute format(
        'grant execute on function userrealtime.arm_doorbell, userrealtime.renew_lease, userrealtime.end_lease, userrealtime.leased, '
        'userrealtime.unsettled, userrealtime.announce, userrealtime.forget_signals, userrealtime.standings, '
        'userrealtime.listeners, userrealtime.heads, userrealtime.arm_broadcasts, userrealtime.lease_broadcasts, '
        'userrealtime.release_broadcasts, userrealtime.take_broadcasts, userrealtime.broadcasts_dropped to %I',
        role
    );
end
$$;
comment on function userrealtime.grant_bridge is 'Grants a role the rights that the bridge needs, and no others.';

revoke execute on function
    userrealtime.channel, userrealtime.is_leased, userrealtime.is_armed, userrealtime.arm_doorbell, userrealtime.may_notify, userrealtime.ring, userrealtime.signal,
    userrealtime.signal_inbox, userrealtime.renew_lease, userrealtime.end_lease, userrealtime.unsettled,
    userrealtime.leased, userrealtime.announce, userrealtime.forget_signals, userrealtime.standings,
    userrealtime.listeners, userrealtime.heads, userrealtime.signal_epoch, userrealtime.grant_bridge
    from public;
