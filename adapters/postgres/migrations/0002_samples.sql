-- Samples of students' states (engine/samples.py): the time series beside cell_executions, where no InfluxDB is
-- configured. They are appended and may repeat, so they have no key; partitioned by month like the others.

create table learning_progress (
    sampled_at timestamptz not null,
    class_id text not null,
    user_id text not null,
    notebook_path text not null,
    completed_cells integer not null,
    total_cells bigint not null,
    progress_percentage double precision not null,
    session_duration_ms bigint not null
) partition by range (sampled_at);
create index on learning_progress (class_id, user_id, sampled_at);
create table learning_progress_default partition of learning_progress default;

create table performance_metrics (
    sampled_at timestamptz not null,
    class_id text not null,
    user_id text not null,
    notebook_path text not null,
    cell_type text not null,
    avg_execution_time double precision, -- ms
    max_execution_time double precision, -- ms
    error_rate double precision not null -- 0 to 1
) partition by range (sampled_at);
create index on performance_metrics (class_id, user_id, sampled_at);
create table performance_metrics_default partition of performance_metrics default;
