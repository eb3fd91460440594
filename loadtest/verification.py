"""After a run: whether everything that was acknowledged is there, once, and everywhere it should be.

Each place is asked: rows by SQL (with a DSN), sessions and the live state through the API, and what subscribers saw.
Events of which nobody knows whether they were taken (an answer that never came) may be there or not, but once at
most; refused ones must not be there, nor any that this run did not send where the classes are its own.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from typing import Any, Final, TypeAlias
from urllib.parse import quote

import asyncpg
import msgspec
import trio
import trio_asyncio

from loadtest.errors import LoadTestError, TransportError, UsageError
from loadtest.ledger import ACKNOWLEDGED, REFUSED, Entry
from loadtest.target import Target
from loadtest.transports import LeanTransport, Line
from loadtest.users import Person

# Queries under way at once: enough to be quick, few enough not to be a load test of their own.
_ASKERS: Final = 16
_PAGE: Final = 100
_SQL_S: Final = 60.0
_CLOSE_S: Final = 1.0
_ROWS_AT_ONCE: Final = 10_000
# For all questions to the API together: a daemon that does not answer any more is not asked for hours.
_API_S: Final = 300.0
STORED: Final = "stored, by SQL"
# Event ids that are told in full, for each check; of candidates, that are kept.
TOLD: Final = 20
_MOST_CANDIDATES: Final = 1000
DRAIN_POLL_S: Final = 0.1


class Check(msgspec.Struct):
    """One place. `event_ids` are those missing or too many; of `suspects` some are, nobody can say which.

    `candidates` are the first of the suspects, `astray` the students or sessions whose counters differ.
    """

    name: str
    expected: int
    found: int
    event_ids: list[str] = []
    candidates: list[str] = []
    suspects: int = 0
    astray: int = 0
    note: str = ""
    skipped: bool = False
    faults: int = 0

    @property
    def held(self) -> bool:
        """All was there; what could not be asked does not count as there."""
        return not self.faults

    def blame(self, event_ids: Iterable[str]) -> None:
        """Add events, each a fault."""
        for event_id in event_ids:
            self.faults += 1
            if len(self.event_ids) < TOLD:
                self.event_ids.append(event_id)

    @property
    def more_suspects(self) -> int:
        """How many a text that tells `TOLD` of them leaves out."""
        return max(0, self.suspects - TOLD)


def lost(checks: Iterable[Check]) -> int:
    """Differences, over all places."""
    return sum(check.faults for check in checks)


async def drained(target: Target, within_s: float) -> float | None:
    """Seconds until the daemon says that all is stored; None when it does not come to that, or does not say."""
    began = trio.current_time()
    async with LeanTransport(target) as transport:
        line = transport.line()
        try:
            while trio.current_time() - began < within_s:
                lag = await _lag(line)
                if lag == 0:
                    return trio.current_time() - began
                await trio.sleep(DRAIN_POLL_S)
        finally:
            await line.aclose()
    return None


async def _lag(line: Line) -> int | None:
    try:
        answer = await line.get("/api/v1/health")
        checks = msgspec.json.decode(answer.body)["checks"]
    except (TransportError, msgspec.DecodeError, KeyError, TypeError):
        return None
    lag: int | None = checks.get("postgresql", {}).get("lag_events")
    return lag


async def can_ask(dsn: str) -> None:
    """Find out before a run what would be found out after it.

    LoadTestError when rows cannot be asked for, UsageError when this is no DSN.
    """
    none: list[_Row] = []
    try:
        await _rows(dsn, [], none.append)
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
) -> list[Check]:
    """Rows: one for each acknowledged event, at most one for a doubtful one, none for a refused one; all as sent.

    `fresh`: the classes are this run's own, so nothing else is in them. Not `settled`: nobody waited until all was
    stored, so what is not there may be on its way, and nothing is lost.
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

    try:
        await _rows(dsn, sorted(classes), look)
    except TransportError as error:
        return [Check(STORED, 0, 0, note=f"cannot ask: {error}", faults=1)]
    as_sent.note = f"differ in {', '.join(sorted(differing))}" if differing else ""
    acknowledged = [entry.event_id for entry in entries if entry.state == ACKNOWLEDGED]
    stored = Check(STORED, len(acknowledged), sum(1 for event_id in acknowledged if counts[event_id]))
    if settled:
        stored.blame(event_id for event_id in acknowledged if not counts[event_id])
    elif stored.found < stored.expected:
        stored.skipped, stored.note = True, f"{stored.expected - stored.found} not yet there, and not waited for"
    once = Check("stored once, and nothing else, by SQL", 0, 0)
    once.blame(event_id for event_id, rows in counts.items() if rows > 1 and event_id in sent)
    once.blame(entry.event_id for entry in entries if entry.state == REFUSED and counts[entry.event_id])
    if fresh:
        once.blame(event_id for event_id in counts if event_id not in sent)
    once.found = once.faults
    return [stored, once, as_sent]


# A stored event: its id, user, class, time (ms), whether it is a run of a cell, and whether it counts as failed.
_Row: TypeAlias = tuple[str, str, str, int, bool, bool]
# Of the contract's two tables of events. `execution_error` tells of a run, and is none.
_EVENT: Final = "event_id, user_id, class_id, (extract(epoch FROM event_timestamp) * 1000)::bigint"
_RUN: Final = "event_type = 'cell_executed', event_type = 'execution_error' OR coalesce(has_error, false)"
_TABLES: Final = (("cell_executions", _RUN), ("activity_events", "false, false"))


def _differences(row: _Row, entry: Entry, person: Person) -> list[str]:
    """What of a row is not as the event was sent."""
    _, user_id, class_id, at_ms, execution, failed = row
    told = (user_id, class_id, at_ms, execution, failed)
    sent = (person.user_id, person.class_id, entry.at_ms, entry.execution, entry.failed)
    if told == sent:
        return []
    names = ("user", "class", "time", "type", "error")
    return [name for name, here, there in zip(names, told, sent, strict=True) if here != there]


async def _rows(dsn: str, classes: list[str], look: Callable[[_Row], None]) -> None:
    """Show each row of an event in these classes; TransportError when nobody tells."""
    # asyncpg is asyncio's; the loop lives as long as this question. What fails is told outside of it, not in a group.
    cause: Exception | None = None
    async with trio_asyncio.open_loop():
        try:
            with trio.fail_after(_SQL_S):
                await trio_asyncio.aio_as_trio(_ask)(dsn, classes, look)
                return
        except trio.TooSlowError:
            fault = f"no answer within {_SQL_S:.0f} s"
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, ValueError, OverflowError) as error:
            fault, cause = f"{type(error).__name__}: {error}", error
    raise TransportError(fault) from cause


async def _ask(dsn: str, classes: list[str], look: Callable[[_Row], None]) -> None:
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute("BEGIN READ ONLY")  # ends with the connection: a rollback would wait for the server
        for table, run in _TABLES:
            statement = f"SELECT {_EVENT}, {run} FROM {table} WHERE class_id = ANY($1)"  # noqa: S608 - our own words
            cursor = await connection.cursor(statement, classes)
            while rows := await cursor.fetch(_ROWS_AT_ONCE):  # of millions
                for row in rows:
                    look(tuple(row))
    finally:
        with suppress(TimeoutError):  # of a server that does not answer any more: the limit around it is used up
            await connection.close(timeout=_CLOSE_S)


async def by_api(
    target: Target, entries: Collection[Entry], person: Callable[[int], Person], *, fresh: bool
) -> list[Check]:
    """Sessions and live state. Each student's counters must be what was acknowledged, up to what is doubtful.

    `fresh`: the classes are this run's own, so nothing from before is counted.
    """
    of_user: dict[int, list[Entry]] = defaultdict(list)
    for entry in entries:
        of_user[entry.user].append(entry)
    sessions = Check("counted in sessions, by the API", 0, 0)
    live = Check("counted in the live state, by the API", 0, 0)
    overviews: dict[str, Any] = {}
    pending = iter(list(of_user.items()))

    async def ask(transport: LeanTransport) -> None:
        line = transport.line()
        try:
            for index, events in pending:
                await _compare_sessions(line, person(index), events, sessions)
                state = overviews[person(index).class_id]
                if state is not None:
                    _compare_live(state.get(person(index).user_id), events, live)
        finally:
            await line.aclose()

    if not fresh:
        live.skipped = True
        live.note = "the class is not this run's own: what was there before cannot be told apart"
    async with LeanTransport(target) as transport:
        with trio.move_on_after(_API_S) as patience:
            line = transport.line()
            for class_id in {person(index).class_id for index in of_user}:
                overviews[class_id] = await _overview(line, class_id, live) if fresh else None
            await line.aclose()
            async with trio.open_nursery() as nursery:
                for _ in range(_ASKERS):
                    nursery.start_soon(ask, transport)
        if patience.cancelled_caught:
            for check in (sessions, live) if fresh else (sessions,):
                check.faults += 1
                check.note = f"not all were told within {_API_S:.0f} s"
    for check, whose in ((sessions, "sessions"), (live, "students")):
        if check.astray and not check.note:
            check.note = f"{whose} with other executions or errors: {check.astray}"
    return [sessions, live]


async def _json(line: Line, path: str) -> Any:
    """The answer; TransportError for any but 200."""
    answer = await line.get(path)
    if answer.status != 200:
        raise TransportError(f"HTTP {answer.status}")
    try:
        return msgspec.json.decode(answer.body)
    except msgspec.DecodeError as error:
        raise TransportError("not JSON") from error


async def _overview(line: Line, class_id: str, check: Check) -> Any:
    try:
        return (await _json(line, f"/api/v1/classes/{quote(class_id, safe='')}/overview"))["state"]["users"]
    except (TransportError, KeyError, TypeError) as error:
        check.faults += 1
        check.note = f"cannot ask: {error}"
        return None


async def _compare_sessions(line: Line, person: Person, events: list[Entry], check: Check) -> None:
    """Executions and errors of each client session."""
    found: dict[str, list[int]] = {}
    try:
        async for session in _sessions(line, person):
            counted = found.setdefault(session.get("session_id") or "", [0, 0])
            counted[0] += session["cell_executions"]
            counted[1] += session["error_count"]
    except (TransportError, KeyError, TypeError) as error:
        check.faults += 1
        check.note = f"cannot ask: {error}"
        return
    of_session: dict[str, list[Entry]] = defaultdict(list)
    for event in events:
        of_session[event.session].append(event)
    if set(found) == {""}:  # this daemon does not name client sessions: compare the student's sum
        of_session = defaultdict(list, {"": events})
    for name, own in of_session.items():
        executions, errors = found.get(name, [0, 0])
        known = name in found or not any(event.state == ACKNOWLEDGED for event in own)
        _compare(own, executions, errors, check, known=known)


async def _sessions(line: Line, person: Person) -> Any:
    cursor = ""
    while True:
        user, class_id = quote(person.user_id, safe=""), quote(person.class_id, safe="")
        page = await _json(line, f"/api/v1/users/{user}/sessions?class={class_id}&limit={_PAGE}{cursor}")
        for session in page["sessions"]:
            yield session
        if not page.get("next_cursor"):
            return
        cursor = f"&cursor={quote(page['next_cursor'], safe='')}"


def _compare_live(user: dict[str, Any] | None, events: list[Entry], check: Check) -> None:
    known = user is not None or not any(event.state == ACKNOWLEDGED for event in events)
    counted = user or {}
    _compare(events, counted.get("cell_executions", 0), counted.get("error_count", 0), check, known=known)


def _compare(events: list[Entry], executions: int, errors: int, check: Check, *, known: bool) -> None:
    """The counters of one student or session against what was acknowledged; what is doubtful may be in them."""
    sure = [event for event in events if event.state == ACKNOWLEDGED]
    refused = [event for event in events if event.state == REFUSED]  # first suspects, where there is too much
    doubtful = [event for event in events if event.state not in {ACKNOWLEDGED, REFUSED}]
    runs = [event for event in sure if event.execution]
    check.expected += len(runs)
    check.found += min(executions, len(runs))
    faults = 0
    suspects: list[Entry] = []
    if off := _outside(executions, len(runs), sum(event.execution for event in doubtful)):
        faults = abs(off)
        suspects = (off > 0 and [event for event in refused if event.execution]) or runs
    failed = [event for event in sure if event.failed]
    if off := _outside(errors, len(failed), sum(event.failed for event in doubtful)):
        faults = max(faults, abs(off))  # a failed run that is missing is missing in both
        # Fewer, so nearer to the one.
        suspects = (off > 0 and [event for event in refused if event.failed]) or failed
    if not known and not faults:
        faults, suspects = 1, sure
    check.faults += faults
    check.astray += bool(faults)
    check.suspects += len(suspects)
    room = _MOST_CANDIDATES - len(check.candidates)
    check.candidates += [event.event_id for event in suspects[:room]]


def _outside(counted: int, least: int, doubtful: int) -> int:
    """How far a counter is over (or, negative, under) what it may be."""
    return min(0, counted - least) or max(0, counted - least - doubtful)
