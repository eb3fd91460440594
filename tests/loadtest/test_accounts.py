"""What a run is held against."""

import msgspec

from loadtest.accounts import undrained
from loadtest.check import Check
from loadtest.ledger import Tally


def read_again(check):
    return msgspec.json.decode(msgspec.json.encode(check), type=Check)


def test_a_daemon_that_does_not_say_that_all_is_stored_is_at_fault():
    check = read_again(undrained(given_up=True))
    assert not check.held
    assert check.faults == 1
    assert not check.skipped


def test_one_that_nobody_waited_for_is_not():
    check = read_again(undrained(given_up=False))
    assert check.held
    assert check.skipped


def test_of_several_processes_the_busiest_one_is_told():
    tally = Tally()
    for cores in (0.1, 0.3, 0.2):
        tally.merge(Tally(requests=1, cpu_cores=cores))
    assert (tally.requests, tally.cpu_cores) == (3, 0.3)
