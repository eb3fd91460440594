"""Fixtures for tests that need a real PostgreSQL, a data directory, or a tool of the system."""

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

# Helpers assert too; told so before they are imported, pytest explains their failures.
for _helper in (
    "api",
    "daemon",
    "player",
    "points",
    "postgres_server",
    "reckoning",
    "stored",
    "subscriber",
    "waiting",
    "wire",
):
    pytest.register_assert_rewrite(f"tests.e2e.{_helper}")

pytest.register_assert_rewrite("tests.servers")

from tests.e2e.leftovers import stop_leftover_servers  # noqa: E402
from tests.e2e.postgres_server import Database, PostgresServer  # noqa: E402
from tests.servers.influx_server import InfluxDatabase, InfluxServer  # noqa: E402
from tests.servers.redis_server import RedisServer  # noqa: E402
from tests.servers.victoria_server import VictoriaServer  # noqa: E402
from tests.unable import unable  # noqa: E402


@pytest.fixture(scope="session")
def require_tool() -> Callable[[str], str]:
    """Ask for a tool by name and get its path; its absence skips on a laptop and fails where CI is set."""

    def require(name: str) -> str:
        path = shutil.which(name)
        if path is not None:
            return path
        return unable(f"{name} is not installed; .ci/tools installs it")

    return require


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """One PostgreSQL for the whole run. A test that stops or kills a server makes one of its own."""
    with PostgresServer() as server:
        yield server


@pytest.fixture
def database(postgres: PostgresServer) -> Iterator[Database]:
    """An empty database of the test's own."""
    created = postgres.create_database()
    yield created
    created.drop()


@pytest.fixture(scope="session")
def debian_postgres(require_tool: Callable[[str], str]) -> Path:
    """The programs of the system's PostgreSQL: the wheel's has none that copies a running server."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/pg_basebackup"))
    return found[-1].parent if found else Path(require_tool("pg_basebackup")).parent


@pytest.fixture(scope="session")
def influx(require_tool: Callable[[str], str]) -> Iterator[InfluxServer]:
    """One InfluxDB 1.x for the whole run. A test that stops or kills a server makes one of its own."""
    with InfluxServer(require_tool("influxd")) as server:
        yield server


@pytest.fixture
def influx_database(influx: InfluxServer) -> Iterator[InfluxDatabase]:
    """An empty database of the test's own."""
    created = influx.create_database()
    yield created
    created.drop()


@pytest.fixture(scope="session")
def victoria(require_tool: Callable[[str], str]) -> Iterator[VictoriaServer]:
    """One VictoriaMetrics for the whole run."""
    with VictoriaServer(require_tool("victoria-metrics")) as server:
        yield server


@pytest.fixture(scope="session")
def redis_for_all(require_tool: Callable[[str], str]) -> Iterator[RedisServer]:
    """One Redis for the whole run; a test takes `redis_server`."""
    with RedisServer(require_tool("redis-server")) as server:
        yield server


@pytest.fixture
def redis_server(redis_for_all: RedisServer) -> RedisServer:
    """The shared Redis, empty. A test that stops it or changes its settings makes one of its own."""
    redis_for_all.do("FLUSHALL")
    return redis_for_all


@pytest.fixture
def make_redis(require_tool: Callable[[str], str]) -> Iterator[Callable[..., RedisServer]]:
    """Servers of the test's own, started, with settings as on Redis' command line."""
    with ExitStack() as servers:
        yield lambda *settings: servers.enter_context(RedisServer(require_tool("redis-server"), *settings))


@pytest.fixture
def make_data_dir() -> Iterator[Callable[[], Path]]:
    """Data directories that an unprivileged PostgreSQL can reach.

    pytest's ``tmp_path`` is below a directory of mode 0700, which shuts out the user that PostgreSQL runs as when
    the tests run as root. The daemon's output is kept beside the data directory.
    """
    made: list[Path] = []

    def make() -> Path:
        base = Path(tempfile.mkdtemp(prefix="classpulse-test-"))
        base.chmod(0o755)
        made.append(base)
        return base / "data"

    yield make
    for base in made:
        stop_leftover_servers(base)
        shutil.rmtree(base)


@pytest.fixture
def data_dir(make_data_dir: Callable[[], Path]) -> Path:
    return make_data_dir()
