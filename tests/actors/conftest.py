"""A running world. A test asks for `autojump_clock` itself: pytest-trio takes no clock from a fixture."""

import pytest

from tests.actors.world import World


@pytest.fixture
async def world(autojump_clock, nursery):
    return await World(nursery).start()
