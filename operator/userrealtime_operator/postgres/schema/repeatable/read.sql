-- Reading a log, for relays. All of these run with the rights of the caller: row-level security applies.

create or replace function userrealtime.served_user() returns text
    language sql stable security definer
    set search_path = pg_catalog, pg_temp
    as $$
    select coalesce(
        (select r.user_id from userrealtime.role r where r.name = session_user),
        -- A relay role that is no longer registered serves no user: the empty string is not a valid user id.
        (select '' from userrealtime.revoked_role r where r.name = session_user),
        -- From PostgreSQL 16 on, the role that created the group is a member of it, with the admin option.
        (select '' from pg_auth_members m join pg_roles g on g.oid = m.roleid join pg_roles u on u.oid = m.member
         where g.rolname = 'userrealtime_relay' and u.rolname = session_user having not bool_or(m.admin_option))
    )
$$;
comment on function userrealtime.served_user is
    'The user that the session''s database role serves. Null for a role that is not a relay''s: its grants apply alone. '
    'The role is looked up by session_user, which neither SET ROLE nor a function changes.';

create or replace function userrealtime.check_served(user_id text) returns void
    language plpgsql stable
    set search_path = pg_catalog, pg_temp
    as $$
begin
    if userrealtime.served_user() is distinct from user_id and userrealtime.served_user() is not null then
        raise exception 'this role serves another user' using errcode = 'insufficient_privilege';
    end if;
end
$$;
comment on function userrealtime.check_served is 'Raises an error if the session''s role serves another user.';

do $$
declare
    governed regclass;
begin
    foreach governed in array array['userrealtime.event', 'userrealtime.log']::regclass[] loop
        if not exists (select from pg_policy where polrelid = governed and polname = 'served') then
            -- In a subquery, the function runs once per statement and not once per row.
            execute format(
                'create policy served on %s using (coalesce((select userrealtime.served_user()), user_id) = user_id)',
                governed
            );
            execute format('alter table %s enable row level security', governed);
        end if;
    end loop;
end
$$;

create or replace function userrealtime.open(
    user_id text, out head bigint, out earliest bigint, out epoch text, out channel text
)
    language sql stable security invoker
    set search_path = pg_catalog, pg_temp
    set enable_seqscan = off
    as $$
    select coalesce(l.head, 0),
           coalesce((select min(e.id) from userrealtime.event e where e.user_id = open.user_id), l.head + 1, 1),
           coalesce(l.epoch, userrealtime.first_epoch(open.user_id)),
           userrealtime.channel(open.user_id)
    from (values (true)) as always left join userrealtime.log l on l.user_id = open.user_id
$$;
comment on function userrealtime.open is
    'Where a log stands: the newest and the oldest number kept, the epoch, and the channel to LISTEN on. A log '
    'that does not exist yet has the epoch that it is going to have.';

-- Sequential scans and sorts are off: a plan that was made and kept while the tables were small would read all of them
-- later. The primary key gives the order.
create or replace function userrealtime.events(
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
    if not found then
        events.epoch := userrealtime.first_epoch(events.user_id);
    end if;
    for events.id, events.event, events.at, events.data in
        select e.id, e.event, e.at::text, e.data::text
        from userrealtime.event e
        where e.user_id = events.user_id and e.id > events.after
        order by e.id
        limit events.max_events
    loop
        return next;
        -- Not in the query, which would have to convert every event to text to add up the lengths.
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
    'UTC, in the format of Postgres. Each row has the epoch, of the same snapshot. If there is no event, one row has the '
    'epoch and nothing else.';

revoke execute on function
    userrealtime.served_user, userrealtime.check_served, userrealtime.open, userrealtime.events
    from public;
-- The policies call it with the rights of the caller.
grant execute on function userrealtime.served_user to public;
