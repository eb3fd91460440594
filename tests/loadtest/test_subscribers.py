"""What a subscriber takes down when its connection ends, and what an account makes of it."""

from collections import Counter
from types import SimpleNamespace

import msgspec
import pytest
import trio

from loadtest import accounts, subscribers
from loadtest.errors import TransportError
from loadtest.plan import clock
from loadtest.subscribers import Subscriber
from loadtest.target import Target


def snapshot(epoch):
    frame = {"type": "snapshot", "topic": "class:a", "epoch": epoch, "seq": 1, "state": {"users": {}, "summary": {}}}
    return msgspec.json.encode(frame)


class Script:
    """A connection on which these texts come, and then this happens to it; nothing: it stands."""

    def __init__(self, texts, end=None):
        self._texts, self._end = texts, end

    async def send(self, text):
        pass

    async def receive(self):
        texts, self._texts = self._texts, []
        if texts:
            return texts
        if self._end is None:
            await trio.sleep_forever()
        raise TransportError(self._end)

    async def aclose(self):
        pass


async def followed(monkeypatch, *scripts):
    """A subscriber that had these connections, one after the other."""
    left = [*scripts]

    async def connect(target):
        return left.pop(0)

    monkeypatch.setattr(subscribers, "connect", connect)
    found = Subscriber(Target("http://127.0.0.1:1"), "a", {}, clock(0.0))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(found.run)
        while left or found.view is None:
            await trio.sleep(0.01)
        nursery.cancel_scope.cancel()
    return found


@pytest.mark.parametrize(
    ("end", "epoch", "dropped"),
    [
        ("closed with 1006", "one", {"closed with 1006": 1}),
        ("closed with 1011", "one", {"closed with 1011": 1}),
        ("closed with 1013", "one", {}),  # it read too slowly
        ("closed with 1006", "two", {}),  # the daemon restarted
    ],
)
async def test_who_is_cut_off_by_a_daemon_that_goes_on_takes_it_down(autojump_clock, monkeypatch, end, epoch, dropped):
    found = await followed(monkeypatch, Script([snapshot("one")], end), Script([snapshot(epoch)]))
    assert found.dropped == Counter(dropped)
    assert found.cuts == [end]
    assert not found.misplaced


@pytest.mark.parametrize("text", [b"garbage", b"[]", b'{"type":"alerts","topic":"class:a","alerts":[{"id":"x"}]}'])
async def test_what_is_no_frame_is_taken_down(autojump_clock, monkeypatch, text):
    found = await followed(monkeypatch, Script([snapshot("one"), text]), Script([snapshot("one")]))
    assert found.misplaced == Counter({"what is no frame": 1})


def test_faults_that_were_made_on_purpose_may_cut_a_subscriber_off():
    dropped = [SimpleNamespace(dropped=Counter({"closed with 1006": 2})), SimpleNamespace(dropped=Counter())]
    check = accounts._kept(dropped, disturbed=False)
    assert (check.faults, check.skipped, check.note) == (2, False, "2 times closed with 1006")
    check = accounts._kept(dropped, disturbed=True)
    assert (check.faults, check.skipped) == (0, True)
    check = accounts._kept(dropped[1:], disturbed=True)
    assert (check.faults, check.skipped) == (0, False)
