-- The inbox: messages from users to the application, which reads the table as a queue.
--
-- A client gives each message a ref and repeats the message until it is acknowledged. A message is stored once: the
-- row remembers the ref. An application therefore marks a message as done, and deletes it later, when no client repeats
-- it any more.

-- A quota limits what a user has waiting. The usage of a user only grows, until it reaches the quota: then the waiting
-- messages are counted, which costs one scan of at most as many rows as the quota allows. Neither the application, which
-- marks messages as done, nor a message of another user touches the row, so a pod that locks it delays its user alone.
create or replace function userrealtime.charge_inbox(user_id text, size bigint) returns void
    language plpgsql
    set search_path = pg_catalog, pg_temp
    as $$
declare
    quota constant userrealtime.inbox_quota := (select q from userrealtime.inbox_quota q);
    usage userrealtime.inbox_usage;
begin
    if quota.max_messages is null and quota.max_bytes is null then
        return;
    end if;
    update userrealtime.inbox_usage u set messages = u.messages + 1, bytes = u.bytes + size
    where u.user_id = charge_inbox.user_id
      and (quota.max_messages is null or u.messages < quota.max_messages)
      and (quota.max_bytes is null or u.bytes + size <= quota.max_bytes);
    if found then
        return;
    end if;
    insert into userrealtime.inbox_usage (user_id, messages, bytes) values (charge_inbox.user_id, 0, 0) on conflict do nothing;
    perform from userrealtime.inbox_usage u where u.user_id = charge_inbox.user_id for update;
    usage := userrealtime.count_inbox(charge_inbox.user_id);
    if usage.messages >= quota.max_messages or usage.bytes + size > quota.max_bytes then
        raise exception 'userrealtime.submit: the inbox of this user is full: % messages, % bytes are waiting',
                usage.messages, usage.bytes
            using errcode = 'configuration_limit_exceeded',
                  hint = 'Set done on messages that the application has processed, or raise log.inbox.';
    end if;
    perform userrealtime.record_usage(usage);
    update userrealtime.inbox_usage u set messages = u.messages + 1, bytes = u.bytes + size
    where u.user_id = charge_inbox.user_id;
end
$$;
comment on function userrealtime.charge_inbox is
    'Adds one message to the usage of a user. Raises an error if the user''s quota is used up.';

create or replace function userrealtime.message_size(ref text, event text, data jsonb) returns bigint
    language sql stable
    -- 256 bytes for the other columns and for the entries of indexes.
    return 256 + octet_length(ref) + octet_length(event) + pg_column_size(data);
comment on function userrealtime.message_size is
    'The approximate size of a message on disk. A message that is stored may be compressed, and is not decompressed here.';

create or replace function userrealtime.count_inbox(user_id text) returns userrealtime.inbox_usage
    language sql volatile
    set search_path = pg_catalog, pg_temp
    as $$
    select count_inbox.user_id, count(*), coalesce(sum(userrealtime.message_size(i.ref, i.event, i.data)), 0)::bigint,
           0::bigint, 0::bigint
    from userrealtime.inbox i where i.user_id = count_inbox.user_id and i.done is null
$$;
comment on function userrealtime.count_inbox is 'The messages of a user that are waiting, and their size.';

create or replace function userrealtime.record_usage(usage userrealtime.inbox_usage) returns void
    language sql volatile
    set search_path = pg_catalog, pg_temp
    as $$
    -- What is not waiting any more was processed or deleted. A message of the application is waiting without a charge.
    update userrealtime.inbox_usage u set
        done_messages = u.done_messages + greatest(u.messages - usage.messages, 0),
        done_bytes = u.done_bytes + greatest(u.bytes - usage.bytes, 0),
        messages = usage.messages,
        bytes = usage.bytes
    where u.user_id = usage.user_id
$$;
comment on function userrealtime.record_usage is
    'Replaces the usage of a user by a new count, and adds the messages that are no longer waiting to the processed ones.';

create or replace function userrealtime.limit_inbox(max_messages bigint, max_bytes bigint, batch int default 100)
    returns bigint
    language plpgsql security definer
    set search_path = pg_catalog, pg_temp
    as $$
declare
    near record;
    usage userrealtime.inbox_usage;
    found_near bigint := 0;
begin
    insert into userrealtime.inbox_quota as q values (true, limit_inbox.max_messages, limit_inbox.max_bytes)
    on conflict (singleton) do update set max_messages = excluded.max_messages, max_bytes = excluded.max_bytes
    where (q.max_messages, q.max_bytes) is distinct from (excluded.max_messages, excluded.max_bytes);
    for near in
        select u.user_id from userrealtime.inbox_usage u
        where u.messages >= 0.8 * limit_inbox.max_messages or u.bytes >= 0.8 * limit_inbox.max_bytes
        -- A row that is locked is left to the next call.
        limit batch for update skip locked
    loop
        usage := userrealtime.count_inbox(near.user_id);
        perform userrealtime.record_usage(usage);
        if usage.messages >= 0.8 * limit_inbox.max_messages or usage.bytes >= 0.8 * limit_inbox.max_bytes then
            found_near := found_near + 1;
        end if;
    end loop;
    return found_near;
end
$$;
comment on function userrealtime.limit_inbox is
    'Sets the quota; null is no limit. Returns the number of users that use at least 80 % of it, at most `batch`.';

-- The quota also limits the processed messages of a user, whose rows remember the refs: the oldest of them are deleted.
-- They are not counted when a message arrives, because a message would cost more the more messages were processed. A pod
-- can lock the usage of its user, so only the last statement needs that row, and does not wait for it.
create or replace function userrealtime.trim_inbox(user_id text, batch int default 5000) returns bigint
    language plpgsql security definer
    set search_path = pg_catalog, pg_temp
    as $$
declare
    quota constant userrealtime.inbox_quota := (select q from userrealtime.inbox_quota q);
    kept_messages bigint;
    kept_bytes bigint;
    beyond bigint[];
    deleted bigint;
begin
    with done as (
        select i.id, i.done, userrealtime.message_size(i.ref, i.event, i.data) as size
        from userrealtime.inbox i where i.user_id = trim_inbox.user_id and i.done is not null
    ), ranked as (
        select d.id, d.size, row_number() over newest as messages, sum(d.size) over newest as bytes
        from done d window newest as (order by d.done desc, d.id desc)
    ), marked as (
        select r.*, coalesce(r.messages > quota.max_messages, false) or coalesce(r.bytes > quota.max_bytes, false) as gone
        from ranked r
    )
    select count(*) filter (where not m.gone), coalesce(sum(m.size) filter (where not m.gone), 0),
           array_agg(m.id order by m.messages desc) filter (where m.gone)
    into kept_messages, kept_bytes, beyond
    from marked m;
    with gone as (
        delete from userrealtime.inbox where id in (
            -- A row that the application has locked is left to a later call.
            select i.id from userrealtime.inbox i where i.id = any(beyond[:batch]) and i.done is not null
            for update skip locked
        ) returning 1
    )
    select count(*) into deleted from gone;
    if deleted < batch then
        update userrealtime.inbox_usage u set done_messages = kept_messages, done_bytes = kept_bytes
        where u.user_id in (
            select v.user_id from userrealtime.inbox_usage v where v.user_id = trim_inbox.user_id for update skip locked
        );
    end if;
    return deleted;
end
$$;
comment on function userrealtime.trim_inbox is
    'Deletes the oldest processed messages of a user beyond the quota of the inbox, at most `batch` of them. Returns how '
    'many it deleted. Call it until that is less than `batch`.';

create or replace function userrealtime.submit(
    user_id text, ref text, event text, data jsonb default '{}', limited boolean default false
)
    returns bigint
    language plpgsql security definer
    set search_path = pg_catalog, pg_temp
    as $$
declare
    submitted bigint;
    repeated boolean := false;
begin
    perform userrealtime.check_served(user_id);
    perform userrealtime.check_message('userrealtime.submit', user_id, event, data);
    perform userrealtime.check_name('userrealtime.submit', 'ref', ref);
    -- The loop repeats if the row is deleted between the two statements, or if the sequence gives an id that is in use:
    -- logical replication copies rows and leaves the sequence behind. Then the sequence is moved past the rows.
    loop
        select i.id into submitted from userrealtime.inbox i where i.user_id = submit.user_id and i.ref = submit.ref;
        exit when found;
        if repeated then
            perform setval(
                pg_get_serial_sequence('userrealtime.inbox', 'id'),
                greatest((select max(i.id) from userrealtime.inbox i),
                         nextval(pg_get_serial_sequence('userrealtime.inbox', 'id')))
            );
        end if;
        if not repeated and (limited or userrealtime.served_user() is not null) then
            perform userrealtime.charge_inbox(
                submit.user_id, userrealtime.message_size(submit.ref, submit.event, submit.data)
            );
        end if;
        repeated := true;
        insert into userrealtime.inbox (user_id, ref, event, data)
        values (submit.user_id, submit.ref, submit.event, submit.data)
        on conflict do nothing
        returning inbox.id into submitted;
        if found then
            perform userrealtime.signal_inbox(submitted);
            exit;
        end if;
    end loop;
    return submitted;
end
$$;
comment on function userrealtime.submit is
    'Stores one message of a user and returns its id. A NOTIFY on userrealtime_inbox follows. A message with a ref that is '
    'known is not stored again: the id of the first one is returned. `limited` applies the quota of the user, which always '
    'applies to the database role of a pod.';

revoke execute on function
    userrealtime.charge_inbox, userrealtime.message_size, userrealtime.count_inbox, userrealtime.record_usage,
    userrealtime.limit_inbox, userrealtime.trim_inbox, userrealtime.submit
    from public;
