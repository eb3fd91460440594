"""The contract's event table, read by the decoder: what is taken, cut, replaced and refused, and in which words."""

import json
import re
import time
from contextlib import suppress
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from engine.clock import parse_rfc3339
from engine.decode import (
    MAX_AHEAD_MS,
    MAX_BEHIND_MS,
    MAX_OBJECT_BYTES,
    Decoded,
    Rejected,
    decode_any,
    decode_body,
    is_class_id,
)
from engine.errors import MalformedError, TooManyEventsError
from engine.event import NEEDS_NOTEBOOK, Event

NOW = parse_rfc3339("2026-11-23T14:53:51.830Z")
# What every event of these tests has unless it says otherwise.
BASE = {"event_id": "e1", "event_type": "cell_executed", "user_id": "ana", "notebook_path": "n1"}
encode_event = msgspec.msgpack.Encoder().encode


def decoded(body: bytes | str, *, ndjson: bool = False, max_events: int = 10) -> Decoded:
    """Decode a body both ways; they never differ."""
    raw = body if isinstance(body, bytes) else body.encode()
    result = decode_body(raw, ndjson=ndjson, received_at=NOW, max_events=max_events)
    assert plain(result) == plain(decode_any(raw, ndjson=ndjson, received_at=NOW, max_events=max_events))
    return result


def plain(result: Decoded) -> Decoded:
    """With the ids that the decoder made set apart."""
    events = [each if each.named else msgspec.structs.replace(each, event_id="") for each in result.events]
    return Decoded(events, result.rejected, result.single)


def taken(**fields: Any) -> Event:
    """The event that BASE with ``fields`` becomes."""
    result = decoded(json.dumps(BASE | fields))
    assert not result.rejected
    return result.events[0]


def refused(**fields: Any) -> str:
    """Why BASE with ``fields`` is refused."""
    result = decoded(json.dumps(BASE | fields))
    assert not result.events
    assert [each.index for each in result.rejected] == [0]
    return result.rejected[0].error


def without(*names: str) -> dict[str, Any]:
    return {key: value for key, value in BASE.items() if key not in names}


# --- spellings

# canonical name: (every spelling, strongest first; a valid value; the event's attribute; what it holds)
TABLE: dict[str, tuple[tuple[str, ...], Any, str, Any]] = {
    "event_id": (("event_id", "eventId", "id"), "x1", "event_id", "x1"),
    "event_type": (("event_type", "eventType", "event"), "progress", "event_type", "progress"),
    "timestamp": (("timestamp", "eventTime", "event_timestamp", "time"), NOW - 5, "time", NOW - 5),
    "user_id": (("user_id", "userId", "emailAddress"), "ben", "user_id", "ben"),
    "user_name": (("user_name", "userName", "display_name"), "Ana", "user_name", "Ana"),
    "team": (("team", "teamName"), "red", "team", "red"),
    "class_id": (("class_id", "classId"), "Bio-1.a_b", "class_id", "Bio-1.a_b"),
    "session_id": (("session_id", "sessionId"), "s1", "session_id", "s1"),
    "notebook_path": (("notebook_path", "notebookPath"), "a/b.ipynb", "notebook_path", "a/b.ipynb"),
    "cell_id": (("cell_id", "cellId"), "c1", "cell_id", "c1"),
    "cell_index": (("cell_index", "cellIndex"), 3, "cell_index", 3),
    "cell_type": (("cell_type", "cellType"), "raw", "cell_type", "raw"),
    "execution_count": (("execution_count", "executionCount"), 7, "execution_count", 7),
    "execution_duration_ms": (
        ("execution_duration_ms", "executionDurationMs", "duration"),
        5,
        "execution_duration_ms",
        5.0,
    ),
    "has_error": (("has_error", "hasError"), True, "has_error", True),
    "error_message": (
        ("error_message", "errorMessage"),
        "ZeroDivisionError: x",
        "error_message",
        "ZeroDivisionError: x",
    ),
    "total_cells": (("total_cells", "totalCells"), 12, "total_cells", 12),
    "completed_cells": (("completed_cells", "completedCells"), 8, "completed_cells", 8),
}
SPELLINGS = [(name, spelling) for name, (spellings, *_) in TABLE.items() for spelling in spellings]


def other(name: str) -> Any:
    """A value for a spelling that must lose: never right, often not even valid."""
    return {"timestamp": NOW - 77, "cell_index": -1, "has_error": "yes"}.get(name, 5)


@pytest.mark.parametrize(("name", "spelling"), SPELLINGS)
def test_every_spelling_of_the_table_is_taken(name, spelling):
    _, value, attribute, expected = TABLE[name]
    event = decoded(json.dumps(without(name) | {spelling: value})).events[0]
    assert getattr(event, attribute) == expected
    assert event.named


@pytest.mark.parametrize("name", TABLE)
@pytest.mark.parametrize("strongest_first", [True, False])
def test_the_strongest_spelling_wins_in_any_order_and_whatever_the_others_hold(name, strongest_first):
    (strongest, *weaker), value, attribute, expected = TABLE[name]
    pairs = [(strongest, value), *((spelling, other(name)) for spelling in weaker)]
    document = without(name) | dict(pairs if strongest_first else reversed(pairs))
    assert getattr(decoded(json.dumps(document)).events[0], attribute) == expected


@pytest.mark.parametrize("loser", [{"userId": ""}, {"event": "Not A Type"}, {"classId": "a b"}, {"notebookPath": ""}])
def test_a_weaker_spelling_is_not_even_looked_at(loser):
    assert decoded(json.dumps(loser | BASE | {"class_id": "default"})).events == [taken()]


@pytest.mark.parametrize(("name", "spelling"), SPELLINGS)
def test_null_means_missing_so_a_weaker_spelling_counts(name, spelling):
    spellings, value, attribute, expected = TABLE[name]
    document = without(name) | {spelling: value} | dict.fromkeys(spellings[: spellings.index(spelling)])
    assert getattr(decoded(json.dumps(document)).events[0], attribute) == expected


@pytest.mark.parametrize(
    ("alias", "canonical"),
    [("cell_execution", "cell_executed"), ("help", "help_requested"), ("help_stop", "help_resolved")],
)
def test_types_are_stored_canonical(alias, canonical):
    assert taken(event_type=alias).event_type == canonical


@pytest.mark.parametrize("kind", ["a", "x" * 64, "custom.thing_2", "progress"])
def test_any_other_type_of_the_alphabet_is_kept(kind):
    assert taken(event_type=kind).event_type == kind


@pytest.mark.parametrize("kind", ["", "x" * 65, "Cell", "a b", "a-b", "é", "a\n"])
def test_a_type_outside_the_alphabet_is_refused(kind):
    assert refused(event_type=kind).startswith("event_type: ")


# --- what is required, and what is made


@pytest.mark.parametrize("name", ["user_id", "event_type", "notebook_path"])
@pytest.mark.parametrize("instead", [{}, {"": None}])
def test_what_is_required_is_named_when_it_is_missing(name, instead):
    document = without(name) | ({name: None} if instead else {})
    result = decoded(json.dumps(document))
    assert result.rejected[0].error.startswith(f"{name}: missing")
    assert result.rejected[0].event_id == "e1"


@pytest.mark.parametrize("kind", sorted(NEEDS_NOTEBOOK))
def test_cell_and_notebook_events_need_a_notebook(kind):
    assert decoded(json.dumps(without("notebook_path") | {"event_type": kind})).rejected


@pytest.mark.parametrize("kind", ["help", "session_start", "session_end", "progress", "custom"])
def test_other_events_need_none(kind):
    assert decoded(json.dumps(without("notebook_path") | {"event_type": kind})).events[0].notebook_path is None


def test_a_missing_id_is_made_and_marked_as_unknown_to_the_client():
    first, second = decoded(json.dumps([without("event_id")] * 2)).events
    assert not first.named
    assert first.event_id != second.event_id
    assert re.fullmatch(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}", first.event_id)


def test_what_is_missing_gets_its_default():
    event = taken()
    assert (event.class_id, event.time, event.clock_skewed, event.data) == ("default", NOW, False, None)


# --- types are not coerced

TEXTS = (
    "event_id", "event_type", "user_id", "user_name", "team", "class_id", "session_id", "notebook_path", "cell_id",
    "cell_type", "error_message", "code", "result",
)  # fmt: skip
COUNTS = ("cell_index", "execution_count", "total_cells", "completed_cells")
WRONG: dict[str, list[Any]] = {
    **{name: [5, 1.5, True, ["a"], {"a": 1}] for name in TEXTS},
    **{name: ["5", 1.5, 3.0, True, [1], {}, 2**31, -(2**31) - 1, 10**30] for name in COUNTS},
    "timestamp": [True, [], {}, "", "5", "yesterday", "2026-11-23", "2026-11-23T14:53:51"],
    "execution_duration_ms": ["5", True, -1, -0.001, [], 10**400],
    "has_error": [0, 1, "true", "", []],
    "data": ["{}", 5, [], True],
    "metadata": ["{}", 5, [], True],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in WRONG.items() for value in values])
def test_nothing_is_coerced_and_the_field_is_named(name, value):
    assert refused(**{name: value}).startswith(f"{name}: ")


def test_a_negative_cell_index_is_refused():
    assert refused(cell_index=-1).startswith("cell_index: ")
    assert taken(cell_index=0).cell_index == 0


@pytest.mark.parametrize("value", [-(2**31), 0, 2**31 - 1])
def test_counts_take_what_their_column_holds(value):
    assert taken(total_cells=value).total_cells == value


@pytest.mark.parametrize("number", ["1e999", "-1e999"])
def test_a_number_past_a_double_is_refused_where_it_is_read(number):
    for name in ("execution_duration_ms", "timestamp", "cell_index"):
        result = decoded(json.dumps(BASE)[:-1] + f',"{name}":{number}}}')
        assert result.rejected[0].error.startswith(f"{name}: ")
    assert decoded(json.dumps(BASE)[:-1] + f',"unknown":{number}}}').events == [taken()]
    assert decoded(json.dumps(BASE)[:-1] + f',"data":{{"x":[{number}]}}}}').rejected[0].error.startswith("data: ")


@pytest.mark.parametrize("digits", [30, 400])
def test_a_timestamp_of_any_number_of_digits_is_a_wrong_clock(digits):
    for fields in ({}, {"data": {"x": 1}}):
        for number in (10**digits, -(10**digits)):
            event = taken(timestamp=number, **fields)
            assert (event.time, event.clock_skewed) == (NOW, True)


def test_integers_past_64_bits_stay_exact_in_data():
    event = taken(data={"x": 10**29 + 1})
    assert json.loads(event.data or "") == {"x": 10**29 + 1}


def test_an_integer_too_long_to_read_is_no_event():
    with pytest.raises(MalformedError):
        decoded(json.dumps(BASE)[:-1] + ',"data":{"x":' + "1" * 5000 + "}}")


# --- limits


@pytest.mark.parametrize(
    ("name", "limit"),
    [("event_id", 128), ("user_id", 254), ("user_name", 200), ("team", 100), ("session_id", 128), ("notebook_path", 500),
     ("class_id", 64)],
)  # fmt: skip
def test_ids_paths_and_names_that_are_too_long_are_refused(name, limit):
    assert getattr(taken(**{name: "x" * limit}), name) == "x" * limit
    assert refused(**{name: "x" * (limit + 1)}).startswith(f"{name}: ")


@pytest.mark.parametrize("name", ["event_id", "user_id", "notebook_path", "class_id"])
def test_ids_and_paths_cannot_be_empty(name):
    assert refused(**{name: ""}).startswith(f"{name}: ")


@pytest.mark.parametrize("name", ["user_name", "team", "session_id", "cell_id", "error_message"])
def test_other_text_that_is_empty_is_missing(name):
    assert getattr(taken(**{name: ""}), name) is None


def test_text_that_is_too_long_is_cut():
    assert taken(error_message="é" * 8192).error_message == "é" * 8192
    assert taken(error_message="é" * 9000).error_message == "é" * 8192
    assert taken(code="x" * 70_000, result="x" * 70_000) == taken()


@pytest.mark.parametrize("name", ["data", "metadata"])
def test_an_object_is_refused_past_16_kib_of_compact_json(name):
    rest = MAX_OBJECT_BYTES - len('{"x":""}')
    kept = taken(**{name: {"x": "y" * rest}})
    assert len(getattr(kept, name)) == MAX_OBJECT_BYTES
    assert refused(**{name: {"x": "y" * (rest + 1)}}).startswith(f"{name}: ")
    assert refused(**{name: {"x": "é" * (rest // 2 + 1)}}).startswith(f"{name}: ")


def test_more_events_than_a_request_may_have_are_refused_together():
    assert len(decoded(json.dumps([BASE] * 10)).events) == 10
    for body, ndjson in ((json.dumps([BASE] * 11), False), ("\n".join([json.dumps(BASE)] * 11), True)):
        with pytest.raises(TooManyEventsError):
            decoded(body, ndjson=ndjson)


# --- users and classes


@pytest.mark.parametrize(
    ("given_id", "expected"),
    [
        ("  ana\t", "ana"),
        ("Ana", "Ana"),
        (" Ana@Example.COM ", "ana@example.com"),
        ("Ana@Example.COM", "ana@example.com"),
        ("Éva@Example.com", "Éva@example.com"),
        ("İ@X", "İ@x"),
        ("a b", "a b"),
        ("12345", "12345"),
    ],
)
def test_a_user_id_is_trimmed_and_the_ascii_letters_of_an_email_are_lowered(given_id, expected):
    assert taken(user_id=given_id).user_id == expected


@pytest.mark.parametrize("blank", ["", " ", "\t\n", "\u3000"])
def test_a_blank_user_id_is_refused(blank):
    assert refused(user_id=blank).startswith("user_id: ")


@pytest.mark.parametrize("name", ["a b", "é", "a/b", "x\n", ""])
def test_a_class_outside_the_alphabet_is_refused(name):
    assert refused(class_id=name).startswith("class_id: ")
    assert not is_class_id(name)


# --- NUL and surrogates


def test_nul_becomes_its_picture_and_a_lone_surrogate_the_replacement_character():
    event = taken(error_message="a\0b\ud800c", cell_id="\udfff", user_name="😀")
    assert (event.error_message, event.cell_id, event.user_name) == ("a\u2400b\ufffdc", "\ufffd", "😀")


def test_both_are_replaced_in_the_keys_of_data_too():
    event = taken(data={"a\0": {"\udc00": ["\0"]}}, metadata={"\ud8ff": 1})
    assert json.loads(event.data or "") == {"a\u2400": {"\ufffd": ["\u2400"]}}
    assert json.loads(event.metadata or "") == {"\ufffd": 1}


@pytest.mark.parametrize("escape", ["\\u0000", "\\uD800", "\\udfff", "\\uDC00\\ud800"])
def test_no_escape_brings_them_in(escape):
    body = json.dumps(BASE | {"cell_id": "?", "data": {"?": "?"}}).replace("?", escape)
    event = decoded(body).events[0]
    for text in (event.cell_id, event.data):
        assert text is not None
        assert text.encode().isascii() is False
        assert "\0" not in text
        assert "\\" not in text


def test_an_escaped_backslash_before_u0000_is_text():
    assert taken(cell_id="\\u0000").cell_id == "\\u0000"


def test_a_raw_control_character_is_not_json():
    for raw in (b"\0", b"\x1f"):
        with pytest.raises(MalformedError):
            decoded(json.dumps(BASE | {"cell_id": "?"}).encode().replace(b"?", raw))


# --- timestamps


@pytest.mark.parametrize(
    "text",
    [
        "2026-11-23T14:50:00Z",
        "2026-11-23T14:50:00.000Z",
        "2026-11-23T14:50:00.000999Z",
        "2026-11-23t14:50:00z",
        "2026-11-23T16:50:00+02:00",
        "2026-11-23T09:20:00-05:30",
        "2026-11-23T14:49:60Z",
        "2026-11-23T14:49:60.000+00:00",
    ],
)
def test_rfc3339_is_read_to_the_millisecond(text):
    event = taken(timestamp=text)
    assert (event.time, event.clock_skewed) == (1_795_445_400_000, False)


@pytest.mark.parametrize("number", [NOW - 5, float(NOW - 5), NOW - 4.5])
def test_epoch_milliseconds_are_whole_or_broken_numbers(number):
    assert taken(timestamp=number).time == NOW - 5


@pytest.mark.parametrize("number", [NOW + MAX_AHEAD_MS, NOW - MAX_BEHIND_MS])
def test_a_time_at_the_edge_is_believed(number):
    event = taken(timestamp=number)
    assert (event.time, event.clock_skewed) == (number, False)


@pytest.mark.parametrize(
    "stamp",
    [NOW + MAX_AHEAD_MS + 1, NOW - MAX_BEHIND_MS - 1, 0, -1, 1e300, NOW // 1000, "0001-01-01T00:00:00Z",
     "0001-01-01T00:00:00+23:59", "9999-12-31T23:59:60-23:59"],
)  # fmt: skip
def test_a_time_past_the_edge_is_the_time_of_receipt_and_marked(stamp):
    event = taken(timestamp=stamp)
    assert (event.time, event.clock_skewed) == (NOW, True)


@pytest.mark.parametrize(
    "text",
    ["2026-02-30T00:00:00Z", "2026-11-23T24:00:00Z", "2026-11-23T14:60:00Z", "2026-11-23T14:53:61Z", "2026-11-23T14:53Z",
     "2026-11-23T14:53:51.Z", "2026-11-23T14:53:60", " 2026-11-23T14:53:51Z", "2026-11-23T14:53:51Z ", "20261123T145351Z"],
)  # fmt: skip
def test_what_is_not_rfc3339_is_refused(text):
    assert refused(timestamp=text).startswith("timestamp: ")


# --- data


def test_fields_inside_data_are_lifted_and_leave_it():
    data = {"cellIndex": 4, "has_error": True, "errorMessage": "E: x", "duration": 7, "colour": "blue"}
    event = taken(data=data)
    assert (event.cell_index, event.has_error, event.error_message, event.execution_duration_ms) == (
        4,
        True,
        "E: x",
        7.0,
    )
    assert json.loads(event.data or "") == {"colour": "blue"}


def test_a_seed_style_event_may_carry_everything_inside_data():
    event = decoded(
        json.dumps({"event_type": "cell_execution", "data": without("event_type") | {"time": NOW - 9}})
    ).events[0]
    assert (event.event_id, event.user_id, event.notebook_path, event.time) == ("e1", "ana", "n1", NOW - 9)
    assert event.data is None


def test_the_events_own_field_stands_before_the_one_in_data():
    event = taken(cell_index=1, data={"cell_index": 2, "x": None})
    assert event.cell_index == 1
    assert json.loads(event.data or "") == {"cell_index": 2, "x": None}


def test_what_is_never_kept_may_be_anything_inside_data():
    """A client of another kind has a result of its own there: no reason to lose the event."""
    event = taken(data={"result": {"score": 3}, "code": [1], "kept": 1})
    assert event.data == '{"kept":1}'
    assert taken(data={"result": {"score": 3}}).data is None


def test_what_is_wrong_inside_data_is_named():
    assert refused(data={"cellIndex": "4"}).startswith("cell_index: ")


def test_fields_are_lifted_before_the_size_of_data_counts():
    event = taken(data={"error_message": "x" * 20_000, "y": 1})
    assert (len(event.error_message or ""), event.data) == (8192, '{"y":1}')


SECRET = "s3cret"


@pytest.mark.parametrize("name", ["code", "result"])
@pytest.mark.parametrize("where", ["event", "data", "both", "metadata"])
def test_code_and_result_never_stay(name, where):
    inside = {name: SECRET, "kept": 1}
    fields: dict[str, Any] = {
        "event": {name: SECRET},
        "data": {"data": inside},
        "both": {name: SECRET, "data": inside},
        "metadata": {"metadata": inside},
    }[where]
    event = taken(**fields)
    assert SECRET.encode() not in encode_event(event)
    if where != "event":
        assert json.loads(event.data or event.metadata or "") == {"kept": 1}


def test_objects_that_hold_nothing_are_missing():
    event = taken(data={}, metadata={})
    assert (event.data, event.metadata) == (None, None)


# --- bodies


def test_only_an_object_is_single():
    assert decoded(json.dumps(BASE)).single
    assert not decoded(json.dumps([BASE])).single
    assert not decoded(json.dumps(BASE), ndjson=True).single


def test_an_event_is_refused_alone():
    result = decoded(json.dumps([BASE, 5, without("user_id"), BASE | {"event_id": "e2"}, None]))
    assert [each.event_id for each in result.events] == ["e1", "e2"]
    assert result.rejected == [
        Rejected(1, "expected an object, got a number"),
        Rejected(2, "user_id: missing", "e1"),
        Rejected(4, "expected an object, got null"),
    ]


@pytest.mark.parametrize("body", ["5", '"text"', "null", "true", "1e999"])
def test_a_scalar_is_an_event_that_is_refused(body):
    assert decoded(body).rejected[0].error.startswith("expected an object")


def test_an_empty_array_holds_nothing():
    assert decoded("[]") == Decoded([], [], single=False)


def test_a_bad_line_of_ndjson_is_refused_by_its_index():
    lines = [json.dumps(BASE), "{", "", json.dumps(BASE | {"event_id": "e2"}) + "\r", "\ufeff{}", "[]"]
    result = decoded("\n".join(lines), ndjson=True)
    assert [each.event_id for each in result.events] == ["e1", "e2"]
    assert [each.index for each in result.rejected] == [1, 3, 4]


def test_a_line_that_is_not_utf8_is_refused_alone():
    result = decoded(json.dumps(BASE).encode() + b'\n{"user_id":"\xff"}\n', ndjson=True)
    assert len(result.events) == len(result.rejected) == 1


BOMB = 200_000


@pytest.mark.parametrize(
    "body",
    [b"", b" ", b"{", b"[{}", b"{}{}", b"\xef\xbb\xbf{}", b'{"a":"\xff"}', b'{"a":"\xed\xa0\x80"}', b"NaN", b"[Infinity]",
     b"{'a':1}", b"\xff\xfe{\0}\0", b"[" * BOMB, b"[" * BOMB + b"]" * BOMB, b'{"data":' * BOMB + b"1" + b"}" * BOMB,
     b'["\\u0000",' + b"[" * BOMB + b"]" * BOMB + b"]"],
    ids=lambda body: repr(body[:12]),
)  # fmt: skip
def test_what_is_not_json_is_malformed(body):
    with pytest.raises(MalformedError):
        decoded(body)


@pytest.mark.parametrize("depth", [100, 800, 900, 1000, 1500])
def test_deep_data_is_kept_or_refused_but_never_raises(depth):
    body = json.dumps(BASE)[:-1] + ',"data":{"a":' + "[" * depth + '"\\u0000"' + "]" * depth + "}}"
    try:
        result = decoded(body)
    except MalformedError:
        return
    assert len(result.events) + len(result.rejected) == 1


def test_of_a_key_that_stands_twice_the_last_counts():
    assert decoded('{"user_id":"no",' + json.dumps(BASE)[1:]).events == [taken()]


# --- properties

_texts = st.sampled_from(("", "a", "A", "ana", " ana ", "Ana@X.org", "ana@x.org", "cell_executed", "help", "custom.x",
                          "default", "bio", "code", "n1", "x" * 65, "x" * 130, "x" * 9000, "\0", "\ud800", "é", "😀", "7",
                          "2026-11-23T14:50:00Z", "2026-11-23T14:49:60Z", "2026-11-23T14:50:00"))  # fmt: skip
_numbers = st.one_of(
    st.integers(-2, 3),
    st.sampled_from(
        (NOW, NOW - 5, NOW + MAX_AHEAD_MS + 1, 2**31, 2**63, 2**64, 10**30, 10**400, 1.0, 1.5, -0.0, 1e300)
    ),
    st.just(float("inf")),  # written as 1e999
)
_scalars = st.one_of(st.none(), st.booleans(), _numbers, _texts)
_values = st.recursive(
    _scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=2), st.dictionaries(_texts, inner, max_size=2)),
    max_leaves=4,
)
_right = {name: st.just(value) for name, (_, value, _, _) in TABLE.items()}
_names = [*(spelling for _, spelling in SPELLINGS), "code", "result", "metadata", "unknown"]


@st.composite
def _objects(draw: st.DrawFn, *, inner: bool = False) -> dict[str, Any]:
    """Mostly a good event with a few spellings more, some of them with values that do not belong there."""
    document: dict[str, Any] = {}
    if not inner:
        for name, value in BASE.items():
            spelling = draw(st.sampled_from((*TABLE[name][0], None) if name != "event_type" else TABLE[name][0]))
            if spelling is not None:
                document[spelling] = value
    for name in draw(st.lists(st.sampled_from(_names), max_size=5)):
        canonical = next((each for each, spelling in SPELLINGS if spelling == name), None)
        right = _right.get(canonical or "", _texts)
        document[name] = draw(st.one_of(right, right, _values))
    if not inner and draw(st.integers(0, 3)) == 0:
        document["data"] = draw(st.one_of(_objects(inner=True), _values))
    keys = draw(st.permutations(list(document)))
    return {key: document[key] for key in keys}


def _written(document: Any, *, ascii_only: bool) -> bytes:
    text = json.dumps(document, ensure_ascii=ascii_only).replace("-Infinity", "-1e999").replace("Infinity", "1e999")
    return text.encode("utf-8", "surrogatepass")


# Every name as the cell_monitor client writes it: of the three spellings of an id or a user, the one with a capital.
CELL_MONITOR = {
    name: next((each for each in spellings if not each.islower()), name) for name, (spellings, *_) in TABLE.items()
}
CELL_MONITOR["user_id"] = "emailAddress"


@st.composite
def _uniform(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Events in the names of one client only, nearly all right: what the fast way is for."""
    spelling = draw(st.sampled_from(({name: name for name in TABLE}, CELL_MONITOR)))
    names = st.lists(st.sampled_from([*(name for name in TABLE if name != "class_id"), "code", "result"]), max_size=6)
    documents = []
    for _ in range(draw(st.integers(0, 3))):
        document = {spelling[name]: value for name, value in BASE.items()}
        for name in draw(names):
            right = _right.get(name, _texts)
            document[spelling.get(name, name)] = draw(st.one_of(right, right, right, right, _scalars))
        documents.append(document)
    return documents


_documents = st.one_of(
    _uniform(),
    _uniform().filter(bool).map(lambda events: events[0]),
    _objects(),
    st.lists(st.one_of(_objects(), _objects(), _values), max_size=4),
    _values,
)
bodies = st.builds(_written, _documents, ascii_only=st.booleans())


def outcome(body: bytes, *, fast: bool, ndjson: bool) -> Decoded | str:
    decode = decode_body if fast else decode_any
    try:
        return plain(decode(body, ndjson=ndjson, received_at=NOW, max_events=3))
    except (MalformedError, TooManyEventsError) as error:
        return f"{type(error).__name__}: {error}"


@given(bodies)
@example(b'[{}, {}, {}, {"\xed\xa0\x80": null}]')
def test_the_fast_way_and_the_general_way_give_the_same(body):
    assert outcome(body, fast=True, ndjson=False) == outcome(body, fast=False, ndjson=False)


@pytest.mark.parametrize("spelling", [{name: name for name in TABLE}, CELL_MONITOR], ids=["canonical", "cell_monitor"])
@pytest.mark.parametrize("single", [True, False])
def test_the_common_clients_are_decoded_the_fast_way(spelling, single, monkeypatch):
    document = {spelling[name]: value for name, (_, value, _, _) in TABLE.items() if name != "class_id"}
    body = json.dumps(document if single else [document, document]).encode()
    general = decode_any(body, ndjson=False, received_at=NOW, max_events=10)
    monkeypatch.setattr("engine.decode.decode_any", None)
    assert decode_body(body, ndjson=False, received_at=NOW, max_events=10) == general


FIELD = re.compile("(" + "|".join((*TABLE, "code", "result", "data", "metadata")) + "): ")


@given(bodies)
def test_what_is_refused_has_its_index_and_the_fields_name_first(body):
    result = outcome(body, fast=True, ndjson=False)
    if isinstance(result, str):
        return
    count = len(json.loads(body)) if body.startswith(b"[") else 1
    assert len(result.events) + len(result.rejected) == count
    indexes = [each.index for each in result.rejected]
    assert indexes == sorted(set(indexes))
    assert set(indexes) <= set(range(count))
    for each in result.rejected:
        assert FIELD.match(each.error) or each.error.startswith("expected an object, got ")
        assert each.event_id is None or 1 <= len(each.event_id) <= 128


@given(bodies)
def test_what_is_taken_fits_every_column(body):
    result = outcome(body, fast=True, ndjson=False)
    for event in [] if isinstance(result, str) else result.events:
        encoded = encode_event(event)
        assert msgspec.msgpack.decode(encoded, type=Event) == event
        for name, value in msgspec.structs.asdict(event).items():
            if isinstance(value, str):
                assert "\0" not in value
                assert value or (name == "event_id" and not event.named)
        for name in ("data", "metadata"):
            if (text := getattr(event, name)) is not None:
                kept = json.loads(text)
                assert isinstance(kept, dict)
                assert not kept.keys() & {"code", "result"}
        assert NOW - MAX_BEHIND_MS <= event.time <= NOW + MAX_AHEAD_MS
        assert event.event_type not in NEEDS_NOTEBOOK or event.notebook_path


@given(st.one_of(st.binary(max_size=60), bodies, bodies.map(lambda body: body[: len(body) // 2])), st.booleans())
@example(b"[" * 100_000, True)
@example(b'{"a":' * 100_000, False)
def test_no_body_raises_anything_else(body, ndjson):
    assert outcome(body, fast=True, ndjson=ndjson) == outcome(body, fast=False, ndjson=ndjson)


def test_more_of_a_body_may_be_rejected_by_the_place_in_what_was_left():
    body = (
        b'[{"user_id": 1}, {"user_id": "a", "event_type": "x", "event_id": "e1"}, 7, '
        b'{"user_id": "b", "event_type": "x"}, {"user_id": "c", "event_type": "x"}]'
    )
    decoded = decode_body(body, ndjson=False, received_at=NOW, max_events=10).without({0: "full", 2: "full too"})
    assert [event.user_id for event in decoded.events] == ["b"]
    assert [each.index for each in decoded.rejected] == [0, 1, 2, 4]
    assert [(each.error, each.event_id) for each in decoded.rejected[1::2]] == [("full", "e1"), ("full too", None)]


def test_lines_past_the_limit_are_not_looked_at():
    """A body of nothing but bad lines would hold up everybody else for seconds."""

    def took(lines):
        began = time.perf_counter()
        with suppress(TooManyEventsError):
            decode_body(b"{\n" * lines, ndjson=True, received_at=0, max_events=1000)
        return time.perf_counter() - began

    assert min(took(200_000) for _ in range(3)) < 20 * min(took(1000) for _ in range(3))
