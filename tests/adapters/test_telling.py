"""What is told of a server holds no password, wherever a URL has it."""

import pytest

from adapters.asyncio_bridge import Connection, RedisLink, open_loop, shown
from engine.errors import StoreUnavailableError
from tests.e2e.postgres_server import free_port


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("postgresql://ann@db.example/class", "postgresql://ann@db.example/class"),
        ("postgresql://ann:s3cret@db.example:5433/class", "postgresql://ann:***@db.example:5433/class"),
        ("postgresql://ann:s3@cret@db.example/class", "postgresql://ann:***@db.example/class"),
        ("postgresql://:s3cret@db.example/class", "postgresql://:***@db.example/class"),
        ("postgresql://db.example/class?user=ann&password=s3cret", "postgresql://db.example/class"),
        ("postgresql:///class?host=/run/postgresql&passfile=s3cret", "postgresql:///class?host=/run/postgresql"),
        ("postgresql://db.example/class?sslmode=verify-full&sslpassword=s3cret#s3cret",
         "postgresql://db.example/class?sslmode=verify-full"),
        ("redis://:s3cret@db.example:6379/0?password=s3cret", "redis://:***@db.example:6379/0"),
        ("unix:///run/redis.sock?db=1&password=s3cret", "unix:///run/redis.sock?db=1"),
    ],
)  # fmt: skip
def test_an_address_is_told_without_its_secrets(url, told):
    assert shown(url) == told


async def test_a_server_that_is_away_is_told_of_without_the_password():
    url = f"postgresql://127.0.0.1:{free_port()}/class?user=ann&password=s3cret"
    async with open_loop():
        with pytest.raises(StoreUnavailableError, match="is away") as postgres:
            await Connection.connect(url)
        link = RedisLink(f"redis://127.0.0.1:{free_port()}/0?password=s3cret", max_connections=1)
        assert "127.0.0.1" in str(postgres.value)
        assert "s3cret" not in str(postgres.value) + link.where
