"""A streaming standby of a PostgreSQL server, both of the system's packages."""

from pathlib import Path

from tests.e2e.postgres_server import PostgresServer


class Standby(PostgresServer):
    """Copies the primary when it is first started, and follows it."""

    def __init__(self, primary: PostgresServer, programs: Path) -> None:
        super().__init__(programs)
        self._primary = primary

    def _make_cluster(self) -> None:
        origin = f"host=127.0.0.1 port={self._primary.port} user=postgres"
        data = str(self._base / "data")
        # -R: it begins as a standby; -c fast: now, not at the primary's next checkpoint.
        self._run("pg_basebackup", "-D", data, "-d", origin, "-R", "-X", "stream", "-c", "fast", "--no-sync")
