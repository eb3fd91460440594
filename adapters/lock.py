"""One daemon per data directory."""

import fcntl
import os
from pathlib import Path
from types import TracebackType
from typing import Self

from engine.errors import StartError


class DirectoryLock:
    """An exclusive lock on a data directory, held until exit; the kernel drops it when the process dies."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / "lock"
        self._fd = -1

    def __enter__(self) -> Self:
        """Raises StartError when another process holds it, or the directory cannot be written."""
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise StartError(f"data_dir: cannot use {self._path.parent}: {error.strerror}") from None
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(fd, 32, 0).decode(errors="replace").strip() or "unknown"
            os.close(fd)
            raise StartError(
                f"data_dir: {self._path.parent} is in use by another classpulse (pid {holder}): "
                "stop it, or give this one a data_dir of its own"
            ) from None
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        self._fd = fd
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        os.close(self._fd)
