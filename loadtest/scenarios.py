"""What is played: how many people of which kinds, how fast, for how long, and what must hold.

A scenario of one's own is a Python file that binds `SCENARIO` to a `Scenario`.
"""

import random
import runpy
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, TypeAlias

from loadtest import promises, shapes
from loadtest.errors import UsageError
from loadtest.promises import Promise
from loadtest.shapes import Shape
from loadtest.students import BurstyClass, Instructor, StuckStudent, Student
from loadtest.users import Person, VirtualUser

Kind: TypeAlias = Callable[[Person, str, float], VirtualUser]

# Limits of any run: what a mistake may cost. In people, seconds, and events a second.
MOST_PEOPLE: Final = 50_000
LONGEST_S: Final = 6 * 3600.0
HIGHEST_RATE: Final = 100_000.0
# Time between two looks of an instructor, in seconds.
LOOK_EVERY_S: Final = 2.0
TEAMS: Final = 40
# Students in one class of a capacity search at most: the daemon's limits.users_per_class is far above.
CLASS_SIZE: Final = 1000

PROMISED: Final = promises.parse("p99<100ms, notify_p99<1s, errors<0.1%")
# Of one class of 200 on a machine that also makes the load: a teacher sees what happens as it happens.
PROMISED_A_CLASS: Final = promises.parse("p99<25ms, notify_p99<150ms, errors<0.1%")


@dataclass(frozen=True)
class Scenario:
    """`mix` gives each kind of student its weight; `events_per_s` is of all students together, all at work."""

    name: str
    says: str
    students: int
    events_per_s: float
    shape: Shape
    promises: tuple[Promise, ...] = PROMISED
    classes: int = 1
    instructors: int = 1
    mix: tuple[tuple[Kind, float], ...] = ((Student, 0.95), (StuckStudent, 0.05))

    @property
    def duration_s(self) -> float:
        """Length of the load."""
        return self.shape.duration_s

    def checked(self) -> "Scenario":
        """Itself, when it is within bounds; else UsageError."""
        weights = [weight for _, weight in self.mix]
        least_s = max((getattr(kind, "least_s", 0.0) for kind, _ in self.mix), default=0.0)
        faults = {
            "mix: at least one kind of student, no weight under 0, not all 0": min(weights, default=-1)
            >= 0
            < sum(weights),
            f"students: 1 to {MOST_PEOPLE}": 1 <= self.students <= MOST_PEOPLE,
            "classes: 1 to the number of students": 1 <= self.classes <= self.students,
            "instructors: 0 to 2000": 0 <= self.instructors <= 2000,
            f"duration: over {least_s:g} s, at most {LONGEST_S / 3600:.0f} h": least_s < self.duration_s <= LONGEST_S,
            f"rate: over 0, at most {HIGHEST_RATE:,.0f} events a second": 0 < self.events_per_s <= HIGHEST_RATE,
        }
        for fault, holds in faults.items():
            if not holds:
                raise UsageError(f"{self.name}: {fault}")
        return self

    def person(self, index: int, run: str, class_id: str | None = None) -> Person:
        """The person with that index: students first, then instructors; classes take turns."""
        number = index if index < self.students else index - self.students
        where = f"lt-{run}-{number % self.classes:02}" if class_id is None else class_id
        if index >= self.students:
            return Person(index, where, f"{run}-instructor{number}", f"Instructor {number}", "")
        name = f"山田 太郎 {number}" if number % 4 == 0 else f"Taro Yamada {number}"
        return Person(index, where, student_id(run).format(number), name, f"Team {number % TEAMS:02}")

    def user(self, person: Person, seed: str, run: str) -> VirtualUser:
        """That person at work."""
        if person.index >= self.students:
            own = range((person.index - self.students) % self.classes, self.students, self.classes)
            return Instructor(person, seed, LOOK_EVERY_S, own, student_id(run))
        kinds = [kind for kind, _ in self.mix]
        weights = [weight for _, weight in self.mix]
        drawn = random.Random(f"{seed}/kind/{person.index}")  # noqa: S311 - not for secrets
        (kind,) = drawn.choices(kinds, weights)
        return kind(person, seed, self.students / self.events_per_s)


def student_id(run: str) -> str:
    """The user ids of a run's students, as a format with the place of the index."""
    return f"{run}-student{{:05}}@example.com"


BUILT_IN: Final = {
    scenario.name: scenario
    for scenario in (
        Scenario(
            "classroom-200",
            "the promise: one class of 200, hundreds of events a second",
            students=200,
            events_per_s=300,
            instructors=2,
            shape=shapes.parse("ramp:10s hold:50s"),
            promises=PROMISED_A_CLASS,
        ),
        Scenario(
            "lecture-1000",
            "one lecture of 1,000",
            students=1000,
            events_per_s=500,
            instructors=3,
            shape=shapes.parse("ramp:15s hold:45s"),
        ),
        Scenario(
            "campus-5000",
            "20 classes of 250, each with an instructor",
            students=5000,
            events_per_s=1500,
            classes=20,
            instructors=20,
            shape=shapes.parse("ramp:30s hold:60s"),
        ),
        Scenario(
            "burst",
            "1,000 students run the same cell within 2 s, again and again",
            students=1000,
            events_per_s=500,
            instructors=2,
            shape=shapes.parse("ramp:5s hold:15s"),  # ends with the second burst, so that `drain` is a burst's
            mix=((BurstyClass, 1.0),),
            promises=promises.parse("errors<=0%, alert_max<1s, drain<5s"),
        ),
        Scenario(
            "soak",
            "one class of 200 for 20 minutes: does anything grow?",
            students=200,
            events_per_s=300,
            instructors=2,
            shape=shapes.parse("ramp:30s hold:1170s"),
            promises=(*PROMISED, *promises.parse("memory_slope<=1MB, lag_slope<=1s, drain<5s")),
        ),
    )
}


def find(name: str, speed: float = 1.0) -> Scenario:
    """A built-in scenario by name, a `.py` file's `SCENARIO`, or `replay:FILE`; UsageError when there is none."""
    from loadtest.recording import scenario_of  # noqa: PLC0415 - which needs this module

    kind, _, rest = name.partition(":")
    if kind == "replay" and rest:
        return scenario_of(Path(rest), speed)
    if name.endswith(".py"):
        return _from_file(Path(name))
    found = BUILT_IN.get(name)
    if found is None:
        raise UsageError(
            f"no scenario {name!r}; there are {', '.join(BUILT_IN)}, replay FILE, and files of yours (.py)"
        )
    return found


def _from_file(path: Path) -> Scenario:
    if (beside := str(path.resolve().parent)) not in sys.path:
        sys.path.insert(0, beside)  # as for a program: it may import its neighbours
    try:
        found = runpy.run_path(str(path)).get("SCENARIO")
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or error}") from error
    except Exception as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        where = f", line {lines[-1]}" if lines else ""
        raise UsageError(f"{path}{where}: {type(error).__name__}: {error}") from error
    if not isinstance(found, Scenario):
        raise UsageError(f"{path}: binds no SCENARIO to a loadtest.scenarios.Scenario")
    sizes: dict[str, type] = {"students": int, "classes": int, "instructors": int, "events_per_s": float}
    for name, wanted in sizes.items():
        number = getattr(found, name)
        if isinstance(number, bool) or not isinstance(number, int | wanted):
            raise UsageError(f"{path}: {name}: expected a number, got {number!r}")
    if not isinstance(found.shape, Shape):
        raise UsageError(f"{path}: shape: expected shapes.parse(…), got {found.shape!r}")
    if not isinstance(found.promises, tuple) or not all(isinstance(each, Promise) for each in found.promises):
        raise UsageError(f"{path}: promises: expected promises.parse(…), got {found.promises!r}")
    if not all(isinstance(each, tuple) and len(each) == 2 and callable(each[0]) for each in found.mix):
        raise UsageError(f"{path}: mix: expected pairs of a class and its weight, such as ((Student, 1.0),)")
    for kind, _ in found.mix:
        if not isinstance(kind, type) or not issubclass(kind, VirtualUser):
            continue
        if kind.steps is VirtualUser.steps and not kind.tasks:
            raise UsageError(f"{path}: {kind.__name__} has no task: mark a method with @task")
    return found


def tuned(
    scenario: Scenario,
    *,
    students: int | None = None,
    classes: int | None = None,
    instructors: int | None = None,
    events_per_s: float | None = None,
    duration_s: float | None = None,
    shape: Shape | None = None,
    promised: tuple[Promise, ...] | None = None,
) -> Scenario:
    """The scenario with what the command line changes. Fewer students keep their own pace unless a rate is given."""
    size = students or scenario.students
    chosen = shape or scenario.shape
    if duration_s is not None:
        chosen = chosen.lasting(duration_s)
    found = replace(
        scenario,
        students=size,
        classes=classes or min(scenario.classes, size),
        instructors=scenario.instructors if instructors is None else instructors,
        events_per_s=scenario.events_per_s * size / scenario.students if events_per_s is None else events_per_s,
        shape=chosen,
        promises=scenario.promises if promised is None else promised,
    ).checked()
    if _load(found) == _load(scenario):
        return found
    students, classes, events_per_s, shape = _load(found)
    here = f"{students:,} students in {classes} classes, {events_per_s:,.0f} events/s, {shape.duration_s:,.0f} s"
    return replace(found, says=f"{scenario.says} (here {here})")


def _load(scenario: Scenario) -> tuple[int, int, float, Shape]:
    """What the text about it may tell of."""
    return scenario.students, scenario.classes, scenario.events_per_s, scenario.shape
