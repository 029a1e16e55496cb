-- Relays with a database role of their own, which may read one user's log and nothing else.
--
-- All of them are members of one group that holds the rights, so that no access list grows with the users. Which user a
-- role serves is said by the table `role` of 0001.

-- In a subquery, the function runs once a statement and not once a row.
create policy served on userrealtime.event using (coalesce((select userrealtime.served_user()), user_id) = user_id);
create policy served on userrealtime.log using (coalesce((select userrealtime.served_user()), user_id) = user_id);
alter table userrealtime.event enable row level security;
alter table userrealtime.log enable row level security;
-- As whoever asks, for the policies to bind.
alter function userrealtime.open security invoker;

create function userrealtime.prepare_roles() returns void
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
        userrealtime.open, userrealtime.page, userrealtime.channel, userrealtime.submit, userrealtime.present
        to userrealtime_relay;
end
$$;
comment on function userrealtime.prepare_roles is
    'Make the group of the relays'' roles and give it its rights in this database. The caller needs CREATEROLE.';

revoke execute on function userrealtime.prepare_roles from public;
-- The policies call it as whoever asks.
grant execute on function userrealtime.served_user to public;
