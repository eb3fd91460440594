-- The tables of the contract, section Stores. Time-series tables and learning_sessions are partitioned by month (UTC):
-- adapters/postgres/partitions.py makes the months, DEFAULT catches strays.
-- A unique index on a partitioned table must hold the partition key, so rows of events are known by
-- (event_timestamp, seq) and, because seq restarts with every journal, the journal's id.

create table users (
    id uuid primary key,
    username text not null unique,
    display_name text,
    team text,
    role text not null default 'student',
    created_at timestamptz not null default now(),
    updated_at timestamptz not null default now()
);

create table classes (
    id text primary key,
    created_at timestamptz not null default now()
);

create table notebooks (
    id uuid primary key,
    class_id text not null references classes,
    path text not null,
    title text,
    description text,
    cell_count integer,
    highest_cell_index integer not null default -1,
    -- total_cells as the latest event that carried it said, and that event's order
    given_cell_count integer,
    given_at_ms bigint,
    given_by text,
    created_at timestamptz not null default now(),
    unique (class_id, path)
);

create table learning_sessions (
    id uuid not null,
    user_id uuid not null references users,
    notebook_id uuid references notebooks,
    class_id text not null,
    client_session_id text,
    started_at timestamptz not null,
    ended_at timestamptz not null,       -- the last event known
    closed boolean not null,             -- by the client; one that fell idle is not
    total_duration_ms bigint not null,
    cell_executions integer not null,
    error_count integer not null,
    updated_at timestamptz not null default now(),
    primary key (id, started_at)
) partition by range (started_at);
create index on learning_sessions (user_id, started_at desc, id desc);
create table learning_sessions_default partition of learning_sessions default;

create table cell_executions (
    event_id text not null,
    user_id text not null,
    class_id text not null,
    notebook_path text not null,
    cell_index integer,
    event_type text not null,
    event_timestamp timestamptz not null,
    execution_duration_ms double precision,
    has_error boolean,
    error_message text,
    error_class text,
    execution_count integer,
    session_id text,
    cell_id text,
    cell_type text,
    clock_skewed boolean not null,
    received_at timestamptz not null,
    data jsonb,
    metadata jsonb,
    seq bigint not null,
    journal_id uuid not null,
    primary key (event_timestamp, seq, journal_id)
) partition by range (event_timestamp);
create table cell_executions_default partition of cell_executions default;

create table activity_events (
    event_id text not null,
    user_id text not null,
    class_id text not null,
    notebook_path text,
    event_type text not null,
    event_timestamp timestamptz not null,
    data jsonb,
    metadata jsonb,
    session_id text,
    clock_skewed boolean not null,
    received_at timestamptz not null,
    seq bigint not null,
    journal_id uuid not null,
    primary key (event_timestamp, seq, journal_id)
) partition by range (event_timestamp);
create table activity_events_default partition of activity_events default;

create table session_snapshots (
    class_id text not null,
    user_id text not null,
    journal_id uuid not null,            -- of the daemon that wrote it; `state` knows its seq in older ones too
    applied_seq bigint not null,
    last_receipt timestamptz not null,
    state bytea not null,                -- msgpack of engine.session.UserState
    updated_at timestamptz not null default now(),
    primary key (class_id, user_id)
);
create index on session_snapshots (last_receipt);

create table sink_offsets (
    journal_id uuid not null,
    store text not null,
    seq bigint not null,
    updated_at timestamptz not null default now(),
    primary key (journal_id, store)
);

create table dead_letters (
    journal_id uuid not null,
    seq bigint not null,
    event_id text not null,
    user_id text not null,
    class_id text not null,
    event_type text not null,
    event jsonb not null,
    error_type text not null,
    place text not null,
    created_at timestamptz not null default now(),
    primary key (journal_id, seq)
);
