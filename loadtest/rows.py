"""After a run, by SQL: whether everything that was acknowledged has its row, once, and as it was sent."""

from collections import Counter, defaultdict
from collections.abc import Callable, Collection
from contextlib import suppress
from typing import Any, Final, TypeAlias

import asyncpg
import trio
import trio_asyncio

from loadtest import columns
from loadtest.check import Check
from loadtest.counters import compare
from loadtest.errors import LoadTestError, TransportError, UsageError
from loadtest.ledger import ACKNOWLEDGED, REFUSED, Entry
from loadtest.users import Person

STORED: Final = "stored, by SQL"
STORED_BUT_CELLS: Final = "stored, but for cell events, by SQL"
_SQL_S: Final = 60.0
_CLOSE_S: Final = 1.0
_ROWS_AT_ONCE: Final = 10_000


async def can_ask(dsn: str) -> None:
    """Find out before a run what would be found out after it.

    LoadTestError when rows cannot be asked for, UsageError when this is no DSN.
    """
    none: list[_Row] = []
    try:
        await _rows(dsn, [(statement, []) for statement in (*_EVENTS, _SESSIONS)], none.append)
    except TransportError as error:
        kind = UsageError if isinstance(error.__cause__, ValueError) else LoadTestError
        raise kind(f"--dsn or LOADTEST_DSN: cannot ask for rows: {error}") from error


async def by_sql(
    dsn: str,
    entries: Collection[Entry],
    person: Callable[[int], Person],
    classes: Collection[str],
    *,
    fresh: bool,
    settled: bool = True,
    cells: bool = True,
) -> list[Check]:
    """Rows: one for each acknowledged event, at most one for a doubtful one, none for a refused one; all as sent.

    `fresh`: the classes are this run's own, so nothing else is in them. Not `settled`: nobody waited until all was
    stored, so what is not there may be on its way, and nothing is lost. Not `cells`: cell events need no row.
    """
    sent = {entry.event_id: entry for entry in entries}
    counts: Counter[str] = Counter()
    as_sent = Check("stored as sent, by SQL", 0, 0)
    differing: set[str] = set()

    def look(row: _Row) -> None:
        event_id = row[0]
        counts[event_id] += 1
        entry = sent.get(event_id)
        if entry is None:
            return
        as_sent.expected += 1
        if differs := _differences(row, entry, person(entry.user)):
            as_sent.blame([event_id])
            differing.update(differs)
        else:
            as_sent.found += 1

    of_student: dict[str, list[Entry]] = defaultdict(list)
    for entry in entries:
        of_student[person(entry.user).user_id].append(entry)
    counted: dict[str, tuple[int, int]] = {}

    def count(row: _Row) -> None:
        user_id, executions, errors = row
        counted[user_id] = executions, errors

    try:
        await _rows(dsn, [(statement, sorted(classes)) for statement in _EVENTS], look)
        await _rows(dsn, [(_SESSIONS, list(of_student))], count)
    except TransportError as error:
        return [Check(STORED, 0, 0, note=f"cannot ask: {error}", faults=1)]
    as_sent.note = f"differ in {', '.join(sorted(differing))}" if differing else ""
    acknowledged = [entry.event_id for entry in entries if entry.state == ACKNOWLEDGED and (cells or not entry.of_cell)]
    stored = Check(STORED if cells else STORED_BUT_CELLS, len(acknowledged), 0)
    stored.found = sum(1 for event_id in acknowledged if counts[event_id])
    notes = [] if cells else ["cell events are in InfluxDB, which is not asked"]
    if settled:
        stored.blame(event_id for event_id in acknowledged if not counts[event_id])
    elif stored.found < stored.expected:
        stored.skipped = True
        notes.insert(0, f"{stored.expected - stored.found} not yet there, and not waited for")
    stored.note = "; ".join(notes)
    once = Check("stored once, and nothing else, by SQL", 0, 0)
    once.blame(event_id for event_id, rows in counts.items() if rows > 1 and event_id in sent)
    once.blame(entry.event_id for entry in entries if entry.state == REFUSED and counts[entry.event_id])
    if fresh:
        once.blame(event_id for event_id in counts if event_id not in sent)
    sessions = Check("counted in sessions, by SQL", 0, 0)
    if settled:
        for user_id, own in of_student.items():
            compare(own, *counted.get(user_id, (0, 0)), sessions, known=True)
    else:
        sessions.skipped, sessions.note = True, "not waited for"
    return [stored, once, as_sent, sessions]


# A stored event: its id, user, class and time (ms), and what `columns.of_row` takes.
_Row: TypeAlias = tuple[Any, ...]
_EVENT: Final = "event_id, user_id, class_id, (extract(epoch FROM event_timestamp) * 1000)::bigint"
# Of the contract's two tables of events.
_TABLES: Final = {
    "cell_executions": "event_type, notebook_path, cell_index, execution_duration_ms, has_error, error_message, "
    "execution_count",
    "activity_events": "event_type, notebook_path, null, null, null, null, null",
}
_EVENTS: Final = [
    f"SELECT {_EVENT}, {fields} FROM {table} WHERE class_id = ANY($1)"  # noqa: S608 - our own words
    for table, fields in _TABLES.items()
]
# A student's runs and errors in all sessions; the names of students are of one run.
_SESSIONS: Final = (
    "SELECT username, sum(cell_executions)::bigint, sum(error_count)::bigint "
    "FROM learning_sessions JOIN users ON users.id = learning_sessions.user_id WHERE username = ANY($1) "
    "GROUP BY username"
)
# A statement, and what its only parameter is any of.
_Question: TypeAlias = tuple[str, list[str]]


def _differences(row: _Row, entry: Entry, person: Person) -> list[str]:
    """What of a row is not as the event was sent."""
    _, user_id, class_id, at_ms, *fields = row
    told = (user_id, class_id, at_ms, columns.of_row(fields))
    sent = (person.user_id, person.class_id, entry.at_ms, entry.columns)
    if told == sent:
        return []
    who_and_when = zip(("user", "class", "time"), told, sent, strict=False)
    return [name for name, here, there in who_and_when if here != there] + columns.differences(told[3], sent[3])


async def _rows(dsn: str, questions: list[_Question], look: Callable[[_Row], None]) -> None:
    """Show each row of the answers; TransportError when nobody tells."""
    # asyncpg is asyncio's; the loop lives as long as this question. What fails is told outside of it, not in a group.
    cause: Exception | None = None
    async with trio_asyncio.open_loop():
        try:
            with trio.fail_after(_SQL_S) as patience:

                def told(rows: list[asyncpg.Record]) -> None:
                    for row in rows:
                        look(tuple(row))
                    patience.deadline = trio.current_time() + _SQL_S  # for each answer, not for millions of rows

                await trio_asyncio.aio_as_trio(_ask)(dsn, questions, told)
                return
        except trio.TooSlowError:
            fault = f"no answer within {_SQL_S:.0f} s"
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, ValueError, OverflowError) as error:
            fault, cause = f"{type(error).__name__}: {error}", error
    raise TransportError(fault) from cause


async def _ask(dsn: str, questions: list[_Question], told: Callable[[list[asyncpg.Record]], None]) -> None:
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute("BEGIN READ ONLY")  # ends with the connection: a rollback would wait for the server
        for statement, names in questions:
            cursor = await connection.cursor(statement, names)
            while rows := await cursor.fetch(_ROWS_AT_ONCE):  # of millions
                told(rows)
    finally:
        with suppress(TimeoutError):  # of a server that does not answer any more: the limit around it is used up
            await connection.close(timeout=_CLOSE_S)
