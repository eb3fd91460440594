"""What a flush holds beside rows: students, their sessions and snapshots, and dead letters, by one statement each."""

import json

import msgspec

from adapters.asyncio_bridge import Connection, to_timestamptz
from engine.event import UserKey
from engine.ids import notebook_uuid, user_uuid
from engine.ports import Flush, SessionRow, Snapshot


async def put_users(connection: Connection, snapshots: list[Snapshot]) -> None:
    """Names and teams, where they are new."""
    profiles: dict[str, tuple[str | None, str | None]] = {}
    for snapshot in snapshots:
        if snapshot.profile is not None:  # a student in two classes has two; what one lacks the other may know
            name, team = profiles.get(snapshot.key[1], (None, None))
            profiles[snapshot.key[1]] = (snapshot.profile[0] or name, snapshot.profile[1] or team)
    if profiles:
        await connection.execute(
            "insert into users (id, username, display_name, team) select * from unnest($1::uuid[], $2::text[], "
            "$3::text[], $4::text[]) on conflict (id) do update set "
            "display_name = coalesce(excluded.display_name, users.display_name), "
            "team = coalesce(excluded.team, users.team), updated_at = now()",
            [user_uuid(user_id) for user_id in profiles],
            list(profiles),
            [name for name, _ in profiles.values()],
            [team for _, team in profiles.values()],
        )


async def put_sessions(connection: Connection, snapshots: list[Snapshot]) -> None:
    """Sessions that changed; rows that they have left are forgotten."""
    moved = [identity for snapshot in snapshots for identity in snapshot.moved]
    if moved:
        await connection.fetch(
            "select forget_sessions($1::uuid[], $2::timestamptz[])",
            [identity for identity, _ in moved],
            [to_timestamptz(started_at) for _, started_at in moved],
        )
    rows: list[tuple[UserKey, SessionRow]] = [
        (snapshot.key, row) for snapshot in snapshots for row in snapshot.sessions
    ]
    if not rows:
        return
    await connection.execute(
        "insert into learning_sessions (id, user_id, notebook_id, class_id, client_session_id, started_at, ended_at, "
        "closed, total_duration_ms, cell_executions, error_count) select * from unnest($1::uuid[], $2::uuid[], "
        "$3::uuid[], $4::text[], $5::text[], $6::timestamptz[], $7::timestamptz[], $8::bool[], $9::bigint[], "
        "$10::int[], $11::int[]) "
        "on conflict (id, started_at) do update set ended_at = excluded.ended_at, "
        "closed = excluded.closed, total_duration_ms = excluded.total_duration_ms, "
        "cell_executions = excluded.cell_executions, error_count = excluded.error_count, updated_at = now()",
        [row.id for _, row in rows],
        [user_uuid(key[1]) for key, _ in rows],
        [None if row.notebook_path is None else notebook_uuid(key[0], row.notebook_path) for key, row in rows],
        [key[0] for key, _ in rows],
        [row.client_session for _, row in rows],
        [to_timestamptz(row.started_at) for _, row in rows],
        [to_timestamptz(row.ended_at) for _, row in rows],
        [row.closed for _, row in rows],
        [row.ended_at - row.started_at for _, row in rows],
        [row.executions for _, row in rows],
        [row.errors for _, row in rows],
    )


async def put_snapshots(connection: Connection, flush: Flush) -> None:
    """The absolute state of each student."""
    snapshots = flush.snapshots
    if not snapshots:
        return
    await connection.execute(
        "insert into session_snapshots (class_id, user_id, journal_id, applied_seq, last_receipt, state) "
        "select class_id, user_id, $1, applied_seq, last_receipt, state from unnest($2::text[], $3::text[], "
        "$4::bigint[], $5::timestamptz[], $6::bytea[]) as new(class_id, user_id, applied_seq, last_receipt, state) "
        "on conflict (class_id, user_id) do update set journal_id = excluded.journal_id, "
        "applied_seq = excluded.applied_seq, last_receipt = excluded.last_receipt, state = excluded.state, "
        "updated_at = now()",
        flush.journal_id,
        [snapshot.key[0] for snapshot in snapshots],
        [snapshot.key[1] for snapshot in snapshots],
        [snapshot.applied_seq for snapshot in snapshots],
        [to_timestamptz(snapshot.last_receipt) for snapshot in snapshots],
        [snapshot.state for snapshot in snapshots],
    )


async def put_dead_letters(connection: Connection, flush: Flush) -> None:
    """Events that could not be applied or stored."""
    if not flush.dead_letters:
        return
    events = [letter.event for letter in flush.dead_letters]
    await connection.execute(
        "insert into dead_letters (journal_id, seq, event_id, user_id, class_id, event_type, event, error_type, place) "
        "select $1, * from unnest($2::bigint[], $3::text[], $4::text[], $5::text[], $6::text[], $7::jsonb[], "
        "$8::text[], $9::text[]) on conflict do nothing",
        flush.journal_id,
        [letter.seq for letter in flush.dead_letters],
        [event.event_id for event in events],
        [event.user_id for event in events],
        [event.class_id for event in events],
        [event.event_type for event in events],
        [json.dumps(msgspec.structs.asdict(event), ensure_ascii=False) for event in events],
        [letter.error_type for letter in flush.dead_letters],
        [letter.place for letter in flush.dead_letters],
    )
