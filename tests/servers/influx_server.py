"""InfluxDB 1.x for tests (Debian's package `influxdb`): real semantics of points, tags, partial writes and InfluxQL."""

import itertools
from typing import Any

import attrs
import httpx
import trio

from tests.servers.process import ServerProcess, free_port

# All points of a long run are read in one answer.
QUERY_WITHIN_S = 120

# What is on the disk is not what these tests are about; and nobody is told that they ran.
CONFIG = """
reporting-disabled = true
bind-address = "127.0.0.1:{backup_port}"
[meta]
  dir = "{base}/meta"
  logging-enabled = false
[data]
  dir = "{base}/data"
  wal-dir = "{base}/wal"
  wal-fsync-delay = "50ms"
  query-log-enabled = false
[monitor]
  store-enabled = false
[subscriber]
  enabled = false
[continuous_queries]
  enabled = false
[http]
  bind-address = "127.0.0.1:{port}"
  auth-enabled = {auth}
  log-enabled = false
[logging]
  level = "warn"
"""


@attrs.frozen
class InfluxDatabase:
    """One database of a test server, with the default retention policy (`autogen`: for ever)."""

    name: str
    server: "InfluxServer" = attrs.field(repr=False)

    def query(self, text: str, **bound: Any) -> list[dict[str, Any]]:
        """Points of an InfluxQL query, series after series; tags of ``group by`` among the values. Times in ns."""
        return self.server.query(text, database=self.name, **bound)

    async def points(self, text: str, **bound: Any) -> list[dict[str, Any]]:
        return await trio.to_thread.run_sync(lambda: self.query(text, **bound))

    def write(self, lines: str) -> None:
        answer = self.server.call("POST", "/write", params={"db": self.name, "precision": "ns"}, content=lines.encode())
        assert answer.status_code == 204, answer.text

    def drop(self) -> None:
        self.server.query(f'drop database "{self.name}"')


class InfluxServer(ServerProcess):
    """``password``: of its one user, ``admin``; None: whoever comes may do all."""

    def __init__(self, program: str, *, password: str | None = None) -> None:
        super().__init__("influx")
        self._program = program
        self._names = (f"test_{n}" for n in itertools.count(1))
        self._backup_port = free_port()
        self.password = password

    def start(self) -> None:
        super().start()
        if self.password is not None:
            # The first user may be made by anybody; the same again changes nothing.
            self.query(f"create user admin with password '{self.password}' with all privileges")

    def command(self) -> list[str]:
        config = self.base / "influxdb.conf"
        auth = str(self.password is not None).lower()
        config.write_text(CONFIG.format(base=self.base, port=self.port, backup_port=self._backup_port, auth=auth))
        return [self._program, "-config", str(config)]

    def answers(self) -> bool:
        try:
            return httpx.get(f"{self.url}/ping", timeout=1, trust_env=False).status_code == 204
        except httpx.HTTPError:
            return False

    def create_database(self) -> InfluxDatabase:
        name = next(self._names)
        self.query(f'create database "{name}"')
        return InfluxDatabase(name, self)

    def call(self, method: str, path: str, **arguments: Any) -> httpx.Response:
        auth = None if self.password is None else ("admin", self.password)
        return httpx.request(method, self.url + path, auth=auth, timeout=QUERY_WITHIN_S, trust_env=False, **arguments)

    def query(self, text: str, *, database: str = "", **bound: Any) -> list[dict[str, Any]]:
        parameters = {"q": text, "db": database, "epoch": "ns", "params": httpx.Response(200, json=bound).text}
        answer = self.call("POST", "/query", data=parameters)
        assert answer.status_code == 200, answer.text
        (result,) = answer.json()["results"]
        assert "error" not in result, result["error"]
        return [
            dict(zip(series["columns"], values, strict=True)) | series.get("tags", {})
            for series in result.get("series", [])
            for values in series["values"]
        ]
