-- Publishing the changes of a table. The options are described in docs/publish.md.

-- Not security definer: to_jsonb may run casts that belong to the owner of the table. The role that writes the table
-- needs rights for all functions that are called here except the trigger function itself, so there is only one function.
create or replace function userrealtime.capture() returns trigger
    language plpgsql
    set search_path = pg_catalog, pg_temp
    as $$
declare
    user_column constant text := tg_argv[0];
    prefix constant text := coalesce(tg_argv[1], tg_table_name);
    before jsonb;
    after jsonb;
    previous_owner text;
    owner text;
    option text;
    included text[];
    excluded text[];
    form text := 'row';
    names text[];
    virtual text;
    key text[];
    setting text;
begin
    if user_column is null then
        raise exception 'userrealtime.capture: the trigger % names no column', tg_name
            using errcode = 'invalid_parameter_value',
                  hint = 'Name the column that holds the user id: execute function userrealtime.capture(''user_id'').';
    end if;
    if tg_nargs > 2 then
        foreach option in array tg_argv[2:] loop
            if option like 'columns=%' then
                included := ('{' || substr(option, 9) || '}')::text[];
            elsif option like 'except=%' then
                excluded := ('{' || substr(option, 8) || '}')::text[];
            elsif option in ('update=row', 'update=changed', 'update=both') then
                form := substr(option, 8);
            else
                raise exception 'userrealtime.capture: the trigger % has the unknown option "%"', tg_name, option
                    using errcode = 'invalid_parameter_value',
                          hint = 'The options are columns=A,B, except=A,B, update=row, update=changed and update=both.';
            end if;
        end loop;
        names := coalesce(included, excluded);
        if included is not null and excluded is not null or names = '{}' or array_position(names, null) is not null then
            raise exception 'userrealtime.capture: the trigger % needs a list of names in columns or in except', tg_name
                using errcode = 'invalid_parameter_value',
                      hint = 'Use one of the two, as in columns=id,total. A name with a comma is written in double quotes.';
        end if;
    end if;

    if tg_op = 'TRUNCATE' then
        if tg_when <> 'BEFORE' then
            raise exception 'userrealtime.capture: the trigger % fires when the rows are gone', tg_name
                using errcode = 'invalid_parameter_value',
                      hint = 'Use: create trigger ... before truncate on ... for each statement.';
        end if;
        -- Off: a role that cannot read all rows gets an error. Otherwise some users would receive no event.
        setting := current_setting('row_security');
        perform set_config('row_security', 'off', true);
        for owner in execute format(
            'select distinct case when pg_typeof(%1$I) = ''bpchar''::regtype then rtrim(%1$I) else to_jsonb(%1$I) #>> ''{}'' end
             from %2$I.%3$I where %1$I is not null order by 1',
            user_column, tg_table_schema, tg_table_name
        ) loop
            perform userrealtime.publish(owner, prefix || '.truncate', '{}');
        end loop;
        perform set_config('row_security', setting, true);
        return null;
    end if;
    if tg_when <> 'AFTER' or tg_level <> 'ROW' then
        raise exception 'userrealtime.capture: the trigger % is %, for each %', tg_name, lower(tg_when), lower(tg_level)
            using errcode = 'invalid_parameter_value',
                  hint = 'Use: create trigger ... after insert or update or delete on ... for each row.';
    end if;

    before := to_jsonb(old);
    after := to_jsonb(new);
    -- Virtual generated columns have no value in a trigger. The first two conditions spare most rows the query.
    if current_setting('server_version_num')::int >= 180000
        and coalesce(after, before) @? '$.* ? (@ == null)' then
        select string_agg(format('jsonb_build_object(%L, %s)', a.attname, pg_get_expr(d.adbin, d.adrelid)), ' || ')
        into virtual
        from pg_attribute a join pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum
        where a.attrelid = tg_relid and a.attgenerated = 'v' and not a.attisdropped;
        if virtual is not null then
            virtual := format('select %s from (select ($1).*, $2 as tableoid) as changed', virtual);
            if before is not null then
                execute virtual into setting using old, tg_relid;
                before := before || setting::jsonb;
            end if;
            if after is not null then
                execute virtual into setting using new, tg_relid;
                after := after || setting::jsonb;
            end if;
        end if;
    end if;

    if not coalesce(after, before) ? user_column or not coalesce(after, before) ?& names then
        raise exception 'userrealtime.capture: table %.% has no column "%"', tg_table_schema, tg_table_name,
            (select name from unnest(user_column || names) as name where not coalesce(after, before) ? name limit 1)
            using errcode = 'undefined_column',
                  hint = 'Name the column that holds the user id: execute function userrealtime.capture(''user_id'').';
    end if;
    previous_owner := before ->> user_column;
    owner := after ->> user_column;
    -- The type char(n) pads its values with spaces, which are not part of the user id.
    if (owner like '% ' or previous_owner like '% ') and exists (
        select from pg_attribute where attrelid = tg_relid and attname = user_column and atttypid = 'bpchar'::regtype
    ) then
        previous_owner := rtrim(previous_owner);
        owner := rtrim(owner);
    end if;
    if included is not null then
        before := before - array(select name from jsonb_object_keys(before) as name where name <> all (included));
        after := after - array(select name from jsonb_object_keys(after) as name where name <> all (included));
    elsif excluded is not null then
        before := before - excluded;
        after := after - excluded;
    end if;

    if owner = previous_owner then
        if before = after and (names is not null or form = 'changed') then
            return null;
        end if;
        if form = 'changed' then
            select array_agg(a.attname::text) into key
            from pg_index i join pg_attribute a on a.attrelid = i.indrelid and a.attnum = any (i.indkey)
            where i.indrelid = tg_relid and i.indisprimary;
            if key is null then
                raise exception 'userrealtime.capture: table %.% has no primary key', tg_table_schema, tg_table_name
                    using errcode = 'object_not_in_prerequisite_state',
                          hint = 'The option update=changed needs a primary key. Add one, or use update=both.';
            end if;
            if exists (select from unnest(key) as name where before -> name is distinct from after -> name) then
                perform userrealtime.publish(owner, prefix || '.delete', before);
                perform userrealtime.publish(owner, prefix || '.insert', after);
                return null;
            end if;
            after := (select jsonb_object_agg(name, value) from jsonb_each(after) as changed (name, value)
                      where name = any (key) or value is distinct from before -> name);
        elsif form = 'both' then
            after := jsonb_build_object('old', before, 'new', after);
        end if;
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
    'one and inserted for the new one. A row without a user is not published. Before truncate, for each statement: '
    'publishes <prefix>.truncate to each user that has rows. Further arguments are options: columns=A,B, except=A,B, '
    'update=row, update=changed or update=both.';

revoke execute on function userrealtime.capture from public;
