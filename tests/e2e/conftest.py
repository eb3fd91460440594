"""One daemon for a whole module, where tests keep apart by their users."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.api import Api
from tests.e2e.daemon import Daemon
from tests.e2e.postgres_server import Database, PostgresServer


@pytest.fixture(scope="module")
def shared_database(postgres: PostgresServer) -> Iterator[Database]:
    created = postgres.create_database()
    yield created
    created.drop()


@pytest.fixture(scope="module")
def shared_daemon(shared_database: Database) -> Iterator[Daemon]:
    """A daemon that must still be well, and stop cleanly, when the module's last test is done."""
    base = Path(tempfile.mkdtemp(prefix="classpulse-test-"))
    base.chmod(0o755)
    # Many tests wait for their row: a short interval is all that makes them quick.
    daemon = Daemon(base / "data", dsn=shared_database.dsn, settings={"POSTGRES__FLUSH_INTERVAL_MS": "20"})
    try:
        daemon.start()
        yield daemon
        assert daemon.stop() == 0, daemon.stderr
    finally:
        daemon.kill()
        shutil.rmtree(base)


@pytest.fixture
def api(shared_daemon: Daemon) -> Api:
    return Api(shared_daemon)
