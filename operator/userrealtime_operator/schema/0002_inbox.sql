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
    perform userrealtime.check_message('userrealtime.submit', user_id, event, data);
    perform userrealtime.check_name('userrealtime.submit', 'ref', ref);
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
