"""InfluxDB 1 and Redis (Debian's packages), with their defaults, for the length of a bench."""

import contextlib
import json
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from urllib.parse import urlencode

import redis

from loadtest.errors import LoadTestError
from loadtest.processes import free_port, need, pinned, stop

START_TIMEOUT_S = 60.0
ASK_TIMEOUT_S = 60.0
# What is not in it is at its default, as in the package's file; nobody is told that it ran, and no call is logged.
INFLUX_CONFIG = """
reporting-disabled = true
bind-address = "127.0.0.1:{backup_port}"
[meta]
  dir = "{base}/meta"
[data]
  dir = "{base}/data"
  wal-dir = "{base}/wal"
  query-log-enabled = false
{settings}
[monitor]
  store-enabled = false
[http]
  bind-address = "127.0.0.1:{port}"
  log-enabled = false
[logging]
  level = "warn"
"""


@dataclass(frozen=True)
class Influx:
    """One database of a running server."""

    port: int
    base: Path
    name: str = "bench"

    @property
    def environment(self) -> dict[str, str]:
        """For a daemon that writes there."""
        return {
            "CLASSPULSE_INFLUXDB__URL": f"http://127.0.0.1:{self.port}",
            "CLASSPULSE_INFLUXDB__API": "v1",
            "CLASSPULSE_INFLUXDB__BUCKET": self.name,
        }

    def up(self) -> bool:
        """Whether it answers."""
        with contextlib.suppress(OSError, HTTPException):
            return self._call("GET", "/ping")[0] == 204
        return False

    def ask(self, text: str) -> list[list[object]]:
        """Rows of an InfluxQL statement, time first."""
        status, body = self._call("POST", "/query?" + urlencode({"db": self.name, "q": text}))
        answer = json.loads(body)
        result = answer.get("results", [answer])[0]
        if status != 200 or "error" in result:
            raise LoadTestError(f"InfluxDB: {text}: {body[:300]!r}")
        return [row for series in result.get("series", []) for row in series["values"]]

    def cell_points(self) -> int:
        """Points in `cell_executions`: one an event."""
        found = self.ask("SELECT count(has_error) FROM cell_executions")
        return int(str(found[0][1])) if found else 0

    def bytes_of(self, ending: str) -> int:
        """Size of the files whose names end so: ``.tsm`` the points, ``.wal`` what is not yet in those."""
        return sum(file.stat().st_size for file in self.base.rglob(f"*{ending}"))

    def _call(self, method: str, path: str) -> tuple[int, bytes]:
        with contextlib.closing(HTTPConnection("127.0.0.1", self.port, timeout=ASK_TIMEOUT_S)) as connection:
            connection.request(method, path)
            answer = connection.getresponse()
            return answer.status, answer.read()


@dataclass(frozen=True)
class Redis:
    """A running server."""

    port: int

    @property
    def environment(self) -> dict[str, str]:
        """For a daemon that tells it."""
        return {"CLASSPULSE_REDIS__URL": f"redis://127.0.0.1:{self.port}/0"}

    def up(self) -> bool:
        """Whether it answers."""
        with contextlib.suppress(redis.ConnectionError), self._client() as client:
            return bool(client.ping())
        return False

    def delete(self, *keys: str) -> int:
        """How many of the keys there were."""
        with self._client() as client:
            return int(client.delete(*keys))

    def holds(self, key: str) -> bool:
        """Whether there is such a key."""
        with self._client() as client:
            return bool(client.exists(key))

    def _client(self) -> "redis.Redis":
        return redis.Redis(port=self.port)


@contextlib.contextmanager
def influx(directory: Path, core: int, *settings: str) -> Iterator[Influx]:
    """A new InfluxDB with an empty database; ``settings`` are lines of its section ``data``."""
    need("influxd")
    base = directory / f"influx-{free_port()}"
    base.mkdir()
    server = Influx(free_port(), base)
    config = base / "influxdb.conf"
    lines = "\n".join(settings)
    config.write_text(
        INFLUX_CONFIG.format(base=base, port=server.port, backup_port=free_port(), settings=lines), encoding="utf-8"
    )
    with _process(core, base, server.up, "influxd", "-config", str(config)):
        server.ask(f'CREATE DATABASE "{server.name}"')
        yield server
    shutil.rmtree(base, ignore_errors=True)


@contextlib.contextmanager
def redis_server(directory: Path, core: int) -> Iterator[Redis]:
    """A new Redis that keeps nothing on the disk."""
    need("redis-server")
    base = directory / f"redis-{free_port()}"
    base.mkdir()
    server = Redis(free_port())
    options = ["--port", str(server.port), "--bind", "127.0.0.1", "--save", "", "--dir", str(base)]
    with _process(core, base, server.up, "redis-server", *options):
        yield server


@contextlib.contextmanager
def _process(core: int, base: Path, up: Callable[[], bool], *command: str) -> Iterator[None]:
    log = base / "log"
    with log.open("wb") as errors:
        process = subprocess.Popen(
            pinned(core, *command),
            stdin=subprocess.DEVNULL,
            stdout=errors,
            stderr=errors,
            cwd=base,
        )
    try:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not up():
            if process.poll() is not None or time.monotonic() > deadline:
                raise LoadTestError(f"{command[0]} did not start:\n{log.read_text(errors='replace')[-2000:]}")
            time.sleep(0.05)
        yield
    finally:
        stop(process, command[0])
