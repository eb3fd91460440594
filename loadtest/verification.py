"""After a run, through the API: whether sessions and live state count all that was acknowledged, and streams show it.

Events of which nobody knows whether they were taken (an answer that never came) may be in it or not; refused ones
must not be.
"""

from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Sequence
from typing import Any, Final, NamedTuple, TypeVar
from urllib.parse import quote

import msgspec
import trio

from loadtest.check import Check
from loadtest.counters import compare, may_be
from loadtest.errors import TransportError
from loadtest.ledger import Entry
from loadtest.monitor import LAG, Scrape
from loadtest.subscribers import Subscriber
from loadtest.target import Target
from loadtest.transports import LeanTransport, Line
from loadtest.users import Person
from loadtest.views import ClassState

T = TypeVar("T")

# Queries under way at once: enough to be quick, few enough not to be a load test of their own.
_ASKERS: Final = 16
_PAGE: Final = 100
# For all questions to the API together: a daemon that does not answer any more is not asked for hours.
_API_S: Final = 300.0
DRAIN_POLL_S: Final = 0.1
# A view and the overview are not of the same moment: they are compared until they agree, or for so long.
_AGREE_S: Final = 5.0
_AGREE_POLL_S: Final = 0.2
AS_OVERVIEW: Final = "as the overview, in every subscriber's view"


class _Part(msgspec.Struct):
    status: str
    lag_events: int | None = None  # of a store


class _Health(msgspec.Struct):
    checks: dict[str, _Part]


class _Session(msgspec.Struct):
    cell_executions: int
    error_count: int
    session_id: str | None = None


class _Sessions(msgspec.Struct):
    sessions: list[_Session]
    next_cursor: str | None = None


class _Counted(msgspec.Struct):
    """Of a student in the live state."""

    cell_executions: int = 0
    error_count: int = 0


async def drained(target: Target, within_s: float) -> float | None:
    """Seconds until every store has all that was acknowledged by now; None when it does not come to that.

    The daemon says so by a lag of 0. Where others post too that may never be: then its counters tell that more than
    there was by now is stored.
    """
    began = trio.current_time()
    async with LeanTransport(target) as transport:
        line = transport.line()
        try:
            accepted, _ = await _progress(line)
            while trio.current_time() - began < within_s:
                if await _lag(line) == 0:
                    return trio.current_time() - began
                _, stored = await _progress(line)
                if accepted is not None and stored is not None and stored >= accepted:
                    return trio.current_time() - began
                await trio.sleep(DRAIN_POLL_S)
        finally:
            await line.aclose()
    return None


async def _progress(line: Line) -> tuple[float | None, float | None]:
    """Events that the daemon accepted since its start, and how many of these every store has. None: it does not say."""
    try:
        answer = await line.get("/metrics")
    except TransportError:
        return None, None
    scrape = Scrape(answer.body.decode(errors="replace"))
    accepted, lag = scrape.total("classpulse_events_total", result="accepted"), scrape.highest(LAG)
    return accepted, None if accepted is None or lag is None else accepted - lag


async def cells_elsewhere(target: Target) -> bool:
    """Whether cell events are points in InfluxDB, and no rows. Not so when the daemon does not say."""
    async with LeanTransport(target) as transport:
        line = transport.line()
        try:
            parts = await _parts(line)
        finally:
            await line.aclose()
    return "influxdb" in parts and parts["influxdb"].status != "not_configured"


async def _lag(line: Line) -> int | None:
    """Of the store that is furthest behind."""
    parts = await _parts(line)
    return max((part.lag_events for part in parts.values() if part.lag_events is not None), default=None)


async def _parts(line: Line) -> dict[str, _Part]:
    """What health says of each part of the daemon; nothing when it does not tell."""
    try:
        answer = await line.get("/api/v1/health")
        return msgspec.json.decode(answer.body, type=_Health).checks
    except (TransportError, msgspec.DecodeError):
        return {}


class Shown(NamedTuple):
    """Whether subscribers see what the daemon would tell. `students` are those who look otherwise, as user ids."""

    check: Check
    students: set[str]


class _Look(NamedTuple):
    """One view beside the overview of its class: how many students there are, and what of whom was never the same.

    By user id; None is the summary.
    """

    users: int
    apart: dict[str | None, set[str]]

    @property
    def students(self) -> set[str]:
        """Those who look otherwise."""
        return {user_id for user_id in self.apart if user_id is not None}


async def by_stream(target: Target, subscribers: Sequence[Subscriber], *, fresh: bool) -> Shown:
    """Each subscriber's view against the overview of its class, once nothing is on its way any more.

    They are not of the same moment, and some students change by time alone: at fault is what differs at every look.
    `fresh`: the classes are this run's own; else only its students are compared, and not the summary.
    """
    looks: dict[Subscriber, _Look] = {}
    unasked: dict[str, str] = dict.fromkeys((each.class_id for each in subscribers), "not told in time")

    async def look(line: Line, class_id: str) -> None:
        try:
            told = await _overview(line, class_id)
        except TransportError as error:
            unasked[class_id] = f"cannot ask: {error}"
            return
        unasked.pop(class_id, None)
        for each in subscribers:
            before = looks.get(each)
            if each.class_id == class_id and (before is None or before.apart):
                looks[each] = _look(each, told, before, fresh=fresh)

    async with LeanTransport(target) as transport:
        with trio.move_on_after(_API_S):
            await _share_out(transport, list(unasked), look)
        with trio.move_on_after(_AGREE_S):
            while pending := {each.class_id for each in subscribers if each not in looks or looks[each].apart}:
                await trio.sleep(_AGREE_POLL_S)
                await _share_out(transport, pending, look)
    students = set[str]().union(*(each.students for each in looks.values()))
    fields = set[str]().union(*(names for each in looks.values() for names in each.apart.values()))
    users = sum(each.users for each in looks.values())
    note = next(iter(unasked.values()), f"differ in {', '.join(sorted(fields))}" * bool(fields))
    check = Check(AS_OVERVIEW, users, users - sum(len(each.students) for each in looks.values()), astray=len(students))
    check.note = note or f"{len(subscribers)} subscribers"
    check.faults = sum(len(each.apart) for each in looks.values()) + len(subscribers) - len(looks)
    return Shown(check, students)


def _look(subscriber: Subscriber, told: ClassState, before: _Look | None, *, fresh: bool) -> _Look:
    state = None if subscriber.view is None else subscriber.view.state
    here, there = {} if state is None else state.get("users", {}), told["users"]
    both = {user_id for user_id in here.keys() | there.keys() if fresh or user_id in subscriber.users}
    apart: dict[str | None, set[str]] = {}
    for user_id in both:
        one, other = here.get(user_id), there.get(user_id)
        if one is None or other is None:
            apart[user_id] = {"who is there"}
        elif one != other:
            apart[user_id] = {name for name in one.keys() | other.keys() if one.get(name) != other.get(name)}
    if state is None:
        apart[None] = {"everything: no snapshot"}
    elif fresh and state.get("summary") != told["summary"]:
        apart[None] = {"summary"}
    if before is not None:
        apart = {user_id: names for user_id, names in apart.items() if user_id in before.apart}
    return _Look(len(both), apart)


async def by_api(
    target: Target, entries: Collection[Entry], person: Callable[[int], Person], *, fresh: bool
) -> list[Check]:
    """Sessions and live state. Each student's counters must be what was acknowledged, up to what is doubtful.

    `fresh`: the classes are this run's own, so nothing from before is counted.
    """
    of_user: dict[int, list[Entry]] = defaultdict(list)
    for entry in entries:
        of_user[entry.user].append(entry)
    of_class: dict[str, set[str]] = defaultdict(set)
    for index in of_user:
        of_class[person(index).class_id].add(person(index).user_id)
    sessions = Check("counted in sessions, by the API", 0, 0)
    live = Check("counted in the live state, by the API", 0, 0)
    overviews: dict[str, dict[str, Any]] = {}

    async def ask(line: Line, index: int) -> None:
        await _compare_sessions(line, person(index), of_user[index], sessions)
        state = overviews.get(person(index).class_id)
        if state is not None:
            _compare_live(state.get(person(index).user_id), of_user[index], live)

    if not fresh:
        live.skipped = True
        live.note = "the class is not this run's own: what was there before cannot be told apart"
    async with LeanTransport(target) as transport:
        with trio.move_on_after(_API_S) as patience:
            line = transport.line()
            overviews = await _live(line, of_class, live) if fresh else {}
            await line.aclose()
            await _share_out(transport, list(of_user), ask)
        if patience.cancelled_caught:
            for check in (sessions, live) if fresh else (sessions,):
                check.faults += 1
                check.note = f"not all were told within {_API_S:.0f} s"
    for check, whose in ((sessions, "sessions"), (live, "students")):
        if check.astray and not check.note:
            check.note = f"{whose} that are not as sent: {check.astray}"
    return [sessions, live]


async def _share_out(transport: LeanTransport, work: Iterable[T], ask: Callable[[Line, T], Awaitable[None]]) -> None:
    """Ask for each, over a few lines at once."""
    left = iter(work)

    async def run() -> None:
        line = transport.line()
        try:
            for each in left:
                await ask(line, each)
        finally:
            await line.aclose()

    async with trio.open_nursery() as nursery:
        for _ in range(_ASKERS):
            nursery.start_soon(run)


async def _live(line: Line, students: dict[str, set[str]], check: Check) -> dict[str, dict[str, Any]]:
    """The users of each class; those who are none of its students are faults."""
    found: dict[str, dict[str, Any]] = {}
    for class_id, own in students.items():
        try:
            found[class_id] = (await _overview(line, class_id))["users"]
        except TransportError as error:
            check.faults += 1
            check.note = f"cannot ask: {error}"
        else:
            others = len(found[class_id].keys() - own)
            check.faults += others
            check.astray += others
    return found


async def _told(line: Line, path: str, kind: type[T]) -> T:
    """The answer; TransportError for any but 200, and for what is none of this kind."""
    answer = await line.get(path)
    if answer.status != 200:
        raise TransportError(f"HTTP {answer.status}")
    try:
        return msgspec.json.decode(answer.body, type=kind)
    except msgspec.DecodeError as error:
        raise TransportError(f"an answer that is none: {error}") from error


class _Overview(msgspec.Struct):
    state: ClassState


async def _overview(line: Line, class_id: str) -> ClassState:
    """The state of a class; TransportError when it is not told."""
    state = (await _told(line, f"/api/v1/classes/{quote(class_id, safe='')}/overview", _Overview)).state
    try:
        return {"users": state["users"], "summary": state["summary"]}
    except KeyError as error:
        raise TransportError(f"no overview: {error} is not in it") from error


async def _compare_sessions(line: Line, person: Person, events: list[Entry], check: Check) -> None:
    """Executions and errors of each client session."""
    found: dict[str, list[int]] = {}
    try:
        async for session in _sessions(line, person):
            counted = found.setdefault(session.session_id or "", [0, 0])
            counted[0] += session.cell_executions
            counted[1] += session.error_count
    except TransportError as error:
        check.faults += 1
        check.note = f"cannot ask: {error}"
        return
    of_session: dict[str, list[Entry]] = defaultdict(list)
    for event in events:
        of_session[event.session].append(event)
    if set(found) == {""}:  # this daemon does not name client sessions: compare the student's sum
        of_session = defaultdict(list, {"": events})
    for name in of_session.keys() | found.keys():
        own = of_session.get(name, [])  # none: nobody made this session
        executions, errors = found.get(name, [0, 0])
        compare(own, executions, errors, check, known=may_be(own, there=name in found))


async def _sessions(line: Line, person: Person) -> AsyncIterator[_Session]:
    cursor = ""
    while True:
        user, class_id = quote(person.user_id, safe=""), quote(person.class_id, safe="")
        path = f"/api/v1/users/{user}/sessions?class={class_id}&limit={_PAGE}{cursor}"
        page = await _told(line, path, _Sessions)
        for session in page.sessions:
            yield session
        if not page.next_cursor:
            return
        cursor = f"&cursor={quote(page.next_cursor, safe='')}"


def _compare_live(user: dict[str, Any] | None, events: list[Entry], check: Check) -> None:
    try:
        counted = msgspec.convert(user or {}, _Counted)
    except msgspec.ValidationError as error:
        check.faults += 1
        check.astray += 1
        check.note = f"counters that are none: {error}"
        return
    known = may_be(events, there=user is not None)
    compare(events, counted.cell_executions, counted.error_count, check, known=known)
