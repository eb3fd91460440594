"""Virtual users: classes with weighted tasks.

A user is a generator of steps: wait so long, then do that. It reads no clock and no answer, so the same seed gives
the same steps, and a run can keep to them whatever the server does (the open loop).

    class Student(VirtualUser):
        @task(10)
        def run_cell(self) -> Steps:
            yield self.think(), self.post("cell_executed", cellIndex=3)
"""

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from math import inf
from typing import Any, ClassVar, Final, TypeAlias, TypeVar, overload

from loadtest.errors import UsageError

U = TypeVar("U", bound="VirtualUser")
# Tasks in a row that yield no step: then there is none to come.
_MOST_EMPTY: Final = 10_000


@dataclass(frozen=True, slots=True)
class Person:
    """Who a virtual user is; `index` is its number in the run."""

    index: int
    class_id: str
    user_id: str
    name: str
    team: str


@dataclass(frozen=True, slots=True)
class Post:
    """One event to send. Its id and time are given when it is due: the time is that of the step.

    `alert` is the kind of alert that it must raise, or none; `execution` and `failed` say what it counts as.
    """

    fields: dict[str, Any]
    alert: str = ""
    execution: bool = False
    failed: bool = False


@dataclass(frozen=True, slots=True)
class Get:
    """One query."""

    path: str


Action: TypeAlias = Post | Get
Step: TypeAlias = tuple[float, Action]  # seconds to wait, then what to do
Steps: TypeAlias = Iterator[Step]
Task: TypeAlias = Callable[[Any], Steps]


@overload
def task(weight: float) -> Callable[[Callable[[U], Steps]], Callable[[U], Steps]]: ...
@overload
def task(weight: Callable[[U], Steps]) -> Callable[[U], Steps]: ...
def task(weight: Any) -> Any:
    """Mark a method as a task, `@task(3)` or `@task` (weight 1); of all one is drawn by weight, again and again.

    UsageError for a weight that is not over 0.
    """
    if not callable(weight) and not 0 < weight < inf:
        raise UsageError(f"@task({weight}): a weight is a number over 0")

    def mark(method: Callable[[U], Steps]) -> Callable[[U], Steps]:
        method.__dict__["weight"] = 1.0 if callable(weight) else weight
        return method

    return mark(weight) if callable(weight) else mark


class VirtualUser:
    """Somebody with tasks. Subclasses may have `begin`, done once, and at least one task."""

    tasks: ClassVar[Sequence[Task]] = ()
    weights: ClassVar[Sequence[float]] = ()
    endless: ClassVar[bool] = True  # whether its steps have no end of themselves
    least_s: ClassVar[float] = 0.0  # a load that is not longer (seconds) does not come to what this one is for

    def __init_subclass__(cls) -> None:
        """Gather the tasks, inherited ones first."""
        names = dict.fromkeys(name for base in reversed(cls.__mro__) for name in vars(base))
        found = [method for name in names if hasattr(method := getattr(cls, name), "weight")]
        cls.tasks = tuple(found)
        cls.weights = tuple(vars(method)["weight"] for method in found)

    def __init__(self, person: Person, seed: str, pace_s: float) -> None:
        """`pace_s` is the mean time between two actions, in seconds."""
        self.person = person
        # Each has a source of its own, so that the number of workers changes nobody's steps.
        self.random = random.Random(f"{seed}/{person.index}")  # noqa: S311 - not for secrets
        self.pace_s = pace_s
        self.offset_s = 0.0  # when the last step was due, since the run's begin
        self._asides: list[tuple[float, int, Action]] = []  # a heap: when it is due, in which order it was made, what
        self._made = 0
        self._given = 0  # steps

    def steps(self, begin_s: float = 0.0) -> Steps:
        """All steps from `begin_s` after the run's begin, without end. UsageError when there are none."""
        if not self.tasks:
            raise UsageError(f"{type(self).__name__} has no task: mark a method with @task")
        self.offset_s = begin_s
        yield from self._counted(self.begin())
        empty = 0
        while True:
            (chosen,) = self.random.choices(self.tasks, self.weights)
            before = self._given
            yield from self._counted(chosen(self))
            empty = empty + 1 if self._given == before else 0
            if empty > _MOST_EMPTY:
                raise UsageError(f"{type(self).__name__}: its tasks yield no step")

    def _counted(self, steps: Steps) -> Steps:
        """The steps, with what was put off until `later` between them."""
        if not isinstance(steps, Iterable):
            raise UsageError(f"{type(self).__name__}: a task yields steps, and one of its tasks does not")
        for step in steps:
            match step:
                case (int() | float() as wait_s, Post() | Get() as action) if 0 <= wait_s < inf:
                    pass
                case _:
                    raise UsageError(
                        f"{type(self).__name__}: a task yields (seconds from 0 on, action), and one yields {step!r}"
                    )
            due_s = self.offset_s + wait_s
            while self._asides and self._asides[0][0] <= due_s:
                aside_s, _, aside = heappop(self._asides)
                yield self._step(aside_s, aside)
            yield self._step(due_s, action)

    def _step(self, due_s: float, action: Action) -> Step:
        wait_s = max(0.0, due_s - self.offset_s)
        self.offset_s += wait_s
        self._given += 1
        return wait_s, action

    def later(self, offset_s: float, action: Action) -> None:
        """Do this at that moment of the run, beside whatever the tasks do."""
        self._made += 1
        heappush(self._asides, (offset_s, self._made, action))

    def begin(self) -> Steps:
        """What comes first; nothing by default."""
        return iter(())

    def think(self, mean_s: float | None = None) -> float:
        """Seconds until the next action, around the pace: short and long ones, none far out (gamma, shape 2)."""
        return self.random.gammavariate(2, (self.pace_s if mean_s is None else mean_s) / 2)

    def until(self, offset_s: float) -> float:
        """Seconds from the last step to a moment of the run; 0 when it is over."""
        return max(0.0, offset_s - self.offset_s)
