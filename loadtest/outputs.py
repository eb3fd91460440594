"""Where results go: files that can be written, and a stdout that somebody may have stopped reading."""

import os
import sys
from pathlib import Path

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
        print(f"loadtest: {path}: {error.strerror}", file=sys.stderr)
        return False
    return True


def tell(text: str) -> None:
    """To stdout; the exit code stays what it is when nobody reads it."""
    try:
        print(text, flush=True)
    except OSError as error:
        if not isinstance(error, BrokenPipeError):
            print(f"loadtest: stdout: {error.strerror}", file=sys.stderr)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more at its end
