"""The daemon that end-to-end tests share, and what else runs need."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from loadtest.processes import free_port
from tests.e2e.conftest import shared_daemon, shared_database  # noqa: F401 - fixtures
from tests.e2e.daemon import REPOSITORY


@pytest.fixture
def unused_port() -> int:
    return free_port()


@pytest.fixture
def command():
    """``classpulse loadtest …`` as a process: gives its exit code and output."""

    def run(*arguments, within=120):
        return subprocess.run(
            [sys.executable, "-m", "engine", "loadtest", *map(str, arguments)],
            cwd=REPOSITORY,
            env=environment(),
            capture_output=True,
            text=True,
            timeout=within,
            check=False,
        )

    return run


def environment():
    return {key: value for key, value in os.environ.items() if not key.startswith("CLASSPULSE_")}


RECORDINGS = Path(__file__).parents[1] / "recordings"
