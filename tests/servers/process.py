"""A server of Debian's as a process of the tests: a port that it keeps, and a plug that can be pulled."""

import shutil
import signal
import socket
import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Self

START_WITHIN_S = 60
STOP_WITHIN_S = 20


class ServerProcess(ABC):
    """Subclasses say how it is started and when it answers. It keeps its port and its data over stops and kills."""

    def __init__(self, name: str) -> None:
        self.base = Path(tempfile.mkdtemp(prefix=f"classpulse-{name}-"))
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @abstractmethod
    def command(self) -> list[str]:
        """Called once for each start."""

    @abstractmethod
    def answers(self) -> bool:
        """Whether it can be used."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        shutil.rmtree(self.base)

    def start(self) -> None:
        """Start it and return once it answers."""
        assert not self.running
        with (self.base / "log").open("ab") as log:
            self._process = subprocess.Popen(
                self.command(), stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.base
            )
        deadline = time.monotonic() + START_WITHIN_S
        while not self.answers():
            assert self.running, (self.base / "log").read_text()[-2000:]
            assert time.monotonic() < deadline, (self.base / "log").read_text()[-2000:]
            time.sleep(0.02)

    def stop(self) -> None:
        """Stop it in good order."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        self._end(signal.SIGKILL)

    def pause(self) -> None:
        """Stop it in its tracks: connections stay open and nothing answers."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def _end(self, with_signal: signal.Signals) -> None:
        if self._process is None:
            return
        self._process.send_signal(with_signal)
        try:
            self._process.wait(STOP_WITHIN_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(STOP_WITHIN_S)
            raise
        self._process = None


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
