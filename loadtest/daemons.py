"""`classpulse serve` as a child of ours, known by its command line, its environment and its ready line."""

import os
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path

from loadtest.processes import launch, ready_address, stop

# What the environment could say about another daemon than the one we start.
_FOREIGN = ("CLASSPULSE_", "RUNTIME_DIRECTORY", "STATE_DIRECTORY", "CREDENTIALS_DIRECTORY", "LISTEN_", "NOTIFY_")


def environment(data: Path, dsn: str, *, port: int = 0, settings: Mapping[str, str] | None = None) -> dict[str, str]:
    """Ours, with the daemon's settings; all that is not given stays at its default.

    `settings` by their names in the environment, without `CLASSPULSE_`.
    """
    kept = {key: value for key, value in os.environ.items() if not key.startswith(_FOREIGN)}
    given = {"HTTP__PORT": str(port), "POSTGRES__DSN": dsn, "DATA_DIR": str(data), **(settings or {})}
    return kept | {f"CLASSPULSE_{key}": value for key, value in given.items()}


class LocalDaemon:
    """One daemon on a fixed port, which can be killed and started again."""

    def __init__(self, data: Path, dsn: str, *, port: int, log: Path) -> None:
        self.address = ""
        self._log = log
        self._environment = environment(data, dsn, port=port)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """Of the running process."""
        return None if self._process is None else self._process.pid

    def start(self) -> None:
        """Start it and wait for its ready line."""
        self._process = launch(None, "engine", "serve", env=self._environment, log=self._log)
        self.address = ready_address(self._process, "classpulse", self._log)

    def stop(self) -> None:
        """SIGTERM, and wait."""
        if self._process is not None:
            stop(self._process, "classpulse")
            self._process = None

    def kill(self) -> None:
        """SIGKILL: nothing of it runs another instruction."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()

    def pause(self, *, stopped: bool) -> None:
        """SIGSTOP or SIGCONT."""
        if self._process is not None:
            self._process.send_signal(signal.SIGSTOP if stopped else signal.SIGCONT)
