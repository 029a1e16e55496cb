-- For the bridge, which listens for all users and tells a broker: one channel, and where the logs stand.
--
-- The channel of each user stays as it is. A trigger on `log`, and not in number_staged: whatever moves a log is told,
-- a new epoch too.

create function userrealtime.announce() returns trigger
    language plpgsql
    set search_path = pg_catalog, pg_temp
    as $$
begin
    -- {"user": [head, "epoch"], …}, of many users in few notifications. An id has 253 characters, of at most 4 bytes
    -- each as JSON, so that a part ends below 7,500 bytes: NOTIFY fails at 8,000, and the application's commit with it.
    perform pg_notify('userrealtime', json_object_agg(p.user_id, json_build_array(p.head, p.epoch))::text)
    from (
        select m.user_id, m.head, left(m.epoch, 64) as epoch,
               sum(octet_length(to_json(m.user_id)::text) + octet_length(to_json(left(m.epoch, 64))::text) + 32)
                   over (order by m.user_id) / 6000 as part
        from moved m
    ) p
    group by p.part;
    return null;
end
$$;
comment on function userrealtime.announce is 'Notifies the channel userrealtime of the logs that a statement has moved.';

create trigger announce_new after insert on userrealtime.log
    referencing new table as moved for each statement execute function userrealtime.announce();
create trigger announce_moved after update on userrealtime.log
    referencing new table as moved for each statement execute function userrealtime.announce();

create function userrealtime.heads(out user_id text, out head bigint, out epoch text) returns setof record
    language sql stable security definer
    set search_path = pg_catalog, pg_temp
    as $$
    select l.user_id, l.head, l.epoch from userrealtime.log l
    where l.user_id in (select p.user_id from userrealtime.presence p where p.seen_at > now() - interval '3 minutes')
$$;
comment on function userrealtime.heads is 'Where the logs stand of all users who have a relay, as their presence says.';

create function userrealtime.grant_bridge(role name) returns void
    language plpgsql
    set search_path = pg_catalog, pg_temp
    as $$
begin
    execute format('grant connect on database %I to %I', current_database(), role);
    execute format('grant usage on schema userrealtime to %I', role);
    execute format('grant execute on function userrealtime.heads to %I', role);
end
$$;
comment on function userrealtime.grant_bridge is 'Give a role what the bridge needs, and nothing else.';

revoke execute on function userrealtime.announce, userrealtime.heads, userrealtime.grant_bridge from public;
