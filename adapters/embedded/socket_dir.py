"""The private directory of the server's socket: short, 0700, the account's own."""

import os
import pwd
import tempfile
from contextlib import suppress
from pathlib import Path

from adapters.embedded.account import barrier_to, give
from engine.errors import StartError

_SOCKET = ".s.PGSQL.5432"
_SOCKET_PREFIX = "classpulse-pg-"
_SOCKET_BASE_MAX = 64  # bytes; base + "/classpulse-pg-xxxxxxxx" + "/.s.PGSQL.5432" must fit 103 (macOS; Linux has 107)


def make_socket_dir(account: pwd.struct_passwd | None, again: Path | None) -> Path:
    """A 0700 directory with a path short enough for a socket, named as ``again`` if that name is still free."""
    if again is not None:
        with suppress(OSError):
            again.mkdir(0o700)
            give(again, account)
            return again
    for base in (os.environ.get("RUNTIME_DIRECTORY", "").partition(":")[0], tempfile.gettempdir(), "/tmp"):  # noqa: S108
        if base and len(os.fsencode(base)) <= _SOCKET_BASE_MAX and not (account and barrier_to(account, Path(base))):
            with suppress(OSError):
                made = Path(tempfile.mkdtemp(prefix=_SOCKET_PREFIX, dir=base))
                give(made, account)
                return made
    raise StartError(
        "no place for PostgreSQL's socket: RUNTIME_DIRECTORY, TMPDIR and /tmp are too long or closed to it"
    )


def remove_socket_dir(path: Path, owner: int, *, only_empty: bool = False) -> None:
    """Remove a directory that ``make_socket_dir`` made for ``owner``; with ``only_empty``, only if nothing is in it."""
    with suppress(OSError):
        if path.name.startswith(_SOCKET_PREFIX) and not path.is_symlink() and path.stat().st_uid == owner:
            for name in () if only_empty else (_SOCKET, f"{_SOCKET}.lock"):
                (path / name).unlink(missing_ok=True)
            path.rmdir()
