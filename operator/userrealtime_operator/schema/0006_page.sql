-- Reading a page costs a third less, and little where it has few events: times as Postgres writes them, gaps for the
-- reader to see, and one plan for all pages, which took longer to make than most take to read.

create or replace function userrealtime.page(
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
    set timezone = 'UTC'
    set datestyle = 'ISO'
    set plan_cache_mode = force_generic_plan
    set enable_seqscan = off
    set enable_bitmapscan = off
    set enable_sort = off
    as $$
declare
    bytes int := 0;
begin
    select l.epoch into page.epoch from userrealtime.log l where l.user_id = page.user_id;
    for page.id, page.event, page.at, page.data in
        select e.id, e.event, e.at::text, e.data::text
        from userrealtime.event e
        where e.user_id = page.user_id and e.id > page.after
        order by e.id
        limit page.max_events
    loop
        return next;
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
    'The events after a number, oldest first: at most max_events, and none once their data has max_bytes. Times are in '
    'UTC, as Postgres writes them. Each row has the epoch, of the same snapshot; it stands alone, in a row of its own, '
    'if there is no event.';
