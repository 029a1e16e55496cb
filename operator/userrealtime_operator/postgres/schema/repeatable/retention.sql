-- Retention: the oldest events of a log are deleted in small batches, never one from the middle.

create or replace function userrealtime.prune(
    user_id text, max_age interval default null, max_events bigint default null, batch int default 5000
) returns bigint
    language sql security definer
    set search_path = pg_catalog, pg_temp
    as $$
    with oldest as (
        select e.id, e.at from userrealtime.event e where e.user_id = prune.user_id order by e.id limit batch
    ), bound as (
        select least(max(o.id), greatest(
            -- Up to the first event that is young enough. An event written by a clock that was set back stays as long as
            -- those before it.
            case when max_age is not null
                 then coalesce(min(o.id) filter (where o.at >= now() - max_age) - 1, max(o.id)) end,
            case when max_events is not null
                 then (select l.head from userrealtime.log l where l.user_id = prune.user_id) - max_events end
        )) as id
        from oldest o
    ), gone as (
        delete from userrealtime.event e using bound b where e.user_id = prune.user_id and e.id <= b.id returning 1
    )
    select count(*) from gone
$$;
comment on function userrealtime.prune is
    'Deletes the oldest events of a user that are older than max_age or beyond the newest max_events, at most `batch` of '
    'them. Returns how many it deleted. Call it until that is less than `batch`.';

create or replace function userrealtime.prune_inbox(max_age interval, batch int default 5000) returns bigint
    language sql security definer
    set search_path = pg_catalog, pg_temp
    as $$
    with gone as (
        delete from userrealtime.inbox where id in (
            select id from userrealtime.inbox where done < now() - max_age order by done limit batch for update skip locked
        ) returning 1
    )
    select count(*) from gone
$$;
comment on function userrealtime.prune_inbox is
    'Deletes messages that were done more than max_age ago, at most `batch` of them. Returns how many it deleted.';

revoke execute on function userrealtime.prune, userrealtime.prune_inbox from public;
