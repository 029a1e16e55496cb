-- Positions: how an application joins its state and the log without a gap.
--
-- A position is the number of the newest event and the epoch of the log, as one text. It is read from the snapshot of the
-- calling query, so it names exactly the events whose transactions this snapshot sees.
--
-- The epoch of a log is known before the log exists: it is a hash of the user id and of epoch_seed. A position therefore
-- needs no log to be created: it takes no lock that a publisher waits for, and can be read in a read-only transaction and on
-- a replica. The seed changes whenever a log is removed, so that no later log of a user has the epoch of an earlier one.

do $$
begin
    if to_regclass('userrealtime.epoch_seed') is null then
        create sequence userrealtime.epoch_seed;
        comment on sequence userrealtime.epoch_seed is
            'A random number, from which the epochs of logs that do not exist yet are computed. A sequence and not a '
            'table: a new value is visible at once, whatever the snapshot.';
        perform setval('userrealtime.epoch_seed', ('x' || right(gen_random_uuid()::text, 12))::bit(48)::bigint + 1);
    end if;
end
$$;

create or replace function userrealtime.change_epoch_seed() returns void
    language sql volatile
    set search_path = pg_catalog, pg_temp
    as $$
    select setval('userrealtime.epoch_seed', ('x' || right(gen_random_uuid()::text, 12))::bit(48)::bigint + 1)
$$;
comment on function userrealtime.change_epoch_seed is 'Gives all logs that do not exist yet another epoch.';

-- Without a SET clause, so that the planner inlines it. It names its functions in full for the callers' search paths.
create or replace function userrealtime.epoch_of(user_id text, seed bigint) returns text
    language sql immutable parallel safe
    return left(encode(sha256(convert_to(seed || ' ' || user_id, 'UTF8')), 'hex'), 32);
comment on function userrealtime.epoch_of is 'The epoch that the log of a user is created with, given the value of epoch_seed.';

create or replace function userrealtime.first_epoch(user_id text) returns text
    language sql stable security definer
    set search_path = pg_catalog, pg_temp
    return (select userrealtime.epoch_of(first_epoch.user_id, last_value) from userrealtime.epoch_seed);
comment on function userrealtime.first_epoch is 'The epoch that the log of a user is created with, if that happens now.';

create or replace function userrealtime.position(user_id text) returns text
    language sql stable security definer
    set search_path = pg_catalog, pg_temp
    set enable_seqscan = off
    as $$
    select userrealtime.check_name('userrealtime.position', 'user_id', position.user_id);
    select coalesce(
        (select l.head || ':' || l.epoch from userrealtime.log l where l.user_id = position.user_id),
        '0:' || userrealtime.first_epoch(position.user_id)
    )
$$;
comment on function userrealtime.position is
    'Where the log of a user stands in the snapshot of the calling query: a text from which clients resume. Read it in the '
    'same statement as the state, or in the same REPEATABLE READ transaction. In READ COMMITTED, read it before the state.';

create or replace function userrealtime.renew_epochs() returns bigint
    language sql volatile
    set search_path = pg_catalog, pg_temp
    as $$
    select userrealtime.change_epoch_seed();
    with renewed as (update userrealtime.log set epoch = gen_random_uuid()::text returning 1)
    select count(*) from renewed
$$;
comment on function userrealtime.renew_epochs is
    'Gives all logs another epoch, after the database has lost commits. Returns how many logs exist. Clients are reset.';

create or replace function userrealtime.log_removed() returns trigger
    language plpgsql security definer
    set search_path = pg_catalog, pg_temp
    as $$
begin
    perform userrealtime.change_epoch_seed();
    return null;
end
$$;
comment on function userrealtime.log_removed is 'Has a log that returns get another epoch than the one it had.';

do $$
begin
    if not exists (select from pg_trigger where tgrelid = 'userrealtime.log'::regclass and tgname = 'log_removed') then
        create trigger log_removed after delete on userrealtime.log
            for each statement execute function userrealtime.log_removed();
        create trigger log_truncated after truncate on userrealtime.log
            for each statement execute function userrealtime.log_removed();
        alter table userrealtime.log enable always trigger log_removed;
        alter table userrealtime.log enable always trigger log_truncated;
    end if;
end
$$;

revoke execute on function
    userrealtime.change_epoch_seed, userrealtime.epoch_of, userrealtime.first_epoch, userrealtime.position,
    userrealtime.renew_epochs, userrealtime.log_removed
    from public;
