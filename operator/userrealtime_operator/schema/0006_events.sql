-- What relays read the log with from here on, for half the cost of `page`, which stays for older relays: times as
-- Postgres writes them, gaps for the reader to see, and one plan for all pages, which took longer to make than most take
-- to read. As there, scans that a plan made for small tables would keep for large ones are off.

create function userrealtime.events(
    user_id text,
    after bigint,
    max_events int,
    max_bytes int,
    out epoch text,
    out id bigint,
    out event text,
    out at text,
    out data text
) returns setof record
    language plpgsql stable rows 500
    set search_path = pg_catalog, pg_temp
    set timezone = 'UTC'
    set datestyle = 'ISO'
    set plan_cache_mode = force_generic_plan
    set enable_seqscan = off
    set enable_bitmapscan = off
    set enable_sort = off
    as $$
declare
    bytes int := 0;
begin
    select l.epoch into events.epoch from userrealtime.log l where l.user_id = events.user_id;
    for events.id, events.event, events.at, events.data in
        select e.id, e.event, e.at::text, e.data::text
        from userrealtime.event e
        where e.user_id = events.user_id and e.id > events.after
        order by e.id
        limit events.max_events
    loop
        return next;
        bytes := bytes + octet_length(events.data);
        exit when bytes >= events.max_bytes;
    end loop;
    if not found then
        events.id := null;
        return next;
    end if;
end
$$;
comment on function userrealtime.events is
    'The events after a number, oldest first: at most max_events, and none once their data has max_bytes. Times are in '
    'UTC, as Postgres writes them. Each row has the epoch, of the same snapshot; it stands alone, in a row of its own, '
    'if there is no event.';
revoke execute on function userrealtime.events from public;

create or replace function userrealtime.prepare_roles() returns void
    language plpgsql
    set search_path = pg_catalog, pg_temp
    as $$
begin
    perform pg_advisory_xact_lock(hashtext('userrealtime.prepare_roles'));
    if not exists (select from pg_roles where rolname = 'userrealtime_relay') then
        create role userrealtime_relay nologin;
    end if;
    if not has_database_privilege('userrealtime_relay', current_database(), 'connect') then
        execute format('grant connect on database %I to userrealtime_relay', current_database());
    end if;
    grant usage on schema userrealtime to userrealtime_relay;
    grant select on userrealtime.event, userrealtime.log to userrealtime_relay;
    grant execute on function
        userrealtime.open, userrealtime.page, userrealtime.events, userrealtime.channel, userrealtime.submit,
        userrealtime.present
        to userrealtime_relay;
end
$$;
