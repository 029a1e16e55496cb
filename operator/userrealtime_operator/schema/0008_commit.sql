-- A transaction that publishes one event, as most do, is numbered without staging it: the row of `pending` that carries
-- the trigger carries the event too. Further events of the transaction are staged as before.
--
-- What both tables hold is of transactions that have not committed, which no crash leaves behind: so they need no log of
-- their own.
--
-- The bridge is told where events are numbered, and no longer by triggers on all that changes `log`: what they were given
-- to look at took a tenth of publishing. The one that is left is for new epochs.

-- In the order in which publish() took them until now, lest this waits for a transaction that waits for this.
lock table userrealtime.staged, userrealtime.pending in access exclusive mode;
-- Rows of transactions that ended are in them only if triggers were off (session_replication_role), and nobody's.
truncate userrealtime.staged, userrealtime.pending;
alter table userrealtime.staged set unlogged;
alter table userrealtime.pending
    set unlogged,
    add column user_id text collate "C" not null,
    add column event text not null,
    add column data jsonb not null;
comment on table userrealtime.pending is
    'One row a publishing transaction: its first event, and with it the deferred trigger, so that numbering runs once.';
comment on table userrealtime.staged is
    'Further events of transactions that have not committed. Empty for everybody else.';

-- Both without settings of their own, so that they become part of the expression that asks them.
create function userrealtime.is_name(name text) returns boolean
    language sql immutable parallel safe
    return coalesce(length(name) between 1 and 253 and name collate "C" !~ '[[:cntrl:]]', false);
comment on function userrealtime.is_name is 'Whether this is a user id, ref or name of an event: what check_name lets pass.';

create function userrealtime.is_message(user_id text, event text, data jsonb) returns boolean
    language sql immutable parallel safe
    return userrealtime.is_name(user_id)
        and userrealtime.is_name(event)
        and coalesce(octet_length(data::text) <= 1000000, false);
comment on function userrealtime.is_message is
    'Whether this can be an event or a message: what check_message lets pass, which is slower, and says why not.';

create or replace function userrealtime.check_name(caller text, parameter text, name text) returns void
    language plpgsql immutable
    set search_path = pg_catalog, pg_temp
    as $$
begin
    if not userrealtime.is_name(name) then
        raise exception '%: % must be 1 to 253 characters without control characters', caller, parameter
            using errcode = 'invalid_parameter_value';
    end if;
end
$$;

create or replace function userrealtime.publish(user_id text, event text, data jsonb default '{}') returns void
    language plpgsql security definer
    set search_path = pg_catalog, pg_temp
    as $$
begin
    if not userrealtime.is_message(user_id, event, data) then
        perform userrealtime.check_message('userrealtime.publish', user_id, event, data);
    end if;
    insert into userrealtime.pending (user_id, event, data)
    values (publish.user_id, publish.event, publish.data)
    on conflict do nothing;
    if not found then
        insert into userrealtime.staged (user_id, event, data) values (publish.user_id, publish.event, publish.data);
    end if;
end
$$;

-- Part of the expression that asks it, too.
create function userrealtime.announcement(user_id text, head bigint, epoch text) returns text
    language sql immutable parallel safe
    return to_json(user_id)::text || ':[' || head::text || ',' || to_json(left(epoch, 64))::text || ']';
comment on function userrealtime.announcement is
    'Where a log stands, as the channel userrealtime is told: {"user": [head, "epoch"], …} without its braces. At most '
    '1,400 bytes: a user id has 253 characters, of at most 4 bytes each as JSON.';

-- All that a transaction has staged, its first event at position 0.
create function userrealtime.number_all(of_transaction xid8) returns void
    language plpgsql
    set search_path = pg_catalog, pg_temp
    -- These rows are too new for statistics: the planner takes a nested loop, which lasts minutes over 20,000.
    set enable_nestloop = off
    as $$
declare
    grown record;
    said text;
    notification text := '';
begin
    for grown in
        with moved as materialized (
            delete from userrealtime.staged where transaction = of_transaction
            returning user_id, position, event, data
        ), share as materialized (
            select user_id, count(*) as events from moved group by user_id
        ), grown as materialized (
            insert into userrealtime.log as l (user_id, head)
            select user_id, events from share order by user_id
            on conflict (user_id) do update set head = l.head + excluded.head
            returning user_id, head, epoch
        ), numbered as (
            insert into userrealtime.event (user_id, id, event, at, data)
            select user_id,
                   head - events + row_number() over (partition by user_id order by position),
                   event, clock_timestamp(), data
            from moved join share using (user_id) join grown using (user_id)
        )
        select user_id, head, epoch from grown
    loop
        -- Neither has 8,000 bytes, at which NOTIFY fails, and the application's commit with it.
        perform pg_notify(userrealtime.channel(grown.user_id), grown.head::text);
        said := userrealtime.announcement(grown.user_id, grown.head, grown.epoch);
        if octet_length(notification) + octet_length(said) > 7500 then
            perform pg_notify('userrealtime', '{' || notification || '}');
            notification := '';
        end if;
        notification := notification || case notification when '' then '' else ',' end || said;
    end loop;
    perform pg_notify('userrealtime', '{' || notification || '}');
end
$$;

create or replace function userrealtime.number_staged() returns trigger
    language plpgsql security definer
    set search_path = pg_catalog, pg_temp
    as $$
declare
    number bigint;
    epoch text;
begin
    -- The next event of this transaction, if numbering was forced early (set constraints), starts anew.
    delete from userrealtime.pending where transaction = new.transaction;
    if exists (select from userrealtime.staged where transaction = new.transaction) then
        insert into userrealtime.staged (position, user_id, event, data) overriding system value
        values (0, new.user_id, new.event, new.data);
        perform userrealtime.number_all(new.transaction);
        return null;
    end if;
    update userrealtime.log as l set head = l.head + 1 where user_id = new.user_id
    returning l.head, l.epoch into number, epoch;
    if not found then
        insert into userrealtime.log as l (user_id, head) values (new.user_id, 1)
        on conflict (user_id) do update set head = l.head + 1
        returning l.head, l.epoch into number, epoch;
    end if;
    insert into userrealtime.event (user_id, id, event, at, data)
    values (new.user_id, number, new.event, clock_timestamp(), new.data);
    perform pg_notify(userrealtime.channel(new.user_id), number::text),
            pg_notify('userrealtime', '{' || userrealtime.announcement(new.user_id, number, epoch) || '}');
    return null;
end
$$;

drop trigger announce_new on userrealtime.log;
drop trigger announce_moved on userrealtime.log;

create or replace function userrealtime.announce() returns trigger
    language plpgsql security definer
    set search_path = pg_catalog, pg_temp
    as $$
begin
    perform pg_notify('userrealtime', '{' || userrealtime.announcement(new.user_id, new.head, new.epoch) || '}');
    return null;
end
$$;
comment on function userrealtime.announce is 'Notifies the channel userrealtime of a log.';

create trigger announce_epoch after update of epoch on userrealtime.log
    for each row execute function userrealtime.announce();

revoke execute on function
    userrealtime.is_name, userrealtime.is_message, userrealtime.announcement, userrealtime.number_all
    from public;
