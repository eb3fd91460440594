"""The daemon as a process, seen from outside: its command line, its ready line, its signals."""

import itertools
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

import psutil
import trio

# Starting makes a PostgreSQL cluster in the embedded form, and two cores may be busy with other tests.
READY_WITHIN_S = 60
# What the contract's shutdown order may take, and the time for an interpreter to go away.
STOP_WITHIN_S = 20

REPOSITORY = Path(__file__).parents[2]
_READY = re.compile(r"^classpulse ready (http://127\.0\.0\.1:(\d+))$", re.MULTILINE)
_numbers = itertools.count(1)


class Daemon:
    """``python -m engine serve`` on a data directory.

    The blocking methods (``start``, ``stop``, ``wait``) are for fixtures of any scope; a test awaits their twins
    through ``async with`` or ``in_thread``. Output goes to files beside the data directory, one pair a process.
    """

    def __init__(
        self,
        data_dir: Path,
        *,
        dsn: str = "embedded",
        settings: Mapping[str, str] | None = None,
        arguments: Sequence[str] = (),
        environ: Mapping[str, str] | None = None,
        listener: socket.socket | None = None,
        program: str = "engine",
    ) -> None:
        """``environ`` is what a process manager adds to the environment, ``listener`` the socket that it hands over.

        ``program`` is the module to run; one of a test's own may put a fault into the daemon.
        """
        self.data_dir = data_dir
        self.port = 0
        self._settings = {"DATA_DIR": str(data_dir), "HTTP__PORT": "0", "POSTGRES__DSN": dsn, **(settings or {})}
        self._arguments = arguments
        self._environ = environ or {}
        self._listener = listener
        self._program = program
        self._process: subprocess.Popen[bytes] | None = None
        self._stdout = self._stderr = data_dir  # set by launch

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def process(self) -> subprocess.Popen[bytes]:
        assert self._process is not None, "the daemon was not launched"
        return self._process

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def stdout(self) -> str:
        return self._stdout.read_text()

    @property
    def stderr(self) -> str:
        return self._stderr.read_text()

    def rss_bytes(self) -> int:
        """Resident memory of the daemon alone, without an embedded PostgreSQL."""
        size: int = psutil.Process(self.pid).memory_info().rss
        return size

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run another command of Classpulse with this daemon's configuration."""
        return subprocess.run(
            [sys.executable, "-m", "engine", *arguments],
            cwd=REPOSITORY,
            env=self._environment(),
            capture_output=True,
            text=True,
            timeout=READY_WITHIN_S,
            check=False,
        )

    def launch(self) -> None:
        """Start the process and return at once."""
        assert not self.running
        number = next(_numbers)
        self._stdout = self.data_dir.parent / f"daemon-{number}.stdout"
        self._stderr = self.data_dir.parent / f"daemon-{number}.stderr"
        with self._stdout.open("wb") as stdout, self._stderr.open("wb") as stderr:
            self._process = subprocess.Popen(
                [*self._handing_over(), sys.executable, "-m", self._program, "serve", *self._arguments],
                cwd=REPOSITORY,
                env=self._environment() | self._environ,
                pass_fds=[] if self._listener is None else [self._listener.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
            )

    def _handing_over(self) -> list[str]:
        """What runs between us and the daemon, as the variable must have the daemon's own pid (sd_listen_fds(3))."""
        if self._listener is None:
            return []
        script = (
            "import os, sys; os.dup2(int(sys.argv[1]), 3); "
            "os.environ |= {'LISTEN_FDS': '1', 'LISTEN_PID': str(os.getpid())}; os.execv(sys.argv[2], sys.argv[2:])"
        )
        return [sys.executable, "-c", script, str(self._listener.fileno())]

    def start(self, within: float = READY_WITHIN_S) -> Self:
        """Start the process and return once it says that it is ready."""
        self.launch()
        self.wait_ready(within)
        return self

    def wait_ready(self, within: float = READY_WITHIN_S) -> None:
        deadline = time.monotonic() + within
        while (ready := _READY.search(self.stdout)) is None:
            if not self.running:
                raise AssertionError(f"exit {self.process.returncode} before it was ready:\n{self._tail()}")
            if time.monotonic() > deadline:
                self.kill()
                raise AssertionError(f"not ready within {within} s:\n{self._tail()}")
            time.sleep(0.02)
        self.port = int(ready[2])

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def wait(self, within: float = STOP_WITHIN_S) -> int:
        """The exit code, once the process ended; past the deadline it is killed and the test fails."""
        try:
            return self.process.wait(within)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"did not end within {within} s:\n{self._tail()}") from None

    def stop(self, within: float = STOP_WITHIN_S) -> int:
        """Ask it to stop, as a process manager does, and return the exit code."""
        self.signal(signal.SIGTERM)
        return self.wait(within)

    def kill(self) -> None:
        """End it with SIGKILL: nothing of it runs another instruction."""
        if self.running:
            self.process.kill()
        self.process.wait(STOP_WITHIN_S)

    async def __aenter__(self) -> Self:
        await in_thread(self.start)
        return self

    async def __aexit__(self, failure: type[BaseException] | None, *_: object) -> None:
        """Stop what still runs; where the test itself did not fail, the stop must be clean."""
        if not self.running:
            return
        if failure is not None:
            self.kill()
            return
        code = await in_thread(self.stop)
        assert code == 0, f"exit {code} on SIGTERM:\n{self._tail()}"

    def _environment(self) -> dict[str, str]:
        """This process's environment without its own settings: an unknown key would be refused."""
        foreign = ("CLASSPULSE_", "STATE_DIRECTORY", "RUNTIME_DIRECTORY", "CREDENTIALS_DIRECTORY", "PG")
        foreign += ("LISTEN_", "NOTIFY_", "WATCHDOG_")
        kept = {key: value for key, value in os.environ.items() if not key.startswith(foreign)}
        return kept | {f"CLASSPULSE_{key}": value for key, value in self._settings.items()}

    def _tail(self, size: int = 4000) -> str:
        return self.stderr[-size:]


async def in_thread(blocking, *arguments, **named):
    """Await a blocking method of a process or a server."""
    return await trio.to_thread.run_sync(lambda: blocking(*arguments, **named))
