"""`--local`: a PostgreSQL and a daemon of our own on loopback, fresh, and gone at the end."""

import contextlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from loadtest.daemons import LocalDaemon
from loadtest.database import Cluster
from loadtest.database import running as running_cluster
from loadtest.processes import free_port

DATABASE = "loadtest"


@dataclass(frozen=True)
class Servers:
    """What the harness started, so that faults can reach it."""

    cluster: Cluster
    daemon: LocalDaemon
    dsn: str


@contextlib.contextmanager
def running() -> Iterator[Servers]:
    """Start both, default settings all through; stop and remove them at the end of the block."""
    with contextlib.ExitStack() as stack:
        # The cluster's directory is its unprivileged user's, and so beside the daemon's, not inside.
        directory, place = (
            Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=prefix, ignore_cleanup_errors=True)))
            for prefix in ("classpulse-loadtest-", "classpulse-loadtest-pg-")
        )
        cluster = stack.enter_context(running_cluster(place))
        dsn = cluster.database.create(DATABASE)
        # A port of its own and not 0: a daemon that is killed and started again must be found.
        daemon = LocalDaemon(directory / "data", dsn, port=free_port(), log=directory / "daemon.log")
        stack.callback(daemon.stop)
        daemon.start()
        yield Servers(cluster, daemon, dsn)
