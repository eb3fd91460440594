"""Students' events as hypothesis makes them: few of each kind of name, so that they meet."""

from typing import Any, TypeVar

from hypothesis import strategies as st

from engine.event import CELL_EXECUTED, CELL_TYPES, EXECUTION_ERROR, NEEDS_NOTEBOOK, NOTEBOOK_CLOSED, SESSION_END, Event
from engine.event import HELP_REQUESTED as HELP
from engine.event import HELP_RESOLVED as RESOLVED
from engine.rows import decode_state, encode_state
from engine.session import UserState

START = 1_795_445_631_000
# Steps of 20 s put gaps on both sides of, and exactly on, the 30 s of repeats, the 60 s of lapse and this idle time.
STEP_MS = 20_000
IDLE_MS = 2 * STEP_MS
KINDS = (
    CELL_EXECUTED,
    EXECUTION_ERROR,
    HELP,
    RESOLVED,
    "notebook_opened",
    NOTEBOOK_CLOSED,
    "session_start",
    SESSION_END,
)

CLIENT = "5d0c6f1d-6a0b-4d0c-9a51-0c1a55b01573"  # a client session as most clients name theirs

Item = TypeVar("Item")


def many(items: st.SearchStrategy[Item], most: int) -> st.SearchStrategy[list[Item]]:
    """Lists of up to ``most``. Left to itself hypothesis makes about five, and too little of it meets."""
    sizes = st.sampled_from((0, 1, 2, most // 2, most, most))
    return sizes.flatmap(lambda size: st.lists(items, min_size=size, max_size=size))


times = st.integers(0, 10).map(lambda steps: START + steps * STEP_MS)


@st.composite
def _fields(draw: st.DrawFn, users: tuple[str, ...]) -> dict[str, Any]:
    kind = draw(st.sampled_from((CELL_EXECUTED, CELL_EXECUTED, *KINDS, "progress", "custom.thing")))
    needs_notebook = kind in NEEDS_NOTEBOOK
    fields: dict[str, Any] = {
        "event_type": kind,
        "time": draw(times),
        "user_id": draw(st.sampled_from(users)),
        "notebook_path": draw(st.sampled_from(("n1", "n1", "n2") if needs_notebook else (None, "n1", "n2"))),
        "session_id": draw(st.sampled_from((None, None, "s1", CLIENT))),
        "user_name": draw(st.sampled_from((None, "Ana", "Ben"))),
        "team": draw(st.sampled_from((None, "red", "blue"))),
    }
    if kind in CELL_TYPES:
        fields |= {
            "cell_id": draw(st.sampled_from((None, "a", "b"))),
            "cell_index": draw(st.sampled_from((None, 0, 1, 2))),
            "has_error": draw(st.sampled_from((None, False, True))),
            "total_cells": draw(st.sampled_from((None, 0, 2, 5))),
        }
    return fields


@st.composite
def event_lists(draw: st.DrawFn, *, users: tuple[str, ...] = ("ana",), max_size: int = 25) -> list[Event]:
    """Distinct events, their ids in no relation to their times."""
    drawn = draw(many(_fields(users), max_size))
    ids = draw(st.permutations(range(len(drawn))))
    return [
        Event(event_id=f"e{number:02}", class_id="default", **fields) for number, fields in zip(ids, drawn, strict=True)
    ]


def whole(state: UserState) -> UserState:
    """A copy with nothing put away: when that was done is no part of what a state says."""
    copy = decode_state(encode_state(state))
    copy.unpack()
    for session in copy.sessions.values():
        session.row_start = -1
    return copy


def state_of(events: list[Event], *, user_id: str = "ana", received_at: int | None = None) -> UserState:
    """The state after ``events``, each received when it happened unless ``received_at`` says otherwise."""
    state = UserState(class_id="default", user_id=user_id)
    for event in events:
        state.apply(event, event.time if received_at is None else received_at, IDLE_MS)
    return state
