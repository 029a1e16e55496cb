-- Database roles of relays, each of which may read one user's log and nothing else.
--
-- All of them are members of one group that holds the rights, so that no access list grows with the number of users. The
-- table role records which user a role serves.

create or replace function userrealtime.relay_functions() returns regprocedure[]
    language sql stable
    set search_path = pg_catalog, pg_temp
    as $$
    select array[
        'userrealtime.open', 'userrealtime.events', 'userrealtime.channel', 'userrealtime.submit', 'userrealtime.attend',
        'userrealtime.present', 'userrealtime.first_epoch', 'userrealtime.broadcast_channel',
        'userrealtime.forward_broadcasts'
    ]::regproc[]::regprocedure[]
$$;
comment on function userrealtime.relay_functions is 'The functions that relays may call.';

create or replace function userrealtime.roles_are_prepared() returns boolean
    language sql stable
    set search_path = pg_catalog, pg_temp
    as $$
    select coalesce((
        select has_database_privilege(g.oid, current_database(), 'connect')
            and has_schema_privilege(g.oid, 'userrealtime', 'usage')
            and has_table_privilege(g.oid, 'userrealtime.event', 'select')
            and has_table_privilege(g.oid, 'userrealtime.log', 'select')
            and (select bool_and(has_function_privilege(g.oid, f::oid, 'execute'))
                 from unnest(userrealtime.relay_functions()) f)
        from pg_roles g where g.rolname = 'userrealtime_relay'
    ), false)
$$;
comment on function userrealtime.roles_are_prepared is 'Whether prepare_roles would change nothing.';

create or replace function userrealtime.prepare_roles() returns void
    language plpgsql
    set search_path = pg_catalog, pg_temp
    as $$
begin
    if userrealtime.roles_are_prepared() then
        return;
    end if;
    -- Not an advisory lock, which every role of the server could hold.
    lock table userrealtime.role in share row exclusive mode;
    if not exists (select from pg_roles where rolname = 'userrealtime_relay') then
        begin
            create role userrealtime_relay nologin;
        exception when duplicate_object or unique_violation then
            null; -- created from another database of the server
        end;
    end if;
    if not has_database_privilege('userrealtime_relay', current_database(), 'connect') then
        execute format('grant connect on database %I to userrealtime_relay', current_database());
    end if;
    grant usage on schema userrealtime to userrealtime_relay;
    grant select on userrealtime.event, userrealtime.log to userrealtime_relay;
    perform userrealtime.grant_relay_functions();
end
$$;
comment on function userrealtime.prepare_roles is
    'Creates the group of the relays'' roles and grants it its rights in this database. The caller needs CREATEROLE.';

create or replace function userrealtime.grant_relay_functions() returns void
    language plpgsql
    set search_path = pg_catalog, pg_temp
    as $$
begin
    execute (
        select format('grant execute on function %s to userrealtime_relay', string_agg(f::text, ', '))
        from unnest(userrealtime.relay_functions()) f
    );
end
$$;
comment on function userrealtime.grant_relay_functions is 'Grants the group the functions of this version.';

-- The rights of a group that exists follow the functions of this version.
do $$
begin
    if has_schema_privilege('userrealtime', 'usage') and exists (
        select from pg_roles g where g.rolname = 'userrealtime_relay'
    ) and has_schema_privilege('userrealtime_relay', 'userrealtime', 'usage') then
        perform userrealtime.grant_relay_functions();
    end if;
end
$$;

revoke execute on function
    userrealtime.relay_functions, userrealtime.roles_are_prepared, userrealtime.prepare_roles,
    userrealtime.grant_relay_functions
    from public;
