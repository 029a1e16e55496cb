-- Database roles of relays, each of which may read one user's log and nothing else.
--
-- All of them are members of one group that holds the rights. No access list grows with the number of users. The
-- table role records which user a role serves.

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
        userrealtime.open, userrealtime.events, userrealtime.channel, userrealtime.submit, userrealtime.attend,
        userrealtime.present
        to userrealtime_relay;
end
$$;
comment on function userrealtime.prepare_roles is
    'Creates the group of the relays'' roles and grants it its rights in this database. The caller needs CREATEROLE.';

-- The rights of a group that exists follow the functions of this version.
do $$
begin
    if has_schema_privilege('userrealtime', 'usage') and exists (
        select from pg_roles g where g.rolname = 'userrealtime_relay'
    ) and has_schema_privilege('userrealtime_relay', 'userrealtime', 'usage') then
        grant execute on function
            userrealtime.open, userrealtime.events, userrealtime.channel, userrealtime.submit, userrealtime.attend,
            userrealtime.present
            to userrealtime_relay;
    end if;
end
$$;

revoke execute on function userrealtime.prepare_roles from public;
