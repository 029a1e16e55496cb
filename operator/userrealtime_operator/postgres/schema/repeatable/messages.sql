-- Validation of user ids, names and payloads.

-- The first two have no SET clause: the planner then inlines them into the calling expression.
create or replace function userrealtime.is_name(name text) returns boolean
    language sql immutable parallel safe
    return coalesce(length(name) between 1 and 253 and name collate "C" !~ '[[:cntrl:]]', false);
comment on function userrealtime.is_name is 'Whether this is a valid user id, ref or event name.';

create or replace function userrealtime.is_message(user_id text, event text, data jsonb) returns boolean
    language sql immutable parallel safe
    return userrealtime.is_name(user_id)
        and userrealtime.is_name(event)
        and coalesce(octet_length(data::text) <= 1000000, false);
comment on function userrealtime.is_message is
    'Whether this is a valid event or message. check_message makes the same checks, is slower and gives the reason.';

create or replace function userrealtime.check_name(caller text, parameter text, name text) returns void
    language plpgsql immutable
    set search_path = pg_catalog, pg_temp
    as $$
begin
    if not userrealtime.is_name(name) then
        raise exception '%: % must be 1 to 253 characters without control characters', caller, parameter
            using errcode = 'invalid_parameter_value';
    end if;
end
$$;
comment on function userrealtime.check_name is 'Raises an error unless this is a valid user id, ref or event name.';

create or replace function userrealtime.check_message(caller text, user_id text, event text, data jsonb) returns void
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
                  hint = 'Publish a reference, and let the receiver fetch the content.';
    end if;
end
$$;
comment on function userrealtime.check_message is
    'Raises an error in the name of the caller unless this is a valid event or message.';

revoke execute on function
    userrealtime.is_name, userrealtime.is_message, userrealtime.check_name, userrealtime.check_message
    from public;
