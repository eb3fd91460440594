-- What the runs of a cell come to, by student and month: a summary of a notebook adds these up in place of its rows
-- (adapters/postgres/sums.py). They hold the rows of a journal up to its seq in cell_sums_offsets, and no others;
-- a month of them goes with the month of its rows.
create table cell_sums (
    class_id text not null,
    notebook_path text not null,
    user_id text not null,
    cell_index integer not null,         -- -1: what has none
    month timestamptz not null,
    executions bigint not null,
    errors bigint not null,
    succeeded_at timestamptz,            -- the last run that did
    failed_at timestamptz
);
-- By the hash of the student, because an index holds no more than 2.7 kB and the longest names together have more.
create unique index on cell_sums (class_id, notebook_path, md5(user_id), cell_index, month);

create table cell_sums_offsets (
    journal_id uuid primary key,
    seq bigint not null
);

-- How rows are found by the journal's order, in which they came. It is some kilobytes, and costs a row 0.2 us.
create index on cell_executions using brin (journal_id, seq) with (pages_per_range = 32);

-- Rows that are changed or erased by hand were in sums, which begin anew then. (Dropping a month does not come here.)
-- Nobody who reads waits for it, as they would for TRUNCATE; a step of sums does, by the offsets, which come first.
create function forget_sums() returns trigger
    language plpgsql security definer set search_path = public, pg_temp as $$
begin
    delete from cell_sums_offsets;
    delete from cell_sums;
    return null;
end
$$;
revoke execute on function forget_sums() from public;
create trigger forget_sums after update or delete or truncate on cell_executions
    for each statement execute function forget_sums();

-- Two lines more in the list of `guard_tables` (0003_roles.sql).
do $$
begin
    execute replace(
        pg_get_functiondef('guard_tables()'::regprocedure),
        $line$('schema_migrations', false, null)$line$,
        $line$('schema_migrations', false, null), ('cell_sums', false, null), ('cell_sums_offsets', false, null)$line$
    );
end
$$;
