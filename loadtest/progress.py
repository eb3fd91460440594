"""How a run goes while it goes, and who shows it."""

from dataclasses import dataclass
from typing import Protocol

from loadtest.generator import Tick
from loadtest.histograms import Histogram
from loadtest.monitor import Monitor


@dataclass
class Progress:
    """How it goes."""

    offset_s: float
    duration_s: float
    tick: Tick
    alerts: Histogram
    monitor: Monitor


class Display(Protocol):
    """Who shows how it goes."""

    def say(self, text: str) -> None:
        """A step of the run."""

    def tick(self, news: Progress) -> None:
        """Once a second, while it is loaded."""
