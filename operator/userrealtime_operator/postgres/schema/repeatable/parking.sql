-- Parking: activators keep the connections of users without a pod (docs/architecture.md, "Parked connections").
--
-- An activator reports its users as a relay reports itself, and is notified of their new events over one channel for all
-- of them. It can read where a log stands, and no event.

create or replace function userrealtime.park(instance text, users text[], clients int[]) returns void
    language plpgsql volatile security definer
    set search_path = pg_catalog, pg_temp
    as $$
begin
    perform userrealtime.check_name('userrealtime.park', 'instance', instance);
    delete from userrealtime.presence p
    using unnest(park.users, park.clients) as r (user_id, clients)
    where p.user_id = r.user_id and p.instance = park.instance and p.parked and r.clients = 0;
    insert into userrealtime.presence as p (user_id, instance, clients, listens, parked)
    select r.user_id, park.instance, least(r.clients, 100000), false, true
    from unnest(park.users, park.clients) as r (user_id, clients)
    -- Another resource may have been the last one of the user, whose rows are deleted then.
    where r.clients > 0 and exists (select from userrealtime.registration g where g.user_id = r.user_id)
    order by r.user_id
    on conflict on constraint presence_pkey do update set clients = excluded.clients, seen_at = excluded.seen_at
    where p.parked;
    delete from userrealtime.presence p where (p.user_id, p.instance) in (
        select o.user_id, o.instance from userrealtime.presence o
        where o.user_id = any (park.users) and o.seen_at < now() - interval '1 hour'
        for update skip locked
    );
    perform userrealtime.arm_doorbell();
end
$$;
comment on function userrealtime.park is
    'Reports for users how many of their clients an activator keeps without a pod; 0: none any more. To be repeated every '
    'minute.';

create or replace function userrealtime.parked_heads(
    users text[], out user_id text, out head bigint, out earliest bigint, out epoch text, out wanted boolean
) returns setof record
    language sql stable security definer
    set search_path = pg_catalog, pg_temp
    set enable_seqscan = off
    as $$
    select u.user_id, coalesce(l.head, 0),
           coalesce((select min(e.id) from userrealtime.event e where e.user_id = u.user_id), l.head + 1, 1), l.epoch,
           exists (select from userrealtime.presence p where p.user_id = u.user_id and p.parked and p.wanted)
    from unnest(users) u (user_id) left join userrealtime.log l using (user_id)
$$;
comment on function userrealtime.parked_heads is
    'Where the logs of users stand: the newest and the oldest number kept, and the epoch; 0, 1 and null without a log. '
    'wanted: a broadcast to parked clients was dropped. For activators, after park().';

create or replace function userrealtime.grant_activator(role name) returns void
    language plpgsql
    set search_path = pg_catalog, pg_temp
    as $$
begin
    execute format('grant connect on database %I to %I', current_database(), role);
    execute format('grant usage on schema userrealtime to %I', role);
    execute format('grant execute on function userrealtime.park, userrealtime.parked_heads to %I', role);
end
$$;
comment on function userrealtime.grant_activator is
    'Grants a role the rights that activators need to park connections, and no others.';

revoke execute on function userrealtime.park, userrealtime.parked_heads, userrealtime.grant_activator from public;
