"""The composition root: the one place that imports every room."""

from adapters.systemd import Manager

from .commands import check, migrate
from .daemon import App

__all__ = ["App", "Manager", "check", "migrate"]
