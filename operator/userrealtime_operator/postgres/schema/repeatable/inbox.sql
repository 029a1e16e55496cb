-- The inbox: messages from users to the application, which reads the table as a queue.
--
-- A client gives each message a ref and repeats the message until it is acknowledged. A message is stored once: the
-- row remembers the ref. An application therefore marks a message as done, and deletes it later, when no client repeats
-- it any more.

create or replace function userrealtime.submit(user_id text, ref text, event text, data jsonb default '{}')
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
    'known is not stored again: the id of the first one is returned.';

revoke execute on function userrealtime.submit from public;
