"""Times are milliseconds inside and RFC 3339 outside."""

import time
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.clock import from_datetime, parse_rfc3339, rfc3339, to_datetime, wall_clock

YEAR_1 = from_datetime(datetime.min.replace(tzinfo=UTC))
YEAR_9999 = from_datetime(datetime.max.replace(tzinfo=UTC))


@given(st.integers(YEAR_1, YEAR_9999))
def test_what_is_written_is_read_back_to_the_millisecond(ms):
    assert parse_rfc3339(rfc3339(ms)) == ms
    assert from_datetime(to_datetime(ms)) == ms


def test_the_form_is_utc_with_milliseconds():
    assert rfc3339(0) == "1970-01-01T00:00:00.000Z"
    assert rfc3339(1_795_445_631_830) == "2026-11-23T14:53:51.830Z"
    assert rfc3339(-1) == "1969-12-31T23:59:59.999Z"


@given(st.integers(-(12 * 60), 14 * 60))
def test_a_zone_names_the_same_moment(minutes):
    sign, (hours, rest) = "-" if minutes < 0 else "+", divmod(abs(minutes), 60)
    text = f"2026-11-23T14:53:51.830{sign}{hours:02}:{rest:02}"
    assert parse_rfc3339(text) == 1_795_445_631_830 - minutes * 60_000


@pytest.mark.parametrize("text", ["2016-12-31T23:59:60Z", "2017-01-01T00:59:60+01:00", "2016-12-31T23:59:60.000Z"])
def test_a_leap_second_is_the_second_after(text):
    assert rfc3339(parse_rfc3339(text)) == "2017-01-01T00:00:00.000Z"


def test_what_is_finer_than_microseconds_is_rounded_to_them_and_what_is_finer_than_milliseconds_dropped():
    assert parse_rfc3339("2026-11-23T14:53:51.830999Z") == 1_795_445_631_830
    assert parse_rfc3339("2026-11-23T14:53:51.8309996Z") == 1_795_445_631_831
    assert rfc3339(parse_rfc3339("9999-12-31T23:59:59.9999999Z")) == "9999-12-31T23:59:59.999Z"


@pytest.mark.parametrize(
    "text",
    [
        *("", "now", "2026-11-23", "2026-11-23T14:53:51", "2026-13-01T00:00:00Z", "1795445631830"),
        *("2026-11-23T14:53:51.12345\u0663Z", "2026-11-23T14:53:51.123456\u0663Z"),
    ],
)
def test_anything_else_is_a_value_error(text):
    with pytest.raises(ValueError):
        parse_rfc3339(text)


@given(st.text(max_size=30))
def test_no_text_raises_anything_else(text):
    try:
        parse_rfc3339(text)
    except ValueError:
        return
    assert text[:4].isdigit()


def test_the_wall_clock_is_in_milliseconds():
    assert abs(wall_clock() - time.time() * 1000) < 1000
