"""Tests that cannot run on this machine."""

import os
from typing import NoReturn

import pytest


def unable(message: str) -> NoReturn:
    """Skip on a laptop, loudly; fail where CI is set."""
    if os.environ.get("CI"):
        pytest.fail(message)
    pytest.skip(message)
