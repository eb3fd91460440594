"""Records of sessions that are put away say what the sessions said, and are found by the client that they are of."""

from uuid import UUID

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from engine.learning_session import Session, all_closed, first_end, pack_sessions, record_of, shortened, unpack_sessions

UUIDS = st.uuids().map(str)
# Other spellings of UUIDs are other names, and so is what only looks like one.
CLIENTS = (
    UUIDS
    | UUIDS.map(str.upper)
    | UUIDS.map(lambda text: text.replace("-", ""))
    | UUIDS.map(lambda text: "g" + text[1:])
    | UUIDS.map(lambda text: text[1:9] + text[0] + text[9:])  # as long, the dashes elsewhere
    | st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=40)
)
TIMES = st.integers(0, 2**45)


@st.composite
def sessions_of(draw: st.DrawFn, client: str) -> list[Session]:
    found = []
    for notebook in draw(
        st.lists(st.sampled_from((None, "a.ipynb", "ä/b.ipynb")), min_size=1, max_size=3, unique=True)
    ):
        start, end, closed = draw(TIMES), draw(TIMES), draw(TIMES | st.just(-1))
        found.append(
            Session(
                notebook, client, min(start, end), max(start, end), draw(st.integers(0, 2**40)), draw(TIMES), closed
            )
        )
    return found


@given(st.data(), CLIENTS, st.booleans())
def test_a_record_says_what_its_sessions_said(data, client, closed):
    sessions = data.draw(sessions_of(client))
    record = pack_sessions(client, sessions, closed=closed)
    assert unpack_sessions(record) == sessions
    assert all_closed(record) is closed
    assert first_end(record) == min(session.end for session in sessions)
    assert shortened(record) is record


@given(st.lists(CLIENTS, min_size=1, max_size=8, unique=True), st.integers(0), CLIENTS, st.booleans())
def test_a_client_finds_its_record_and_no_other(clients, chosen, stranger, closed):
    records = {client: pack_sessions(client, [Session("n", client, 1, 2)], closed=closed) for client in clients}
    known = clients[chosen % len(clients)]
    assert record_of(known, records.values()) is records[known]
    if stranger not in records:
        assert record_of(stranger, records.values()) is None


@given(st.data(), CLIENTS, st.booleans())
def test_a_record_as_it_was_first_written_is_read(data, client, closed):
    sessions = data.draw(sessions_of(client))
    earlier = msgspec.msgpack.encode(
        (closed, client, [msgspec.structs.replace(session, client=None) for session in sessions])
    )
    record = shortened(earlier)
    assert unpack_sessions(record) == sessions
    assert all_closed(record) is closed
    assert record_of(client, [record]) is record


def test_the_record_of_a_usual_session_is_short():
    client = str(UUID(int=2**127 + 5))
    session = Session("lessons/week_05.ipynb", client, 1_795_445_631_000, 1_795_445_931_000, 450, 90, 1_795_445_931_000)
    record = pack_sessions(client, [session], closed=True)
    assert len(record) < 70
