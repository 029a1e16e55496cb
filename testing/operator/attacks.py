"""What the role of a user's relay must not do: each statement is refused for want of a right.

They expect a table `public.orders` and a sequence `public.numbers` of an application, that alice has the role which
tries, and another user's role in the setting `test.bob`.
"""

from __future__ import annotations

REFUSED = (
    *(f"select * from userrealtime.{table}" for table in ("inbox", "presence", "online", "staged", "pending")),
    *(
        f"select * from userrealtime.{table}"
        for table in ("registration", "role", "revoked_role", "migration", "repeatable")
    ),
    *(
        f"begin; lock userrealtime.{table} in access share mode"
        for table in ("role", "revoked_role", "migration", "registration", "inbox", "presence")
    ),
    *(f"select * from userrealtime.{table}" for table in ("signal_queue", "announcer_lease", "doorbell")),
    "insert into userrealtime.signal_queue (user_id, head) values ('bob', 0)",
    "begin; lock userrealtime.signal_queue in row exclusive mode",
    "select setval('userrealtime.announcer_lease', 1)",
    "select setval('userrealtime.doorbell', 1)",
    "select userrealtime.renew_lease(0, 1000)",
    "select userrealtime.end_lease(0)",
    "select userrealtime.arm_doorbell()",
    "select userrealtime.announce(null, true)",
    "select userrealtime.standings('{}')",
    "select userrealtime.heads()",
    "select userrealtime.signal('bob', 0, 'x')",
    "select userrealtime.attend('bob', 'pod', true)",
    *(f"select * from {table}" for table in ("public.orders", "pg_authid", "pg_shadow", "pg_hba_file_rules")),
    "select userrealtime.submit('bob', 'ref', 'x')",
    "select userrealtime.present('bob', 'pod', 0)",
    "select userrealtime.publish('alice', 'x')",
    "select userrealtime.publish('bob', 'x')",
    "select userrealtime.prune('alice', max_events => 0)",
    "select userrealtime.prune_inbox('0')",
    "select userrealtime.prepare_roles()",
    "select userrealtime.grant_relay_functions()",
    "select userrealtime.trim_presence('bob')",
    "insert into userrealtime.event values ('alice', 2, 'x', now(), '{}')",
    "insert into userrealtime.inbox (user_id, ref, event, data) values ('alice', 'r', 'x', '{}')",
    "update userrealtime.event set event = 'y'",
    "update userrealtime.log set head = 0",
    "delete from userrealtime.event",
    "truncate userrealtime.event",
    "select * from userrealtime.event for update",
    "begin; lock userrealtime.event in access exclusive mode",
    "insert into public.orders values (2)",
    "select nextval('public.numbers')",
    "set role postgres",
    "do $$ begin execute format('set role %I', current_setting('test.bob')); end $$",
    "set session authorization postgres",
    "do $$ begin execute format('set session authorization %I', current_setting('test.bob')); end $$",
    "alter role postgres password 'x'",
    "do $$ begin execute format('alter role %I password ''x''', current_setting('test.bob')); end $$",
    "do $$ begin execute format('alter role %I connection limit 100', session_user); end $$",
    "do $$ begin execute format('alter role %I superuser', session_user); end $$",
    "do $$ begin execute format('alter role %I createrole', session_user); end $$",
    "do $$ begin execute format('alter role %I bypassrls', session_user); end $$",
    "do $$ begin execute format('drop role %I', current_setting('test.bob')); end $$",
    "do $$ begin execute format('grant %I to %I', current_setting('test.bob'), session_user); end $$",
    "create role mallory",
    "create database mallory",
    "create schema mallory",
    "create table public.mallory (id int)",
    "create table userrealtime.mallory (id int)",
    "create function public.mallory() returns int language sql return 1",
    "create or replace function userrealtime.served_user() returns text language sql return 'bob'::text",
    "alter function userrealtime.served_user() security invoker",
    "drop function userrealtime.served_user()",
    "drop policy served on userrealtime.event",
    "alter table userrealtime.event disable row level security",
    "drop table userrealtime.event",
    "create trigger t after insert on userrealtime.event execute function userrealtime.capture()",
    "grant select on userrealtime.inbox to public",
    "alter system set work_mem = '1GB'",
    "copy (select 1) to program 'true'",
    "select pg_read_file('/etc/passwd')",
    "select pg_ls_dir('.')",
    "select lo_import('/etc/passwd')",
    "select pg_terminate_backend(pid) from pg_stat_activity where usename = 'postgres'",
)
