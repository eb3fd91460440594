"""Who runs PostgreSQL: this process's own user, or for root an unprivileged one; what that user reaches and gets."""

import os
import pwd
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

from engine.errors import StartError

_ACCOUNTS = ("classpulse", "postgres", "nobody")  # who runs PostgreSQL for root, in order of preference


def account_of(directory: Path) -> pwd.struct_passwd | None:
    """Who must run PostgreSQL: None means this process's own user, which is right unless that is root."""
    owner = directory.stat().st_uid if directory.exists() else None
    if (me := os.geteuid()) != 0:
        if owner not in (None, me):
            raise StartError(f"{directory} belongs to user id {owner}: run classpulse as that user, or as root")
        return None
    with suppress(KeyError):
        if owner:
            return pwd.getpwuid(owner)
    for name in _ACCOUNTS if not owner else ():
        with suppress(KeyError):
            return pwd.getpwnam(name)
    missing = f"user id {owner}, the owner of {directory}," if owner else "a user for it"
    raise StartError(f"PostgreSQL refuses to run as root, and {missing} does not exist: `useradd --system classpulse`")


def child_options(account: pwd.struct_passwd | None) -> dict[str, Any]:
    """Options of a child: its user, no secret of ours in its environment, its own session out of Ctrl-C's reach."""
    environment = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ}
    environment |= {"LC_ALL": "C", "TZ": "UTC"}
    user = {} if account is None else {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
    return {"stdin": subprocess.DEVNULL, "cwd": "/", "start_new_session": True, "env": environment, **user}


def shell(account: pwd.struct_passwd, script: str, *arguments: Path) -> subprocess.CompletedProcess[bytes]:
    """Run the script as the account, for 60 s at most, whatever its exit code."""
    command: list[str | Path] = ["/bin/sh", "-c", script, "sh", *arguments]
    done: subprocess.CompletedProcess[bytes]
    done = subprocess.run(command, capture_output=True, check=False, timeout=60, **child_options(account))  # noqa: S603
    return done


def barrier_to(account: pwd.struct_passwd, path: Path) -> Path | None:
    """The first directory on the way into ``path`` that the account cannot enter. Asked as it: modes tell half."""
    script = 'for d; do cd "$d" 2>/dev/null || { printf %s "$d"; exit 1; }; done'
    blocked = shell(account, script, *reversed(path.parents), path).stdout
    return Path(os.fsdecode(blocked)) if blocked else None


def give(path: Path, account: pwd.struct_passwd | None) -> None:
    """Make the account the owner; without one, this process's user is it already."""
    if account is not None:
        os.chown(path, account.pw_uid, account.pw_gid, follow_symlinks=False)
