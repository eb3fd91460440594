"""Several databases are asked at once, and one fault is told."""

import pytest

from adapters.postgres.shards import ask_each
from engine.errors import StoreUnavailableError, TooLargeError


async def test_answers_are_in_order():
    async def double(part):
        return 2 * part

    assert await ask_each([1, 2, 3], double) == [2, 4, 6]


async def test_a_refusal_is_told_before_what_is_away():
    """As itself, not in a group: an endpoint answers by its kind."""

    async def fail(fault):
        raise fault

    faults = [StoreUnavailableError("one"), TooLargeError("two"), StoreUnavailableError("three")]
    for asked, told in ((faults, faults[1]), (faults[::2], faults[0])):
        with pytest.raises(type(told)) as caught:
            await ask_each(asked, fail)
        assert caught.value is told
