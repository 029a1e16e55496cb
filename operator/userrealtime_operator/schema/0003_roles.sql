-- Relays with a database role of their own, which may read one user's log and nothing else.
--
-- All of them are members of one group that holds the rights, so that no access list grows with the users. Which user a
-- role serves is said by `role`. It is looked up by session_user, which neither SET ROLE nor a function changes.

create table userrealtime.role (
    name text collate "C" primary key,
    scope text not null,
    resource uuid not null,
    user_id text collate "C" not null,
    fingerprint text not null,
    drop_after timestamptz
);
create index on userrealtime.role (resource);
create index on userrealtime.role (scope);
comment on table userrealtime.role is
    'The database roles of relays, made by the operator. fingerprint: SHA-256 of the password, which is 256 random bits, '
    'to see whether it is the one of the Secret. drop_after: set when another role has taken its place.';

create function userrealtime.served_user() returns text
    language sql stable security definer
    set search_path = pg_catalog, pg_temp
    as $$
    select coalesce(
        (select r.user_id from userrealtime.role r where r.name = session_user),
        -- A relay's role that is known no more serves nobody; the empty string is no user's id.
        (select '' from pg_auth_members m join pg_roles g on g.oid = m.roleid join pg_roles u on u.oid = m.member
         where g.rolname = 'userrealtime_relay' and u.rolname = session_user limit 1)
    )
$$;
comment on function userrealtime.served_user is
    'The one user whose relay asks, by its role; null for any other role, which is bound by its grants alone.';

create function userrealtime.check_served(user_id text) returns void
    language plpgsql stable
    set search_path = pg_catalog, pg_temp
    as $$
begin
    if userrealtime.served_user() is distinct from user_id and userrealtime.served_user() is not null then
        raise exception 'this role serves another user' using errcode = 'insufficient_privilege';
    end if;
end
$$;

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
    grant execute on function userrealtime.open, userrealtime.channel, userrealtime.submit, userrealtime.present
        to userrealtime_relay;
end
$$;
comment on function userrealtime.prepare_roles is
    'Make the group of the relays'' roles and give it its rights in this database. The caller needs CREATEROLE.';

revoke execute on function userrealtime.check_served, userrealtime.prepare_roles from public;
-- The policies call it as whoever asks.
grant execute on function userrealtime.served_user to public;
