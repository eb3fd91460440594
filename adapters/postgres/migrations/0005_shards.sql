-- Which of several databases this is (postgres.shards), written at the first start with them; empty without shards.
-- Hosts and passwords may change, so a set of shards is known by an id of its own.
create table shard_identity (
    one boolean primary key default true check (one),
    set_id uuid not null,
    position integer not null,
    count integer not null,
    created_at timestamptz not null default now()
);
