-- Presence: which users have clients connected, as their relays say.
--
-- A row a pod, since two pods serve a user while one replaces the other. A pod that dies without a word leaves its row
-- behind, which `online` does not count once nothing was heard for three minutes: a relay speaks every minute.

create table userrealtime.presence (
    user_id text collate "C" not null,
    instance text collate "C" not null,
    clients int not null check (clients >= 0),
    since timestamptz not null default now(),
    seen_at timestamptz not null default now(),
    primary key (user_id, instance)
);
comment on table userrealtime.presence is
    'One row a pod: its clients, since when it has any or none, and when it was last heard of.';

create view userrealtime.online as
    select user_id, sum(clients)::int as clients, min(since) as since, max(seen_at) as seen_at
    from userrealtime.presence
    where clients > 0 and seen_at > now() - interval '3 minutes'
    group by user_id;
comment on view userrealtime.online is 'The users who have clients connected now.';

create function userrealtime.present(user_id text, instance text, clients int) returns void
    language plpgsql security definer
    set search_path = pg_catalog, pg_temp
    as $$
begin
    perform userrealtime.check_served(user_id);
    if coalesce(length(instance) not between 1 and 253, true) then
        raise exception 'userrealtime.present: instance must be 1 to 253 characters'
            using errcode = 'invalid_parameter_value';
    end if;
    if clients is null then
        delete from userrealtime.presence p where p.user_id = present.user_id and p.instance = present.instance;
        return;
    end if;
    insert into userrealtime.presence as p (user_id, instance, clients)
    values (present.user_id, present.instance, present.clients)
    on conflict on constraint presence_pkey do update
    set clients = excluded.clients, seen_at = excluded.seen_at,
        since = case when (p.clients > 0) = (excluded.clients > 0) then p.since else excluded.since end;
    -- Pods that are long dead; and no more than a few, lest a role fill the table with instances.
    delete from userrealtime.presence p
    where p.user_id = present.user_id and (
        p.seen_at < now() - interval '1 hour'
        or p.instance in (
            select o.instance from userrealtime.presence o
            where o.user_id = present.user_id order by o.seen_at desc, o.instance offset 16
        )
    );
end
$$;
comment on function userrealtime.present is
    'What a relay says of its pod: how many clients it has; null when it goes.';

revoke execute on function userrealtime.present from public;
