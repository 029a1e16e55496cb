-- The inbox: what users send to the application, which reads it as a queue.
--
-- A client names each message by a `ref` of its own and repeats it until it is acknowledged. It is stored once: the
-- row is its own memory of the ref, so an application marks it as done and removes it later, when no client will
-- repeat it any more.

create table userrealtime.inbox (
    id bigint generated always as identity primary key,
    user_id text collate "C" not null,
    ref text collate "C" not null,
    event text not null,
    data jsonb not null,
    at timestamptz not null default now(),
    done timestamptz,
    constraint inbox_ref unique (user_id, ref)
);
create index inbox_waiting on userrealtime.inbox (id) where done is null;
comment on table userrealtime.inbox is
    'What users have sent. done: when the application has dealt with it; until the row is deleted, its ref is known.';

create function userrealtime.submit(user_id text, ref text, event text, data jsonb default '{}') returns bigint
    language plpgsql security definer
    set search_path = pg_catalog, pg_temp
    as $$
declare
    submitted bigint;
begin
    perform userrealtime.check_served(user_id);
    if coalesce(length(user_id) not between 1 and 253 or user_id collate "C" ~ '[[:cntrl:]]', true) then
        raise exception 'userrealtime.submit: user_id must be 1 to 253 characters without control characters'
            using errcode = 'invalid_parameter_value';
    elsif coalesce(length(ref) not between 1 and 253 or ref collate "C" ~ '[[:cntrl:]]', true) then
        raise exception 'userrealtime.submit: ref must be 1 to 253 characters without control characters'
            using errcode = 'invalid_parameter_value';
    elsif coalesce(length(event) not between 1 and 253 or event collate "C" ~ '[[:cntrl:]]', true) then
        raise exception 'userrealtime.submit: event must be 1 to 253 characters without control characters'
            using errcode = 'invalid_parameter_value';
    elsif data is null then
        raise exception 'userrealtime.submit: data must not be null'
            using errcode = 'null_value_not_allowed',
                  hint = 'Pass ''{}'', or the JSON value ''null''.';
    elsif octet_length(data::text) > 1000000 then
        raise exception 'userrealtime.submit: data is % bytes of JSON; the limit is 1000000', octet_length(data::text)
            using errcode = 'program_limit_exceeded';
    end if;
    -- More than once only if the row goes between the two statements.
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
comment on function userrealtime.submit is
    'Store one message of a user and notify userrealtime_inbox of its id, which is returned. Again with the same ref: '
    'nothing but the id that it has.';

revoke execute on function userrealtime.submit from public;
