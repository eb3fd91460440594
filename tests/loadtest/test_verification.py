"""Counters against what was acknowledged."""

import pytest

from loadtest.ledger import ACKNOWLEDGED, REFUSED, UNKNOWN, Entry
from loadtest.verification import Check, _compare, lost


def events(*states, failed=()):
    return [
        Entry(f"e{number}", 0, number, True, number in failed, "", "s", state) for number, state in enumerate(states)
    ]


def compared(given, executions, errors=0, *, known=True):
    check = Check("sessions", 0, 0)
    _compare(given, executions, errors, check, known=known)
    return check


def test_all_is_there():
    assert compared(events(ACKNOWLEDGED, ACKNOWLEDGED), 2).held


@pytest.mark.parametrize("executions", [1, 2])
def test_a_doubtful_one_may_be_there_or_not(executions):
    assert compared(events(ACKNOWLEDGED, UNKNOWN), executions).held


@pytest.mark.parametrize("executions", [0, 3])
def test_too_few_and_too_many_are_faults(executions):
    check = compared(events(ACKNOWLEDGED, UNKNOWN), executions)
    assert not check.held
    assert check.candidates == ["e0"]


def test_a_refused_one_must_not_be_there():
    assert not compared(events(ACKNOWLEDGED, REFUSED), 2).held


def test_a_missing_error_names_the_failed_runs_only():
    check = compared(events(*[ACKNOWLEDGED] * 5, failed={1, 3}), 4, 1)
    assert check.candidates == ["e1", "e3"]
    assert lost([check]) == 1


def test_a_student_of_whom_nothing_is_known():
    check = compared([Entry("opened", 0, 0, False, False, "", "s", ACKNOWLEDGED)], 0, known=False)
    assert not check.held
    assert check.candidates == ["opened"]
