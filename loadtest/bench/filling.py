"""Rows as a term of lessons leaves them, made by PostgreSQL itself: a daemon would take minutes for millions."""

from typing import Final

STUDENTS: Final = 1000
CELLS: Final = 40
NOTEBOOKS: Final = 10
JOURNAL: Final = "00000000-0000-0000-0000-000000000001"
DAYS: Final = 29  # before now: the months of these exist as soon as a daemon has started


def cell_rows(rows: int, *, classes: int = 1, notebooks: int = NOTEBOOKS) -> str:
    """SQL that fills `cell_executions`: classes ``class0``, … with ``notebooks`` each, evenly over the last `DAYS`.

    Every fifth row is an error, every twentieth an `execution_error`. Which student ran what is scattered by a hash.
    """
    return f"""
        INSERT INTO cell_executions (event_id, user_id, class_id, notebook_path, cell_index, event_type,
            event_timestamp, execution_duration_ms, has_error, error_message, error_class, execution_count, session_id,
            cell_id, cell_type, clock_skewed, received_at, seq, journal_id)
        SELECT 'event' || n, 'student' || (hashint8(n) & 65535) % {STUDENTS} || '@example.com',
            'class' || n % {classes},
            'lesson' || (hashint8(n * 7) & 65535) % {notebooks} || '.ipynb', (hashint8(n * 3) & 65535) % {CELLS},
            CASE WHEN n % 20 = 0 THEN 'execution_error' ELSE 'cell_executed' END, moment,
            CASE WHEN n % 20 <> 0 THEN (hashint8(n * 11) & 1048575) / 100.0 END, n % 5 = 0,
            CASE WHEN n % 5 = 0 THEN 'NameError: name x is not defined' END, CASE WHEN n % 5 = 0 THEN 'NameError' END,
            n % 50, 'session' || n % 1000, 'cell' || n % {CELLS}, 'code', false, moment, n,
            '{JOURNAL}'
        FROM generate_series(1, {rows}) AS n,
            LATERAL (SELECT date_trunc('milliseconds', now() - interval '{DAYS} days' * (1 - n::float8 / {rows})))
                AS at (moment)
    """  # noqa: S608 - numbers of our own


def stored(rows: int) -> str:
    """SQL that says so many of these are stored, as a daemon's flush would: from then on they can be summed."""
    return f"INSERT INTO sink_offsets (journal_id, store, seq) VALUES ('{JOURNAL}', 'postgresql', {rows})"  # noqa: S608


def session_rows(rows: int, *, classes: int = 1) -> str:
    """SQL that fills `users`, `classes`, `notebooks` and `learning_sessions`: one session in a thousand each day."""
    return f"""
        INSERT INTO users (id, username) SELECT gen_random_uuid(), 'student' || n || '@example.com'
            FROM generate_series(0, {STUDENTS - 1}) AS n;
        INSERT INTO classes (id) SELECT 'class' || n FROM generate_series(0, {classes - 1}) AS n;
        INSERT INTO notebooks (id, class_id, path, cell_count)
            SELECT gen_random_uuid(), classes.id, 'lesson' || n || '.ipynb', {CELLS}
            FROM classes, generate_series(0, {NOTEBOOKS - 1}) AS n;
        INSERT INTO learning_sessions (id, user_id, notebook_id, class_id, started_at, ended_at, closed,
            total_duration_ms, cell_executions, error_count)
        SELECT gen_random_uuid(), student.id, book.id, book.class_id, moment, moment + interval '30 minutes', true,
            1800000, 20, 4
        FROM generate_series(1, {rows}) AS n
            JOIN (SELECT id, row_number() OVER () - 1 AS place FROM users) AS student
                ON student.place = (hashint8(n) & 65535) % {STUDENTS}
            JOIN (SELECT id, class_id, row_number() OVER () - 1 AS place FROM notebooks) AS book
                ON book.place = n % {classes * NOTEBOOKS},
            LATERAL (SELECT date_trunc('milliseconds', now() - interval '{DAYS} days' * (1 - n::float8 / {rows})))
                AS at (moment)
    """  # noqa: S608 - numbers of our own
