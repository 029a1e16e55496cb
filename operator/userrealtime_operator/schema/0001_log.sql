-- The log: every event of every user, numbered per user without gaps, in commit order.
--
-- An event is first *staged* by the transaction that publishes it, and gets its number when that transaction
-- commits, from a deferred constraint trigger. So a number is given while the user's row in `log` is locked until
-- the commit is over: whoever sees number n sees all below it, and a rollback leaves no gap. Users are taken in
-- sorted order, so transactions that share users never wait for each other in a circle.
--
-- Rows are moved, not renumbered in place: `event` is append-only, and its index holds final numbers alone.

create table userrealtime.log (
    user_id text collate "C" primary key,
    head bigint not null default 0,
    epoch text not null default gen_random_uuid()::text
);
comment on table userrealtime.log is 'One row a user: the number of the newest event, and which incarnation of the log this is.';

create table userrealtime.event (
    user_id text collate "C" not null,
    id bigint not null,
    event text not null,
    at timestamptz not null,
    data jsonb not null,
    primary key (user_id, id)
);
comment on table userrealtime.event is 'The events. Append-only; id is gapless per user, in commit order.';

create table userrealtime.staged (
    transaction xid8 not null default pg_current_xact_id(),
    position bigint generated always as identity,
    user_id text collate "C" not null,
    event text not null,
    data jsonb not null,
    primary key (transaction, position)
);
comment on table userrealtime.staged is 'Events of transactions that have not committed. Empty for everybody else.';

create table userrealtime.pending (
    transaction xid8 primary key default pg_current_xact_id()
);
comment on table userrealtime.pending is
    'One row a publishing transaction, which carries the deferred trigger: numbering runs once, not once an event.';

create table userrealtime.registration (
    resource uuid primary key,
    scope text not null,
    user_id text collate "C" not null
);
create index on userrealtime.registration (user_id);
create index on userrealtime.registration (scope);
comment on table userrealtime.registration is
    'The UserRealtime resources served from here, by their uid, kept by the operator; scope says of which cluster and '
    'namespace, since several may share a database. '
    'A user''s log is removed with the last of them.';

create function userrealtime.channel(user_id text) returns text
    language sql immutable parallel safe
    return 'urt_' || left(encode(sha256(convert_to(user_id, 'UTF8')), 'hex'), 32);
comment on function userrealtime.channel is
    'The NOTIFY channel of one user. Hashed, since a channel name holds 63 bytes and a user id may be longer.';

create function userrealtime.number_staged() returns trigger
    language plpgsql security definer
    set search_path = pg_catalog, pg_temp
    -- These rows are too new for statistics: the planner takes a nested loop, which lasts minutes over 20,000.
    set enable_nestloop = off
    as $$
declare
    grown record;
begin
    -- The next event of this transaction, if numbering was forced early (set constraints), starts anew.
    delete from userrealtime.pending where transaction = new.transaction;
    for grown in
        with moved as materialized (
            delete from userrealtime.staged where transaction = new.transaction
            returning user_id, position, event, data
        ), share as materialized (
            select user_id, count(*) as events from moved group by user_id
        ), grown as materialized (
            insert into userrealtime.log as l (user_id, head)
            select user_id, events from share order by user_id
            on conflict (user_id) do update set head = l.head + excluded.head
            returning user_id, head
        ), numbered as (
            insert into userrealtime.event (user_id, id, event, at, data)
            select user_id,
                   head - events + row_number() over (partition by user_id order by position),
                   event, clock_timestamp(), data
            from moved join share using (user_id) join grown using (user_id)
        )
        select user_id, head from grown
    loop
        -- The number alone: a payload of 8,000 bytes would fail the application's transaction.
        perform pg_notify(userrealtime.channel(grown.user_id), grown.head::text);
    end loop;
    return null;
end
$$;

create constraint trigger number_staged
    after insert on userrealtime.pending
    deferrable initially deferred
    for each row execute function userrealtime.number_staged();

create function userrealtime.check_name(caller text, parameter text, name text) returns void
    language plpgsql immutable
    set search_path = pg_catalog, pg_temp
    as $$
begin
    if coalesce(length(name) not between 1 and 253 or name collate "C" ~ '[[:cntrl:]]', true) then
        raise exception '%: % must be 1 to 253 characters without control characters', caller, parameter
            using errcode = 'invalid_parameter_value';
    end if;
end
$$;
comment on function userrealtime.check_name is 'Raises if this is no user id, ref or name of an event.';

create function userrealtime.check_message(caller text, user_id text, event text, data jsonb) returns void
    language plpgsql immutable
    set search_path = pg_catalog, pg_temp
    as $$
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
comment on function userrealtime.check_message is 'Raises, in the name of its caller, if this cannot be an event or a message.';

create function userrealtime.publish(user_id text, event text, data jsonb default '{}') returns void
    language plpgsql security definer
    set search_path = pg_catalog, pg_temp
    as $$
begin
    perform userrealtime.check_message('userrealtime.publish', user_id, event, data);
    insert into userrealtime.staged (user_id, event, data) values (publish.user_id, publish.event, publish.data);
    insert into userrealtime.pending default values on conflict do nothing;
end
$$;
comment on function userrealtime.publish is
    'Publish one event to one user, as part of the calling transaction: it is delivered if that commits.';

-- Not security definer: to_jsonb may run casts that belong to the table's owner.
create function userrealtime.capture() returns trigger
    language plpgsql
    set search_path = pg_catalog, pg_temp
    as $$
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
comment on function userrealtime.capture is
    'Trigger (after insert or update or delete, for each row): publishes the row to the user in the column named by its '
    'first argument, as <prefix>.insert, .update or .delete. A row that changes hands is deleted for one user and '
    'inserted for the other; a row without a user is nobody''s.';

-- A relay may have a database role of its own, which serves one user. It is looked up by session_user, which neither SET
-- ROLE nor a function changes.
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

create function userrealtime.open(user_id text, out head bigint, out earliest bigint, out epoch text, out channel text)
    language sql stable security definer
    set search_path = pg_catalog, pg_temp
    set enable_seqscan = off
    as $$
    select coalesce(l.head, 0),
           coalesce((select min(e.id) from userrealtime.event e where e.user_id = open.user_id), l.head + 1, 1),
           l.epoch,
           userrealtime.channel(open.user_id)
    from (values (true)) as always left join userrealtime.log l on l.user_id = open.user_id
$$;
comment on function userrealtime.open is
    'What a relay asks when it connects: the newest and the oldest number kept, the epoch (null: no log yet, the first '
    'event will be number 1), and the channel to LISTEN on.';

-- Sequential scans and sorts are off: a plan that was made, and kept, while the tables were small would read all of
-- them for every page later. The primary key gives the order.
create function userrealtime.page(
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
    set enable_seqscan = off
    set enable_bitmapscan = off
    set enable_sort = off
    as $$
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
        -- Here and not in the query, which would have to write out every event as text to add up their lengths.
        bytes := bytes + octet_length(page.data);
        exit when bytes >= page.max_bytes;
    end loop;
    if not found then
        page.id := null;
        return next;
    end if;
end
$$;
comment on function userrealtime.page is
    'The events after a number, oldest first, up to a gap: at most max_events, and none once their data has max_bytes. '
    'Times are RFC 3339. Each row has the epoch, of the same snapshot; it stands alone, in a row of its own, if there is no event.';

revoke execute on all functions in schema userrealtime from public;
