-- Publishing: publish() stages an event, and a deferred constraint trigger numbers the events of a transaction when it
-- commits.
--
-- Numbers are given while the user's row in log is locked until the commit has ended. So a reader that sees number n sees
-- every number below it, and a rollback leaves no gap. Users are locked in sorted order: transactions that share users
-- cannot deadlock.
--
-- publish() and number_staged() run with the rights of their owner and with the search path of the caller: a clause that
-- sets it costs a twentieth of a commit in each of them. In both, and in signal(), every function, operator and table
-- therefore has a schema, and a type is a keyword of SQL or has a schema. `is distinct from` and `between` look
-- up operators too, so they are not used there.

create or replace function userrealtime.publish(user_id text, event text, data jsonb default '{}') returns void
    language plpgsql security definer
    as $$
declare
    further boolean;
begin
    if not userrealtime.is_message(user_id, event, data) then
        perform userrealtime.check_message('userrealtime.publish', user_id, event, data);
    end if;
    insert into userrealtime.pending as p (user_id, event, data)
    values (publish.user_id, publish.event, publish.data)
    on conflict (transaction) do update set more = true where not p.more
    returning p.more into further;
    -- False for the first event of the transaction, true for the second one, null for all others.
    if further is not false then
        insert into userrealtime.staged (user_id, event, data) values (publish.user_id, publish.event, publish.data);
    end if;
end
$$;
comment on function userrealtime.publish is
    'Publishes one event to one user as part of the calling transaction. The event is delivered if that commits.';

create or replace function userrealtime.number_all(of_transaction xid8) returns void
    language plpgsql
    set search_path = pg_catalog, pg_temp
    -- The planner has no statistics on rows this new. It would choose a nested loop, which takes minutes for 20,000.
    set enable_nestloop = off
    as $$
declare
    unannounced text[];
begin
    with moved as materialized (
        delete from userrealtime.staged where transaction = of_transaction
        returning user_id, position, event, data
    ), share as materialized (
        select user_id, count(*) as events from moved group by user_id
    ), grown as materialized (
        insert into userrealtime.log as l (user_id, head, epoch)
        select user_id, events, userrealtime.epoch_of(user_id, last_value) from share, userrealtime.epoch_seed
        order by user_id
        on conflict (user_id) do update set head = l.head + excluded.head
        returning user_id, head, epoch
    ), numbered as (
        insert into userrealtime.event (user_id, id, event, at, data)
        select user_id,
               head - events + row_number() over (partition by user_id order by position),
               event, clock_timestamp(), data
        from moved join share using (user_id) join grown using (user_id)
    ), queued as (
        insert into userrealtime.signal_queue (user_id, head, epoch)
        select user_id, head, epoch from grown, userrealtime.announcer_lease
        where userrealtime.is_leased(last_value)
        returning user_id
    )
    select array_agg(g.user_id) into unannounced
    from grown g left join queued q using (user_id) where q.user_id is null;
    if unannounced is not null then
        perform userrealtime.ring(unannounced);
    end if;
end
$$;
comment on function userrealtime.number_all is
    'Numbers all events that a transaction has staged. Its first event is at position 0.';

-- Its cost decides the rate of publishing: each statement in it costs about a tenth of a commit.
create or replace function userrealtime.number_staged() returns trigger
    language plpgsql security definer
    as $$
declare
    further boolean;
    number bigint;
    epoch pg_catalog.text;
begin
    -- A transaction that forces numbering early (set constraints) may publish again, and is then numbered again.
    delete from userrealtime.pending where transaction operator(pg_catalog.=) new.transaction returning more into further;
    if further then
        insert into userrealtime.staged (position, user_id, event, data) overriding system value
        values (0, new.user_id, new.event, new.data);
        perform userrealtime.number_all(new.transaction);
        return null;
    end if;
    update userrealtime.log as l set head = l.head operator(pg_catalog.+) 1
    where user_id operator(pg_catalog.=) new.user_id
    returning l.head, l.epoch into number, epoch;
    if not found then
        insert into userrealtime.log as l (user_id, head, epoch)
        values (new.user_id, 1, userrealtime.first_epoch(new.user_id))
        on conflict (user_id) do update set head = l.head operator(pg_catalog.+) 1
        returning l.head, l.epoch into number, epoch;
    end if;
    insert into userrealtime.event (user_id, id, event, at, data)
    values (new.user_id, number, new.event, pg_catalog.clock_timestamp(), new.data);
    -- The lock that signal() needs is the one on pending, which publish() has taken.
    perform userrealtime.signal(new.user_id, number, epoch);
    return null;
end
$$;
comment on function userrealtime.number_staged is 'Numbers the events of the committing transaction and signals them.';

do $$
begin
    if not exists (
        select from pg_trigger where tgrelid = 'userrealtime.pending'::regclass and tgname = 'number_staged'
    ) then
        create constraint trigger number_staged
            after insert on userrealtime.pending
            deferrable initially deferred
            for each row execute function userrealtime.number_staged();
    end if;
    -- Always: also in sessions that set session_replication_role to replica, as bulk loads do.
    if (select tgenabled from pg_trigger
        where tgrelid = 'userrealtime.pending'::regclass and tgname = 'number_staged') <> 'A' then
        alter table userrealtime.pending enable always trigger number_staged;
    end if;
end
$$;

revoke execute on function userrealtime.publish, userrealtime.number_all, userrealtime.number_staged from public;
