"""The configuration: a file, the environment and secrets, checked as a whole before anything starts."""

from config.errors import ConfigError
from config.loading import load
from config.reloading import Reloader
from config.settings import Settings

__all__ = ["ConfigError", "Reloader", "Settings", "load"]
