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
    insert into userrealtime.inbox_usage values (charge_inbox.user_id, 0, 0) on conflict do nothing;
    perform from userrealtime.inbox_usage u where u.user_id = charge_inbox.user_id for update;
    usage := userrealtime.count_inbox(charge_inbox.user_id);
    if usage.messages >= quota.max_messages or usage.bytes + size > quota.max_bytes then
        raise exception 'userrealtime.submit: the inbox of this user is full: % messages, % bytes are waiting',
                usage.messages, usage.bytes
            using errcode = 'configuration_limit_exceeded',
                  hint = 'Set done on messages that the application has processed, or raise log.inbox.';
    end if;
    update userrealtime.inbox_usage u set messages = usage.messages + 1, bytes = usage.bytes + size
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
    select count_inbox.user_id, count(*), coalesce(sum(userrealtime.message_size(i.ref, i.event, i.data)), 0)::bigint
    from userrealtime.inbox i where i.user_id = count_inbox.user_id and i.done is null
$$;
comment on function userrealtime.count_inbox is 'The messages of a user that are waiting, and their size.';

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
        update userrealtime.inbox_usage u set messages = usage.messages, bytes = usage.bytes
        where u.user_id = near.user_id;
        if usage.messages >= 0.8 * limit_inbox.max_messages or usage.bytes >= 0.8 * limit_inbox.max_bytes then
            found_near := found_near + 1;
        end if;
    end loop;
    return found_near;
end
$$;
comment on function userrealtime.limit_inbox is
    'Sets the quota; null is no limit. Returns the number of users that use at least 80 % of it, at most `batch`.';

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
    userrealtime.charge_inbox, userrealtime.message_size, userrealtime.count_inbox, userrealtime.limit_inbox,
    userrealtime.submit
    from public;
