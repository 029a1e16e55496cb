-- Publishing the changes of a table.

-- Not security definer: to_jsonb may run casts that belong to the owner of the table.
create or replace function userrealtime.capture() returns trigger
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
    'Trigger function (after insert or update or delete, for each row): publishes the row to the user in the column named '
    'by the first argument, as <prefix>.insert, .update or .delete. A row that gets another user is deleted for the old '
    'one and inserted for the new one. A row without a user is not published.';

revoke execute on function userrealtime.capture from public;
