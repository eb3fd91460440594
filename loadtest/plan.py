"""One run as it can be told to a worker process: what to play against which daemon, and which share of it."""

import time
from functools import cached_property

import msgspec

from loadtest import scenarios
from loadtest.scenarios import Scenario
from loadtest.shapes import Shape
from loadtest.target import Target


class Plan(msgspec.Struct, frozen=True, dict=True):
    """See the command line for what each option means."""

    scenario_name: str
    run: str  # eight characters that all ids of this run begin with
    seed: str
    url: str
    key: str | None
    students: int
    classes: int
    instructors: int
    events_per_s: float
    corners: tuple[tuple[float, float], ...]  # of the shape
    speed: float = 1.0
    closed: bool = False
    transport: str = "lean"
    class_id: str | None = None
    most_events: int = 2_000_000
    grace_s: float = 10.0  # for what is due and not answered when the load ends

    def __repr__(self) -> str:
        """Without the key: a traceback may be shown to others."""
        return f"Plan({self.scenario_name!r}, run={self.run!r}, url={self.url!r})"

    @cached_property
    def scenario(self) -> Scenario:
        """What is played."""
        return scenarios.tuned(
            scenarios.find(self.scenario_name, self.speed),
            students=self.students,
            classes=self.classes,
            instructors=self.instructors,
            events_per_s=self.events_per_s,
            shape=Shape(self.corners),
        )

    @property
    def target(self) -> Target:
        """The daemon, already found to be allowed."""
        return Target(self.url, self.key)

    @property
    def people(self) -> int:
        """Students and instructors."""
        return self.students + self.instructors


class Clock(msgspec.Struct, frozen=True):
    """A run's time. One reading of the wall clock, so that a step of it in between moves nothing.

    CLOCK_MONOTONIC is one for all processes of a machine, so workers share it.
    """

    began: float  # time.monotonic
    epoch_s: float  # the wall clock then

    @property
    def offset_s(self) -> float:
        """Seconds since the run began."""
        return time.monotonic() - self.began

    def wall_ms(self, offset_s: float) -> int:
        """A moment of the run in milliseconds since the epoch."""
        return int((self.epoch_s + offset_s) * 1000)

    def offset_of(self, wall_ms: float) -> float:
        """The other way."""
        return wall_ms / 1000 - self.epoch_s


def clock(delay_s: float) -> Clock:
    """A run that begins so soon."""
    return Clock(time.monotonic() + delay_s, time.time() + delay_s)
