-- Presence: which relays run, and how many clients each has.
--
-- One row per pod, since two pods serve a user while one replaces the other. A relay reports every minute. The row of a
-- pod that was killed stays behind; it no longer counts after three minutes without a report.

create or replace function userrealtime.trim_presence(user_id text) returns void
    language sql volatile
    set search_path = pg_catalog, pg_temp
    begin atomic
        delete from userrealtime.presence p
        where p.user_id = trim_presence.user_id and (
            p.seen_at < now() - interval '1 hour'
            or p.instance in (
                select o.instance from userrealtime.presence o
                where o.user_id = trim_presence.user_id order by o.seen_at desc, o.instance offset 16
            )
        );
    end;
comment on function userrealtime.trim_presence is
    'Deletes the rows of pods that ended long ago, and all but the newest few, so that a role cannot fill the table.';

create or replace function userrealtime.attend(user_id text, instance text, listens boolean) returns void
    language plpgsql security definer
    set search_path = pg_catalog, pg_temp
    as $$
declare
    unsettled text[] := '{}';
begin
    perform userrealtime.check_served(user_id);
    perform userrealtime.check_name('userrealtime.attend', 'instance', instance);
    insert into userrealtime.presence as p (user_id, instance, clients, listens)
    values (attend.user_id, attend.instance, 0, attend.listens)
    on conflict on constraint presence_pkey do update set seen_at = excluded.seen_at, listens = excluded.listens;
    perform userrealtime.trim_presence(attend.user_id);
    if listens then
        unsettled := userrealtime.arm_doorbell();
    end if;
    -- Where an announcer runs, the doorbell is armed already. Two seconds at most: what commits later than that is found
    -- by the poll of the relay.
    for attempt in 1 .. 200 loop
        exit when cardinality(unsettled) = 0;
        perform pg_sleep(0.01);
        unsettled := userrealtime.unsettled(unsettled);
    end loop;
end
$$;
comment on function userrealtime.attend is
    'Reports that a relay runs, before it reads the log for the first time: only users with a running relay are '
    'announced.';

create or replace function userrealtime.present(
    user_id text, instance text, clients int, listens boolean default true, quiet_s float8 default 0
) returns void
    language plpgsql security definer
    set search_path = pg_catalog, pg_temp
    as $$
declare
    active_at constant timestamptz := now() - make_interval(secs => least(greatest(present.quiet_s, 0), 31536000));
begin
    perform userrealtime.check_served(user_id);
    perform userrealtime.check_name('userrealtime.present', 'instance', instance);
    if clients is null then
        delete from userrealtime.presence p where p.user_id = present.user_id and p.instance = present.instance;
        return;
    end if;
    insert into userrealtime.presence as p (user_id, instance, clients, listens, active_at)
    values (present.user_id, present.instance, least(present.clients, 100000), present.listens, active_at)
    on conflict on constraint presence_pkey do update
    set clients = excluded.clients, seen_at = excluded.seen_at, listens = excluded.listens, parked = false,
        active_at = excluded.active_at,
        since = case when (p.clients > 0) = (excluded.clients > 0) then p.since else excluded.since end;
    if listens then
        perform userrealtime.arm_doorbell();
    end if;
    perform userrealtime.trim_presence(present.user_id);
end
$$;
comment on function userrealtime.present is
    'Reports how many clients a relay has, 100000 at most, whether it receives its signals by LISTEN, and for how many '
    'seconds it has had no traffic. Null clients: the relay ends.';

revoke execute on function userrealtime.trim_presence, userrealtime.attend, userrealtime.present from public;
