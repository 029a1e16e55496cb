-- Schema version 8, the last one before the first release, as pg_dump writes it. test_upgrade.py upgrades it.

SET LOCAL check_function_bodies = false;

CREATE SCHEMA userrealtime;

CREATE FUNCTION userrealtime.announce() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
begin
    perform pg_notify('userrealtime', '{' || userrealtime.announcement(new.user_id, new.head, new.epoch) || '}');
    return null;
end
$$;

CREATE FUNCTION userrealtime.announcement(user_id text, head bigint, epoch text) RETURNS text
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN ((((((to_json(user_id))::text || ':['::text) || (head)::text) || ','::text) || (to_json("left"(epoch, 64)))::text) || ']'::text);

CREATE FUNCTION userrealtime.capture() RETURNS trigger
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
declare
    user_column constant text := tg_argv[0];
    prefix constant text := coalesce(tg_argv[1], tg_table_name);
    before constant jsonb := to_jsonb(old);
    after constant jsonb := to_jsonb(new);
    previous_owner constant text := before ->> user_column;
    owner constant text := after ->> user_column;
begin
    if not coalesce(after, before) ? user_column then
        raise exception 'userrealtime.capture: table %.% has no column "%"', tg_table_schema, tg_table_name, user_column
            using errcode = 'undefined_column',
                  hint = 'Name the column that holds the user id: execute function userrealtime.capture(''user_id'').';
    end if;
    if owner = previous_owner then
        perform userrealtime.publish(owner, prefix || '.update', after);
    else
        if previous_owner is not null then
            perform userrealtime.publish(previous_owner, prefix || '.delete', before);
        end if;
        if owner is not null then
            perform userrealtime.publish(owner, prefix || '.insert', after);
        end if;
    end if;
    return null;
end
$$;

CREATE FUNCTION userrealtime.channel(user_id text) RETURNS text
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN ('urt_'::text || "left"(encode(sha256(convert_to(user_id, 'UTF8'::name)), 'hex'::text), 32));

CREATE FUNCTION userrealtime.check_message(caller text, user_id text, event text, data jsonb) RETURNS void
    LANGUAGE plpgsql IMMUTABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
begin
    perform userrealtime.check_name(caller, 'user_id', user_id);
    perform userrealtime.check_name(caller, 'event', event);
    if data is null then
        raise exception '%: data must not be null', caller
            using errcode = 'null_value_not_allowed',
                  hint = 'Pass ''{}'', or the JSON value ''null''.';
    elsif octet_length(data::text) > 1000000 then
        raise exception '%: data is % bytes of JSON; the limit is 1000000', caller, octet_length(data::text)
            using errcode = 'program_limit_exceeded',
                  hint = 'Send a reference, and let the receiver fetch what it refers to.';
    end if;
end
$$;

CREATE FUNCTION userrealtime.check_name(caller text, parameter text, name text) RETURNS void
    LANGUAGE plpgsql IMMUTABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
begin
    if not userrealtime.is_name(name) then
        raise exception '%: % must be 1 to 253 characters without control characters', caller, parameter
            using errcode = 'invalid_parameter_value';
    end if;
end
$$;

CREATE FUNCTION userrealtime.check_served(user_id text) RETURNS void
    LANGUAGE plpgsql STABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
begin
    if userrealtime.served_user() is distinct from user_id and userrealtime.served_user() is not null then
        raise exception 'this role serves another user' using errcode = 'insufficient_privilege';
    end if;
end
$$;

CREATE FUNCTION userrealtime.events(user_id text, after bigint, max_events integer, max_bytes integer, OUT epoch text, OUT id bigint, OUT event text, OUT at text, OUT data text) RETURNS SETOF record
    LANGUAGE plpgsql STABLE ROWS 500
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET "TimeZone" TO 'UTC'
    SET "DateStyle" TO 'ISO'
    SET plan_cache_mode TO 'force_generic_plan'
    SET enable_seqscan TO 'off'
    SET enable_bitmapscan TO 'off'
    SET enable_sort TO 'off'
    AS $$
declare
    bytes int := 0;
begin
    select l.epoch into events.epoch from userrealtime.log l where l.user_id = events.user_id;
    for events.id, events.event, events.at, events.data in
        select e.id, e.event, e.at::text, e.data::text
        from userrealtime.event e
        where e.user_id = events.user_id and e.id > events.after
        order by e.id
        limit events.max_events
    loop
        return next;
        bytes := bytes + octet_length(events.data);
        exit when bytes >= events.max_bytes;
    end loop;
    if not found then
        events.id := null;
        return next;
    end if;
end
$$;

CREATE FUNCTION userrealtime.grant_bridge(role name) RETURNS void
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
begin
    execute format('grant connect on database %I to %I', current_database(), role);
    execute format('grant usage on schema userrealtime to %I', role);
    execute format('grant execute on function userrealtime.heads to %I', role);
end
$$;

CREATE FUNCTION userrealtime.heads(OUT user_id text, OUT head bigint, OUT epoch text) RETURNS SETOF record
    LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
    select l.user_id, l.head, l.epoch from userrealtime.log l
    where l.user_id in (select p.user_id from userrealtime.presence p where p.seen_at > now() - interval '3 minutes')
$$;

CREATE FUNCTION userrealtime.is_name(name text) RETURNS boolean
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN COALESCE((((length(name) >= 1) AND (length(name) <= 253)) AND ((name COLLATE "C") !~ '[[:cntrl:]]'::text)), false);

CREATE FUNCTION userrealtime.is_message(user_id text, event text, data jsonb) RETURNS boolean
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN (userrealtime.is_name(user_id) AND userrealtime.is_name(event) AND COALESCE((octet_length((data)::text) <= 1000000), false));

CREATE FUNCTION userrealtime.number_all(of_transaction xid8) RETURNS void
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET enable_nestloop TO 'off'
    AS $$
declare
    grown record;
    said text;
    notification text := '';
begin
    for grown in
        with moved as materialized (
            delete from userrealtime.staged where transaction = of_transaction
            returning user_id, position, event, data
        ), share as materialized (
            select user_id, count(*) as events from moved group by user_id
        ), grown as materialized (
            insert into userrealtime.log as l (user_id, head)
            select user_id, events from share order by user_id
            on conflict (user_id) do update set head = l.head + excluded.head
            returning user_id, head, epoch
        ), numbered as (
            insert into userrealtime.event (user_id, id, event, at, data)
            select user_id,
                   head - events + row_number() over (partition by user_id order by position),
                   event, clock_timestamp(), data
            from moved join share using (user_id) join grown using (user_id)
        )
        select user_id, head, epoch from grown
    loop
        perform pg_notify(userrealtime.channel(grown.user_id), grown.head::text);
        said := userrealtime.announcement(grown.user_id, grown.head, grown.epoch);
        if octet_length(notification) + octet_length(said) > 7500 then
            perform pg_notify('userrealtime', '{' || notification || '}');
            notification := '';
        end if;
        notification := notification || case notification when '' then '' else ',' end || said;
    end loop;
    perform pg_notify('userrealtime', '{' || notification || '}');
end
$$;

CREATE FUNCTION userrealtime.number_staged() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
declare
    number bigint;
    epoch text;
begin
    delete from userrealtime.pending where transaction = new.transaction;
    if exists (select from userrealtime.staged where transaction = new.transaction) then
        insert into userrealtime.staged (position, user_id, event, data) overriding system value
        values (0, new.user_id, new.event, new.data);
        perform userrealtime.number_all(new.transaction);
        return null;
    end if;
    update userrealtime.log as l set head = l.head + 1 where user_id = new.user_id
    returning l.head, l.epoch into number, epoch;
    if not found then
        insert into userrealtime.log as l (user_id, head) values (new.user_id, 1)
        on conflict (user_id) do update set head = l.head + 1
        returning l.head, l.epoch into number, epoch;
    end if;
    insert into userrealtime.event (user_id, id, event, at, data)
    values (new.user_id, number, new.event, clock_timestamp(), new.data);
    perform pg_notify(userrealtime.channel(new.user_id), number::text),
            pg_notify('userrealtime', '{' || userrealtime.announcement(new.user_id, number, epoch) || '}');
    return null;
end
$$;

CREATE FUNCTION userrealtime.open(user_id text, OUT head bigint, OUT earliest bigint, OUT epoch text, OUT channel text) RETURNS record
    LANGUAGE sql STABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET enable_seqscan TO 'off'
    AS $$
    select coalesce(l.head, 0),
           coalesce((select min(e.id) from userrealtime.event e where e.user_id = open.user_id), l.head + 1, 1),
           l.epoch,
           userrealtime.channel(open.user_id)
    from (values (true)) as always left join userrealtime.log l on l.user_id = open.user_id
$$;

CREATE FUNCTION userrealtime.page(user_id text, after bigint, max_events integer, max_bytes integer, OUT epoch text, OUT id bigint, OUT event text, OUT at text, OUT data text) RETURNS SETOF record
    LANGUAGE plpgsql STABLE ROWS 500
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET enable_seqscan TO 'off'
    SET enable_bitmapscan TO 'off'
    SET enable_sort TO 'off'
    AS $$
declare
    bytes int := 0;
    expected bigint;
begin
    select l.epoch into page.epoch from userrealtime.log l where l.user_id = page.user_id;
    for page.id, page.event, page.at, page.data in
        select e.id, e.event, to_char(e.at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'), e.data::text
        from userrealtime.event e
        where e.user_id = page.user_id and e.id > page.after
        order by e.id
        limit page.max_events
    loop
        exit when page.id <> expected;
        return next;
        expected := page.id + 1;
        bytes := bytes + octet_length(page.data);
        exit when bytes >= page.max_bytes;
    end loop;
    if not found then
        page.id := null;
        return next;
    end if;
end
$$;

CREATE FUNCTION userrealtime.prepare_roles() RETURNS void
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
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
        userrealtime.open, userrealtime.page, userrealtime.events, userrealtime.channel, userrealtime.submit,
        userrealtime.present
        to userrealtime_relay;
end
$$;

CREATE FUNCTION userrealtime.present(user_id text, instance text, clients integer) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
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

CREATE FUNCTION userrealtime.prune(user_id text, max_age interval DEFAULT NULL::interval, max_events bigint DEFAULT NULL::bigint, batch integer DEFAULT 5000) RETURNS bigint
    LANGUAGE sql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
    with oldest as (
        select e.id, e.at from userrealtime.event e where e.user_id = prune.user_id order by e.id limit batch
    ), bound as (
        select least(max(o.id), greatest(
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

CREATE FUNCTION userrealtime.prune_inbox(max_age interval, batch integer DEFAULT 5000) RETURNS bigint
    LANGUAGE sql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
    with gone as (
        delete from userrealtime.inbox where id in (
            select id from userrealtime.inbox where done < now() - max_age order by done limit batch for update skip locked
        ) returning 1
    )
    select count(*) from gone
$$;

CREATE FUNCTION userrealtime.publish(user_id text, event text, data jsonb DEFAULT '{}'::jsonb) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
begin
    if not userrealtime.is_message(user_id, event, data) then
        perform userrealtime.check_message('userrealtime.publish', user_id, event, data);
    end if;
    insert into userrealtime.pending (user_id, event, data)
    values (publish.user_id, publish.event, publish.data)
    on conflict do nothing;
    if not found then
        insert into userrealtime.staged (user_id, event, data) values (publish.user_id, publish.event, publish.data);
    end if;
end
$$;

CREATE FUNCTION userrealtime.served_user() RETURNS text
    LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
    select coalesce(
        (select r.user_id from userrealtime.role r where r.name = session_user),
        (select '' from pg_auth_members m join pg_roles g on g.oid = m.roleid join pg_roles u on u.oid = m.member
         where g.rolname = 'userrealtime_relay' and u.rolname = session_user limit 1)
    )
$$;

CREATE FUNCTION userrealtime.submit(user_id text, ref text, event text, data jsonb DEFAULT '{}'::jsonb) RETURNS bigint
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
declare
    submitted bigint;
begin
    perform userrealtime.check_served(user_id);
    perform userrealtime.check_message('userrealtime.submit', user_id, event, data);
    perform userrealtime.check_name('userrealtime.submit', 'ref', ref);
    loop
        select i.id into submitted from userrealtime.inbox i where i.user_id = submit.user_id and i.ref = submit.ref;
        exit when found;
        insert into userrealtime.inbox (user_id, ref, event, data)
        values (submit.user_id, submit.ref, submit.event, submit.data)
        on conflict on constraint inbox_ref do nothing
        returning inbox.id into submitted;
        if found then
            perform pg_notify('userrealtime_inbox', submitted::text);
            exit;
        end if;
    end loop;
    return submitted;
end
$$;

CREATE TABLE userrealtime.event (
    user_id text NOT NULL COLLATE pg_catalog."C",
    id bigint NOT NULL,
    event text NOT NULL,
    at timestamp with time zone NOT NULL,
    data jsonb NOT NULL
);

CREATE TABLE userrealtime.inbox (
    id bigint NOT NULL,
    user_id text NOT NULL COLLATE pg_catalog."C",
    ref text NOT NULL COLLATE pg_catalog."C",
    event text NOT NULL,
    data jsonb NOT NULL,
    at timestamp with time zone DEFAULT now() NOT NULL,
    done timestamp with time zone
);

ALTER TABLE userrealtime.inbox ALTER COLUMN id ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME userrealtime.inbox_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);

CREATE TABLE userrealtime.log (
    user_id text NOT NULL COLLATE pg_catalog."C",
    head bigint DEFAULT 0 NOT NULL,
    epoch text DEFAULT (gen_random_uuid())::text NOT NULL
);

CREATE TABLE userrealtime.presence (
    user_id text NOT NULL COLLATE pg_catalog."C",
    instance text NOT NULL COLLATE pg_catalog."C",
    clients integer NOT NULL,
    since timestamp with time zone DEFAULT now() NOT NULL,
    seen_at timestamp with time zone DEFAULT now() NOT NULL,
    CONSTRAINT presence_clients_check CHECK ((clients >= 0))
);

CREATE VIEW userrealtime.online AS
 SELECT user_id,
    (sum(clients))::integer AS clients,
    min(since) AS since,
    max(seen_at) AS seen_at
   FROM userrealtime.presence
  WHERE ((clients > 0) AND (seen_at > (now() - '00:03:00'::interval)))
  GROUP BY user_id;

CREATE UNLOGGED TABLE userrealtime.pending (
    transaction xid8 DEFAULT pg_current_xact_id() NOT NULL,
    user_id text NOT NULL COLLATE pg_catalog."C",
    event text NOT NULL,
    data jsonb NOT NULL
);

CREATE TABLE userrealtime.registration (
    resource uuid NOT NULL,
    scope text NOT NULL,
    user_id text NOT NULL COLLATE pg_catalog."C"
);

CREATE TABLE userrealtime.role (
    name text NOT NULL COLLATE pg_catalog."C",
    scope text NOT NULL,
    resource uuid NOT NULL,
    user_id text NOT NULL COLLATE pg_catalog."C",
    fingerprint text NOT NULL,
    drop_after timestamp with time zone
);

CREATE UNLOGGED TABLE userrealtime.staged (
    transaction xid8 DEFAULT pg_current_xact_id() NOT NULL,
    "position" bigint NOT NULL,
    user_id text NOT NULL COLLATE pg_catalog."C",
    event text NOT NULL,
    data jsonb NOT NULL
);

ALTER TABLE userrealtime.staged ALTER COLUMN "position" ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME userrealtime.staged_position_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);

ALTER TABLE ONLY userrealtime.event
    ADD CONSTRAINT event_pkey PRIMARY KEY (user_id, id);

ALTER TABLE ONLY userrealtime.inbox
    ADD CONSTRAINT inbox_pkey PRIMARY KEY (id);

ALTER TABLE ONLY userrealtime.inbox
    ADD CONSTRAINT inbox_ref UNIQUE (user_id, ref);

ALTER TABLE ONLY userrealtime.log
    ADD CONSTRAINT log_pkey PRIMARY KEY (user_id);

ALTER TABLE ONLY userrealtime.pending
    ADD CONSTRAINT pending_pkey PRIMARY KEY (transaction);

ALTER TABLE ONLY userrealtime.presence
    ADD CONSTRAINT presence_pkey PRIMARY KEY (user_id, instance);

ALTER TABLE ONLY userrealtime.registration
    ADD CONSTRAINT registration_pkey PRIMARY KEY (resource);

ALTER TABLE ONLY userrealtime.role
    ADD CONSTRAINT role_pkey PRIMARY KEY (name);

ALTER TABLE ONLY userrealtime.staged
    ADD CONSTRAINT staged_pkey PRIMARY KEY (transaction, "position");

CREATE INDEX inbox_done ON userrealtime.inbox USING btree (done) WHERE (done IS NOT NULL);

CREATE INDEX inbox_waiting ON userrealtime.inbox USING btree (id) WHERE (done IS NULL);

CREATE INDEX registration_scope_idx ON userrealtime.registration USING btree (scope);

CREATE INDEX registration_user_id_idx ON userrealtime.registration USING btree (user_id);

CREATE INDEX role_resource_idx ON userrealtime.role USING btree (resource);

CREATE INDEX role_scope_idx ON userrealtime.role USING btree (scope);

CREATE TRIGGER announce_epoch AFTER UPDATE OF epoch ON userrealtime.log FOR EACH ROW EXECUTE FUNCTION userrealtime.announce();

CREATE CONSTRAINT TRIGGER number_staged AFTER INSERT ON userrealtime.pending DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION userrealtime.number_staged();

ALTER TABLE userrealtime.event ENABLE ROW LEVEL SECURITY;

ALTER TABLE userrealtime.log ENABLE ROW LEVEL SECURITY;

CREATE POLICY served ON userrealtime.event USING ((COALESCE(( SELECT userrealtime.served_user() AS served_user), user_id) = user_id));

CREATE POLICY served ON userrealtime.log USING ((COALESCE(( SELECT userrealtime.served_user() AS served_user), user_id) = user_id));

REVOKE ALL ON FUNCTION userrealtime.announce() FROM PUBLIC;

REVOKE ALL ON FUNCTION userrealtime.announcement(user_id text, head bigint, epoch text) FROM PUBLIC;

REVOKE ALL ON FUNCTION userrealtime.capture() FROM PUBLIC;

REVOKE ALL ON FUNCTION userrealtime.channel(user_id text) FROM PUBLIC;

REVOKE ALL ON FUNCTION userrealtime.check_message(caller text, user_id text, event text, data jsonb) FROM PUBLIC;

REVOKE ALL ON FUNCTION userrealtime.check_name(caller text, parameter text, name text) FROM PUBLIC;

REVOKE ALL ON FUNCTION userrealtime.check_served(user_id text) FROM PUBLIC;

REVOKE ALL ON FUNCTION userrealtime.events(user_id text, after bigint, max_events integer, max_bytes integer, OUT epoch text, OUT id bigint, OUT event text, OUT at text, OUT data text) FROM PUBLIC;

REVOKE ALL ON FUNCTION userrealtime.grant_bridge(role name) FROM PUBLIC;

REVOKE ALL ON FUNCTION userrealtime.heads(OUT user_id text, OUT head bigint, OUT epoch text) FROM PUBLIC;

REVOKE ALL ON FUNCTION userrealtime.is_name(name text) FROM PUBLIC;

REVOKE ALL ON FUNCTION userrealtime.is_message(user_id text, event text, data jsonb) FROM PUBLIC;

REVOKE ALL ON FUNCTION userrealtime.number_all(of_transaction xid8) FROM PUBLIC;

REVOKE ALL ON FUNCTION userrealtime.number_staged() FROM PUBLIC;

REVOKE ALL ON FUNCTION userrealtime.open(user_id text, OUT head bigint, OUT earliest bigint, OUT epoch text, OUT channel text) FROM PUBLIC;

REVOKE ALL ON FUNCTION userrealtime.page(user_id text, after bigint, max_events integer, max_bytes integer, OUT epoch text, OUT id bigint, OUT event text, OUT at text, OUT data text) FROM PUBLIC;

REVOKE ALL ON FUNCTION userrealtime.prepare_roles() FROM PUBLIC;

REVOKE ALL ON FUNCTION userrealtime.present(user_id text, instance text, clients integer) FROM PUBLIC;

REVOKE ALL ON FUNCTION userrealtime.prune(user_id text, max_age interval, max_events bigint, batch integer) FROM PUBLIC;

REVOKE ALL ON FUNCTION userrealtime.prune_inbox(max_age interval, batch integer) FROM PUBLIC;

REVOKE ALL ON FUNCTION userrealtime.publish(user_id text, event text, data jsonb) FROM PUBLIC;

REVOKE ALL ON FUNCTION userrealtime.submit(user_id text, ref text, event text, data jsonb) FROM PUBLIC;

CREATE TABLE userrealtime.migration (
    version int PRIMARY KEY,
    name text NOT NULL,
    digest text NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT now()
);

INSERT INTO userrealtime.migration (version, name, digest) VALUES
    (1, 'log', 'x'), (2, 'inbox', 'x'), (3, 'roles', 'x'), (4, 'presence', 'x'),
    (5, 'retention', 'x'), (6, 'events', 'x'), (7, 'bridge', 'x'), (8, 'commit', 'x');
