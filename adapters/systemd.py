"""What systemd and its like say to a daemon by the environment, and what the daemon says back.

Sources: sd_notify(3), sd_watchdog_enabled(3), sd_listen_fds(3). Needs nothing of systemd's own: another manager,
or a test, may play its part.
"""

import os
import socket
import time
from collections.abc import MutableMapping
from typing import Final

import structlog
import trio

from engine.errors import StartError

# The first descriptor that is handed over: SD_LISTEN_FDS_START.
_FIRST_FD: Final = 3
# A manager that does not read its socket must not hold us up, in seconds.
_SEND_S: Final = 0.1

log = structlog.get_logger("systemd")


class Manager:
    """The process manager, if there is one. Takes its variables out of ``environ``: they are not for our children."""

    def __init__(self, environ: MutableMapping[str, str]) -> None:
        self._address = environ.pop("NOTIFY_SOCKET", "")
        self.watchdog_s = _watchdog_s(environ)
        self.sockets = _inherited(environ)

    @property
    def addresses(self) -> list[str]:
        """Where the inherited sockets listen."""
        return [each.getsockname()[0] for each in self.sockets]

    def ready(self, status: str) -> None:
        """It accepts events: at the start, and again when a reload is through."""
        self._notify("READY=1", f"STATUS={status}")

    def reloading(self) -> None:
        """A reload begins; `ready` ends it."""
        self._notify("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self, status: str) -> None:
        """The stop has begun."""
        self._notify("STOPPING=1", f"STATUS={status}")

    def status(self, status: str) -> None:
        """One short line for people."""
        self._notify(f"STATUS={status}")

    async def feed_watchdog(self) -> None:
        """Say twice in each of its intervals that the event loop turns; returns at once where nobody watches."""
        while self.watchdog_s:
            self._notify("WATCHDOG=1")
            await trio.sleep(self.watchdog_s / 2)

    def _notify(self, *lines: str) -> None:
        if not self._address:
            return
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
                sender.settimeout(_SEND_S)
                sender.sendto("\n".join(lines).encode(), address)
        except OSError as fault:
            log.warning("the process manager cannot be told", fault=str(fault), message=lines[0])


def _watchdog_s(environ: MutableMapping[str, str]) -> float:
    """How long the manager waits for a sign of life, in seconds; 0: it does not."""
    microseconds = environ.pop("WATCHDOG_USEC", "")
    addressee = environ.pop("WATCHDOG_PID", str(os.getpid()))
    return int(microseconds) / 1e6 if addressee == str(os.getpid()) and microseconds.isdecimal() else 0.0


def _inherited(environ: MutableMapping[str, str]) -> list[socket.socket]:
    """The listening sockets that were handed over. Raises StartError for anything else that was."""
    count, addressee = environ.pop("LISTEN_FDS", ""), environ.pop("LISTEN_PID", "")
    environ.pop("LISTEN_FDNAMES", None)
    if addressee != str(os.getpid()) or not count.isdecimal():
        return []  # for another process, as after an exec in between
    sockets = []
    for fd in range(_FIRST_FD, _FIRST_FD + int(count)):
        try:
            os.set_inheritable(fd, False)
            inherited = socket.socket(fileno=fd)
            internet = inherited.family in (socket.AF_INET, socket.AF_INET6)
            listens = internet and inherited.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        except OSError:
            listens = False
        if not listens:
            raise StartError(f"LISTEN_FDS: descriptor {fd} is not a listening TCP socket")
        sockets.append(inherited)
    return sockets
