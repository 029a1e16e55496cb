-- Broadcasts: events that nobody needs later, such as typing, progress, or the tokens of a model. They are sent at most
-- once, to the clients that are connected, and are never part of a log.
--
-- broadcast() inserts into an unlogged queue, as part of the calling transaction. After the commit an announcer takes the
-- row and sends it. The caller waits for nobody: it takes no lock that another one waits for, and where no announcer runs,
-- or too much waits, the broadcast is dropped and counted.
--
-- An announcer holds a *lease* while it polls the queue. Outside the lease a caller *rings*, as publishers do
-- (signals.sql), while the *doorbell* shows that an announcer waits. The lease, the doorbell and the queue are not those
-- of the signals: broadcasts do not delay them.
--
-- The channel of a user's broadcasts has a secret name, because a notification contains the broadcast, and every role may
-- listen and notify on every channel whose name it knows.

create or replace function userrealtime.broadcast_channel_of(secret text, user_id text) returns text
    language sql immutable parallel safe
    return 'urb_' || left(encode(sha256(convert_to(secret || user_id, 'UTF8')), 'hex'), 48);
comment on function userrealtime.broadcast_channel_of is 'The channel of the broadcasts of a user, given the secret.';

create or replace function userrealtime.broadcast_channel(user_id text) returns text
    language sql stable security definer
    set search_path = pg_catalog, pg_temp
    return (
        select userrealtime.broadcast_channel_of(s.secret, broadcast_channel.user_id)
        from userrealtime.broadcast_secret s
        where coalesce((select userrealtime.served_user()), broadcast_channel.user_id) = broadcast_channel.user_id
        limit 1
    );
comment on function userrealtime.broadcast_channel is
    'The channel of the broadcasts of a user. Null for a role that serves another user.';

create or replace function userrealtime.check_broadcast(user_id text, event text, data jsonb) returns void
    language plpgsql immutable
    set search_path = pg_catalog, pg_temp
    as $$
begin
    perform userrealtime.check_name('userrealtime.broadcast', 'user_id', user_id);
    perform userrealtime.check_name('userrealtime.broadcast', 'event', event);
    if data is null then
        raise exception 'userrealtime.broadcast: data must not be null'
            using errcode = 'null_value_not_allowed',
                  hint = 'Pass ''{}'', or the JSON value ''null''.';
    end if;
    raise exception 'userrealtime.broadcast: event and data are % bytes of JSON; the limit is 7000',
        octet_length(to_json(event)::text) + octet_length(data::text)
        using errcode = 'program_limit_exceeded',
              hint = 'Publish it, or broadcast a reference and let the receiver fetch the content.';
end
$$;
comment on function userrealtime.check_broadcast is 'Raises the error of a broadcast that is invalid.';

create or replace function userrealtime.may_broadcast() returns boolean
    language sql volatile
    return coalesce(pg_sequence_last_value('userrealtime.broadcast_queue_position_seq'), 0)
        - coalesce(pg_sequence_last_value('userrealtime.broadcast_taken'), 0) < 20000;
comment on function userrealtime.may_broadcast is
    'Whether the queue has room, counted by positions: an announcer counts what it has taken.';

create or replace function userrealtime.broadcast(user_id text, event text, data jsonb default '{}') returns void
    language plpgsql security definer
    set search_path = pg_catalog, pg_temp
    as $$
declare
    name constant text := to_json(event)::text;
    content constant text := data::text;
begin
    -- A notification has at most 7,999 bytes: these, the rest of the message, and its position.
    if not (
        userrealtime.is_name(user_id) and userrealtime.is_name(event)
        and coalesce(octet_length(name) + octet_length(content) <= 7000, false)
    ) then
        perform userrealtime.check_broadcast(user_id, event, data);
    end if;
    -- One statement: it locks the queue before it reads the lease. An announcer reads these locks after the lease.
    insert into userrealtime.broadcast_queue (user_id, message)
    select broadcast.user_id, '{"type":"broadcast","event":' || name || ',"data":' || content || '}'
    where userrealtime.may_broadcast() and (
        coalesce(userrealtime.is_leased(pg_sequence_last_value('userrealtime.broadcast_lease')), false)
        or coalesce(userrealtime.is_armed(pg_sequence_last_value('userrealtime.broadcast_doorbell')), false)
        and userrealtime.may_notify()
    );
    if not found then
        perform nextval('userrealtime.broadcast_dropped');
    elsif not coalesce(userrealtime.is_leased(pg_sequence_last_value('userrealtime.broadcast_lease')), false) then
        perform pg_notify('userrealtime_broadcast', '');
    end if;
end
$$;
comment on function userrealtime.broadcast is
    'Sends an event to the clients of a user that are connected when the calling transaction commits. It is not stored, '
    'and may be lost. The name of the event and the data have at most 7000 bytes of JSON.';

create or replace function userrealtime.forward_broadcasts(user_id text, messages text[]) returns int
    language plpgsql volatile security definer
    set search_path = pg_catalog, pg_temp
    -- The queue has no statistics, and its dead rows must not be read at each call.
    set enable_seqscan = off
    -- The relay reads the log over the same connection.
    set lock_timeout = '100ms'
    as $$
declare
    -- Two limits of what a pod can do to the queue that all share. Rows of open transactions count for the second one, so
    -- several sessions of one pod do not exceed it, and callers of broadcast() always have the other half.
    room constant bigint := least(
        200 - (
            select count(*) from (
                select from userrealtime.broadcast_queue q
                where q.user_id = forward_broadcasts.user_id and q.forwarded limit 200
            ) waiting
        ),
        10000 - coalesce(pg_sequence_last_value('userrealtime.broadcast_queue_position_seq'), 0)
            + coalesce(pg_sequence_last_value('userrealtime.broadcast_taken'), 0)
    );
    accepted int;
begin
    perform userrealtime.check_served(user_id);
    -- As in broadcast(): the queue is locked before the lease is read.
    insert into userrealtime.broadcast_queue (user_id, message, forwarded)
    select forward_broadcasts.user_id, m.message, true
    from unnest(messages) with ordinality m (message, place)
    where m.place <= room and octet_length(m.message) <= 7200 and (
        coalesce(userrealtime.is_leased(pg_sequence_last_value('userrealtime.broadcast_lease')), false)
        or coalesce(userrealtime.is_armed(pg_sequence_last_value('userrealtime.broadcast_doorbell')), false)
        and userrealtime.may_notify()
    )
    order by m.place;
    get diagnostics accepted = row_count;
    if accepted > 0
        and not coalesce(userrealtime.is_leased(pg_sequence_last_value('userrealtime.broadcast_lease')), false)
    then
        perform pg_notify('userrealtime_broadcast', '');
    end if;
    return accepted;
end
$$;
comment on function userrealtime.forward_broadcasts is
    'Sends the broadcasts of a client to the other pods of its user; for relays. At most 200 of a user wait at a time, and '
    'none is accepted while the queue is more than half full. Returns how many were accepted; the others are dropped.';

create or replace function userrealtime.arm_broadcasts() returns void
    language sql volatile security definer
    set search_path = pg_catalog, pg_temp
    as $$
    select setval('userrealtime.broadcast_doorbell', (date_part('epoch', clock_timestamp()) * 1000)::bigint + 15000)
$$;
comment on function userrealtime.arm_broadcasts is 'Has callers of broadcast() ring for 15 seconds from now.';

create or replace function userrealtime.lease_broadcasts(announcer int) returns boolean
    language plpgsql volatile security definer
    set search_path = pg_catalog, pg_temp
    as $$
declare
    held constant bigint := (select last_value from userrealtime.broadcast_lease);
begin
    if userrealtime.is_leased(held) and held & 1023 <> announcer then
        return false;
    end if;
    perform setval(
        'userrealtime.broadcast_lease', ((date_part('epoch', clock_timestamp()) * 1000)::bigint + 1000 << 10) + announcer
    );
    return true;
end
$$;
comment on function userrealtime.lease_broadcasts is
    'Takes or extends the lease of the queue for an announcer, a number from 0 to 1023, by one second. False if another '
    'announcer holds it.';

create or replace function userrealtime.release_broadcasts(announcer int, since text) returns boolean
    language plpgsql volatile security definer
    set search_path = pg_catalog, pg_temp
    set enable_seqscan = off
    as $$
declare
    newest constant bigint := pg_sequence_last_value('userrealtime.broadcast_queue_position_seq');
    remain boolean;
begin
    if (select last_value from userrealtime.broadcast_lease) & 1023 = announcer then
        perform setval('userrealtime.broadcast_lease', 1);
    end if;
    -- First the locks and then the rows: what has been committed in between is visible.
    remain := exists (
        select from pg_locks l
        where l.locktype = 'relation' and l.relation = 'userrealtime.broadcast_queue'::regclass
          and l.database = (select d.oid from pg_database d where d.datname = current_database())
          and l.mode = 'RowExclusiveLock' and l.pid is distinct from pg_backend_pid()
    ) or exists (
        select from userrealtime.broadcast_queue q where q.transaction >= pg_snapshot_xmax(coalesce(since, '3:3:')::pg_snapshot)
    ) or exists (
        select from userrealtime.broadcast_queue q
        where q.transaction = any (array(select pg_snapshot_xip(coalesce(since, '3:3:')::pg_snapshot)))
    );
    -- Positions that a rollback has used up are never taken.
    if not remain and newest is distinct from pg_sequence_last_value('userrealtime.broadcast_taken') then
        perform setval('userrealtime.broadcast_taken', newest);
    end if;
    return remain;
end
$$;
comment on function userrealtime.release_broadcasts is
    'Ends the lease of an announcer. True if there may be broadcasts whose callers did not ring: the announcer takes the '
    'lease again.';

create or replace function userrealtime.take_broadcasts(
    announcer int,
    since text,
    most int,
    out user_id text,
    out channel text,
    out message text,
    out upto text,
    out taken int,
    out sent int
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
    -- As announce(): what the snapshot of the last call saw was taken by it.
    later constant xid8 := pg_snapshot_xmax(coalesce(since, '3:3:')::pg_snapshot);
    overlapping constant xid8[] := array(select pg_snapshot_xip(coalesce(since, '3:3:')::pg_snapshot));
    noted constant bigint := coalesce(pg_sequence_last_value('userrealtime.broadcast_taken'), 0);
    room constant boolean := userrealtime.may_notify();
    found_upto text;
    found_position bigint;
    found_user text;
    found_message text;
    found_channel text;
    listening boolean;
    elsewhere boolean;
    parked boolean;
begin
    if (select last_value from userrealtime.broadcast_lease) & 1023 <> announcer then
        return;
    end if;
    sent := 0;
    for found_upto, taken, found_position, found_user, found_message, found_channel, listening, elsewhere,
        parked in
        with due as materialized (
            select d.transaction, d.position from (
                select q.transaction, q.position from userrealtime.broadcast_queue q where q.transaction >= later
                union all
                select q.transaction, q.position from userrealtime.broadcast_queue q
                where q.transaction = any (overlapping)
            ) d
            order by d.transaction, d.position limit most
        ), gone as (
            delete from userrealtime.broadcast_queue q using due d
            where q.transaction = d.transaction and q.position = d.position
            returning q.transaction, q.position, q.at, q.user_id, q.message
        ), audience as materialized (
            select a.user_id, coalesce(bool_or(p.listens) filter (where not p.parked), false) as listens,
                   coalesce(not bool_and(p.listens) filter (where not p.parked), false) as elsewhere,
                   bool_or(p.parked) as parked,
                   (select userrealtime.broadcast_channel_of(s.secret, a.user_id)
                    from userrealtime.broadcast_secret s limit 1) as channel
            from (select distinct g.user_id from gone g) a join userrealtime.presence p on p.user_id = a.user_id
            where p.seen_at > now() - interval '3 minutes'
            group by a.user_id
        )
        select summary.upto, summary.taken, g.position, g.user_id, g.message, a.channel, a.listens, a.elsewhere,
            a.parked
        from (select pg_current_snapshot()::text as upto, (select count(*) from due) as taken) summary
        left join (
            gone g join audience a on a.user_id = g.user_id and g.at > clock_timestamp() - interval '30 seconds'
        ) on true
        order by g.transaction, g.position
    loop
        if listening and room then
            -- The position makes it unique: Postgres sends equal notifications of one transaction once.
            perform pg_notify(found_channel, found_position || ' ' || found_message);
            sent := sent + 1;
        elsif listening then
            perform nextval('userrealtime.broadcast_dropped');
        end if;
        if elsewhere then
            user_id := found_user;
            channel := found_channel;
            message := found_message;
            return next;
        end if;
        if parked then
            -- The clients do not receive it, and the next ones shall arrive: their activator wakes the pod. A row that an
            -- activator reports at this moment is left out: neither waits for the other.
            update userrealtime.presence p set wanted = true
            where p.ctid = any (array(
                select w.ctid from userrealtime.presence w
                where w.user_id = found_user and w.parked and not w.wanted for update skip locked
            ));
            if found and room then
                perform pg_notify('userrealtime_parked', userrealtime.channel(found_user));
            end if;
        end if;
    end loop;
    user_id := null;
    -- If there may be more, the next call reads from the same position.
    upto := case when taken < most then found_upto else since end;
    if taken > 0 then
        perform setval('userrealtime.broadcast_taken', noted + taken);
    end if;
    return next;
end
$$;
comment on function userrealtime.take_broadcasts is
    'Removes the broadcasts that were committed to the queue since a position, at most as many as given, in the order of '
    'each session, and notifies the relays that listen. Returns those for users with a relay that does not listen, and at '
    'last one row without a user: the position for the next call, how many were removed, and how many of them were '
    'notified. Returns no row to an announcer that has lost the lease.';

create or replace function userrealtime.broadcasts_dropped() returns bigint
    language sql volatile security definer
    set search_path = pg_catalog, pg_temp
    return coalesce(pg_sequence_last_value('userrealtime.broadcast_dropped'), 0);
comment on function userrealtime.broadcasts_dropped is 'How many broadcasts were dropped before they were sent.';

revoke execute on function
    userrealtime.broadcast_channel_of, userrealtime.broadcast_channel, userrealtime.check_broadcast,
    userrealtime.may_broadcast, userrealtime.broadcast, userrealtime.forward_broadcasts, userrealtime.arm_broadcasts, userrealtime.lease_broadcasts,
    userrealtime.release_broadcasts, userrealtime.take_broadcasts, userrealtime.broadcasts_dropped
    from public;
