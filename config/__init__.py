from config.errors import ConfigError
from config.loading import is_loopback, load
from config.reloading import Reloader
from config.settings import Auth, Broadcast, Http, Journal, Postgres, Session, Settings, Stuck

__all__ = [
    "Auth",
    "Broadcast",
    "ConfigError",
    "Http",
    "Journal",
    "Postgres",
    "Reloader",
    "Session",
    "Settings",
    "Stuck",
    "is_loopback",
    "load",
]
