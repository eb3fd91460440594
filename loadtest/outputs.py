"""Where results go: files that can be written, and streams that somebody may have stopped reading."""

import os
import sys
from pathlib import Path
from typing import TextIO

from loadtest.errors import UsageError


def check(*paths: Path | None) -> None:
    """Before the run and not after it: a result that cannot be written is a run in vain. UsageError."""
    for path in paths:
        if path is None:
            continue
        try:
            if not path.resolve().parent.is_dir():
                raise UsageError(f"{path}: no such directory")
            if path.is_dir():
                raise UsageError(f"{path}: is a directory")
        except OSError as error:
            raise UsageError(f"{path}: {error.strerror}") from error
        if not os.access(path if path.exists() else path.resolve().parent, os.W_OK):
            raise UsageError(f"{path}: may not be written")


def written(path: Path | None, content: bytes) -> bool:
    """Whether it is there, or nobody asked for it. Before anything is printed: a pipe may have ended."""
    if path is None:
        return True
    try:
        path.write_bytes(content)
    except OSError as error:
        complain(f"{path}: {error.strerror}")
        return False
    return True


def tell(text: str) -> None:
    """To stdout."""
    fault = say(text, sys.stdout)
    if fault is not None and not isinstance(fault, BrokenPipeError):
        complain(f"stdout: {fault.strerror}")


def complain(text: str) -> None:
    """What is wrong, to stderr."""
    say(f"loadtest: {text}", sys.stderr)


def say(text: str, stream: TextIO) -> OSError | None:
    """A line to a stream that perhaps nobody reads: the run goes on, and the exit code stays what it is."""
    try:
        print(text, file=stream, flush=True)
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())  # Python flushes once more at its end
        return error
    return None
