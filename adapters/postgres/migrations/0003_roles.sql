-- Who may see what: the contract's roles, their grants, and policies on every table.
-- `guard_tables` is called after every migration run (adapters/postgres/migrations.py): a role that could not be made
-- at first gets its rights later, and so does a table of a later migration, which replaces the procedure with one that
-- lists it. Where all is in place it only looks.

create procedure guard_tables() language plpgsql as $guard$
declare
    role_name text;
    rule record;
    part regclass;
    me constant text := $$(select nullif(current_setting('app.current_user_id', true), ''))$$;
begin
    -- Roles belong to the cluster, so another database may have made them already, or be making them now.
    foreach role_name in array array['app_reader', 'app_writer', 'app_user'] loop
        if not exists (select from pg_roles where rolname = role_name) then
            begin
                execute format('create role %I nologin', role_name);
            exception
                when duplicate_object or unique_violation then null;
                when insufficient_privilege then null;  -- the caller tells which are missing
            end;
        end if;
    end loop;
    -- PostgreSQL refuses COPY into a table whose policies hold for the role. This one's policy is "every row" anyway.
    if exists (select from pg_roles where rolname = 'app_writer' and not rolbypassrls) then
        begin
            alter role app_writer bypassrls;
        exception
            when insufficient_privilege then null;
            when internal_error then null;  -- "tuple concurrently updated": another database does the same
        end;
    end if;

    for rule in
        select target, writable, own_rows
        from (values
            ('users', true, 'username = ' || me),
            ('classes', true, 'id in (select class_id from learning_sessions)'),
            ('notebooks', true, 'id in (select notebook_id from learning_sessions)'),
            ('learning_sessions', true, 'user_id = (select users.id from users where username = ' || me || ')'),
            ('cell_executions', true, 'user_id = ' || me),
            ('activity_events', true, 'user_id = ' || me),
            ('learning_progress', true, 'user_id = ' || me),
            ('performance_metrics', true, 'user_id = ' || me),
            -- The daemon's own, not for students: null.
            ('session_snapshots', true, null),
            ('sink_offsets', true, null),
            ('dead_letters', true, null),
            ('shard_identity', true, null),
            ('schema_migrations', false, null)
        ) as rules (target, writable, own_rows)
        where to_regclass(target) is not null
    loop
        -- A partition that is named directly is not asked for its parent's policies. It has no grant, and, should
        -- somebody grant all tables to a role, row-level security without a policy: no row.
        for part in select relid from pg_partition_tree(rule.target::regclass) union select rule.target::regclass loop
            if not (select relrowsecurity from pg_class where oid = part) then
                execute format('alter table %s enable row level security', part);
            end if;
        end loop;
        if exists (select from pg_roles where rolname = 'app_reader') then
            if not has_table_privilege('app_reader', rule.target, 'select') then
                execute format('grant select on %I to app_reader', rule.target);
            end if;
            if not has_policy(rule.target, 'app_reader') then
                execute format('create policy app_reader on %I for select to app_reader using (true)', rule.target);
            end if;
        end if;
        if exists (select from pg_roles where rolname = 'app_writer') then
            if not has_table_privilege('app_writer', rule.target, 'select') then
                execute format('grant select on %I to app_writer', rule.target);
            end if;
            if rule.writable and not (has_table_privilege('app_writer', rule.target, 'insert')
                                      and has_table_privilege('app_writer', rule.target, 'update')) then
                execute format('grant insert, update on %I to app_writer', rule.target);
            end if;
            if not has_policy(rule.target, 'app_writer') then
                execute format('create policy app_writer on %I to app_writer using (true)', rule.target);
            end if;
        end if;
        if rule.own_rows is not null and exists (select from pg_roles where rolname = 'app_user') then
            if not has_table_privilege('app_user', rule.target, 'select') then
                execute format('grant select on %I to app_user', rule.target);
            end if;
            if not has_policy(rule.target, 'app_user') then
                execute format('create policy app_user on %I for select to app_user using (%s)',
                               rule.target, rule.own_rows);
            end if;
        end if;
    end loop;
    if exists (select from pg_roles where rolname = 'app_writer')
       and not has_function_privilege('app_writer', 'forget_offset(uuid, text)', 'execute') then
        grant execute on function forget_sessions(uuid[], timestamptz[]), forget_offset(uuid, text) to app_writer;
    end if;
end
$guard$;

-- Policies are named after the role that they are for.
create function has_policy(target text, role_name text) returns boolean stable language sql as
$$ select exists (select from pg_policy where polrelid = target::regclass and polname = role_name) $$;

-- What the writer deletes: rows of sessions that begin earlier than was thought, or were merged. As the
-- owner's functions, because `app_writer` has no DELETE on any table.
create function forget_sessions(ids uuid[], starts timestamptz[]) returns void
    language sql security definer set search_path = public, pg_temp as $$
    delete from learning_sessions
    using unnest(ids, starts) as gone (id, started_at)
    where learning_sessions.id = gone.id and learning_sessions.started_at = gone.started_at
$$;
revoke execute on function forget_sessions(uuid[], timestamptz[]) from public;

-- And the offset of a store that is no longer configured, once it has everything.
create function forget_offset(journal uuid, name text) returns void
    language sql security definer set search_path = public, pg_temp as $$
    delete from sink_offsets where journal_id = journal and store = name
$$;
revoke execute on function forget_offset(uuid, text) from public;
revoke execute on procedure guard_tables() from public;

call guard_tables();
