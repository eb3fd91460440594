"""Taking up a changed configuration while the daemon runs."""

from collections.abc import Callable, Mapping
from typing import Any

import structlog

from config.errors import ConfigError
from config.settings import KEYS, Settings

log = structlog.get_logger("config")


class Reloader:
    """Reads the configuration again and applies what may change without a restart. A bad one changes nothing."""

    def __init__(
        self, settings: Settings, read: Callable[[], Settings], apply: Mapping[str, Callable[[Any], object]]
    ) -> None:
        """``apply`` has, for each key (dotted) that may change, who takes its new value."""
        self._running = values(settings)
        self._read = read
        self._apply = apply

    def reload(self) -> None:
        """Never raises for a configuration that is not sound: it is logged, and the old one stays."""
        try:
            wanted = values(self._read())
        except ConfigError as error:
            log.error("configuration not reloaded: it has faults", faults=error.faults)  # noqa: TRY400 - theirs, not ours
            return
        changed = [name for name, value in wanted.items() if value != self._running[name]]
        applied = [name for name in changed if name in self._apply]
        for name in applied:
            self._apply[name](wanted[name])
            self._running[name] = wanted[name]
        log.info("configuration reloaded", applied=applied, need_restart=[key for key in changed if key not in applied])


def values(settings: Settings) -> dict[str, Any]:
    """Every key (dotted) and its value."""
    return {name: _value(settings, name) for name in KEYS}


def _value(settings: Settings, name: str) -> Any:
    section, _, key = name.rpartition(".")
    return getattr(getattr(settings, section) if section else settings, key)
