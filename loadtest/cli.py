"""`classpulse loadtest …`: what is asked, whether it may be, and the exit code: 0 held, 1 not, 2 bad usage."""

import argparse
import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from math import ceil
from pathlib import Path
from types import FrameType
from typing import Final

import msgspec
import trio

from loadtest import (
    capacity,
    comparison,
    durations,
    faults,
    local,
    outputs,
    promises,
    report,
    scenarios,
    shapes,
    target,
)
from loadtest import result as results
from loadtest.display import display, text
from loadtest.errors import CannotTryError, InterruptedSearchError, LoadTestError, UsageError, all_of
from loadtest.interrupts import endings
from loadtest.local import Servers
from loadtest.options import DEFAULT_URL, MOST_SUBSCRIBERS, MOST_WORKERS, changed, parser
from loadtest.plan import Plan
from loadtest.progress import Display
from loadtest.runner import Run, new_run
from loadtest.scenarios import Scenario
from loadtest.shapes import Shape
from loadtest.target import Target

HELD, BROKEN, USAGE = 0, 1, 2
# A search is bounded like a run.
LONGEST_STEP_S: Final = scenarios.LONGEST_S / (2 * capacity.MOST_PROBES)
ENDED: Final = "ended by a signal, before all was done"
# Room for events beside the rate, one for so many: calls for help come on top of it, and chance has its part.
ONE_MORE_IN: Final = 10
# httpx costs some 1 ms of CPU a request; above this rate a core is not enough for it and the daemon's neighbours.
HTTPX_UP_TO: Final = 100.0


def main(argv: Sequence[str] | None = None) -> int:
    """Run one load test; returns the exit code."""
    arguments = parser().parse_intermixed_args(argv)
    command: Callable[[argparse.Namespace], int] = COMMANDS.get(arguments.scenario, _play)
    before = {each: signal.signal(each, _interrupt) for each in endings()}
    try:
        return command(arguments)
    except UsageError as error:
        outputs.complain(str(error))
        return USAGE
    except LoadTestError as error:
        outputs.complain(str(error))
        return BROKEN
    except KeyboardInterrupt:
        outputs.complain(ENDED)
        return BROKEN
    except BaseExceptionGroup as group:
        return _told(group)
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    """Each is Ctrl-C wherever the run does not listen for it itself."""
    raise KeyboardInterrupt


def _told(group: BaseExceptionGroup[BaseException]) -> int:
    """What we raise on purpose, in a line; anything else is a bug and keeps its traceback."""
    known, rest = group.split((LoadTestError, KeyboardInterrupt))
    if rest is not None:
        raise rest
    assert known is not None
    found = all_of(known)
    for said in dict.fromkeys(str(error) or ENDED for error in found):
        outputs.complain(said)
    return USAGE if any(isinstance(error, UsageError) for error in found) else BROKEN


def _play(arguments: argparse.Namespace) -> int:
    if of_capacity := {"--step", "--most"}.intersection(changed(arguments)):
        raise UsageError(f"{min(of_capacity)} is of capacity")
    scenario_name = _scenario_name(arguments)
    scenario = _tuned(arguments, scenarios.find(scenario_name, arguments.speed))
    planned = _faults(arguments, scenario)
    drain_s = _drain_s(arguments)
    _check_limits(arguments)
    outputs.check(arguments.json, arguments.html)
    planned_events = ceil(scenario.events_per_s * scenario.duration_s)
    most = planned_events + (ceil(planned_events / ONE_MORE_IN) if arguments.scenario != "replay" else 0)
    if most > arguments.max_events:  # or the load would end on its way
        raise UsageError(f"up to {most:,} events are planned: say --max-events {most}")
    with _servers(arguments) as (found, servers):
        with display() as shown:
            run = _run(arguments, scenario_name, scenario, found, servers, drain_s=drain_s, shown=shown)
            run.faults = planned
            result = trio.run(run.play, strict_exception_groups=True)
        # Before the servers are stopped: that takes a while, and somebody may not want to wait for it.
        written = outputs.written(arguments.json, results.packed(result))
        written &= outputs.written(arguments.html, report.html(result).encode() if arguments.html else b"")
        outputs.tell(text(result))
    return HELD if result.ok and written else BROKEN


def _capacity(arguments: argparse.Namespace) -> int:
    if arguments.files or arguments.fault:
        raise UsageError("capacity takes no file and no fault")
    if arguments.html:
        raise UsageError("capacity writes no HTML")
    if arguments.duration is not None or arguments.shape is not None or arguments.speed != 1:
        raise UsageError("capacity takes no --duration, --shape or --speed: --step is how long it tries each size")
    if arguments.rate is not None and arguments.students is None:
        raise UsageError("capacity: --rate is of so many students: say --students too")
    base = scenarios.BUILT_IN["classroom-200"]
    step_s, drain_s = durations.seconds(arguments.step, "--step"), _drain_s(arguments)
    if not 0 < step_s <= LONGEST_STEP_S:
        raise UsageError(
            f"--step: over 0, at most {durations.written(LONGEST_STEP_S)}: "
            f"up to {capacity.MOST_PROBES} sizes are tried, each of them twice at most"
        )
    base = replace(base, shape=Shape(((0.0, 0.0), (step_s / 3, 1.0), (step_s, 1.0))))
    promised = scenarios.PROMISED if arguments.slo is None else promises.parse(arguments.slo)
    _check_limits(arguments)
    outputs.check(arguments.json, arguments.html)
    asked = arguments.students
    if arguments.most > scenarios.MOST_PEOPLE:
        raise UsageError(f"--most: at most {scenarios.MOST_PEOPLE}")
    if asked is not None and asked > arguments.most:
        raise UsageError(f"--students {asked} is more than --most {arguments.most}")
    rate = base.events_per_s / base.students
    if arguments.rate is not None and asked is not None:
        rate = arguments.rate / asked
    with _servers(arguments) as (found, servers):
        shown = display()

        async def probe(students: int) -> capacity.Probe:
            scenario = scenarios.tuned(
                base,
                students=students,
                classes=max(arguments.classes or 1, -(-students // scenarios.CLASS_SIZE)),
                instructors=arguments.instructors,
                events_per_s=rate * students,
                promised=promised,
            )
            run = _run(arguments, "classroom-200", scenario, found, servers, drain_s=drain_s, shown=shown)
            result = await run.play()
            if result.capped:
                raise CannotTryError(f"{students} students send more than --max-events {arguments.max_events}")
            if result.interrupted:
                raise InterruptedSearchError
            found_here = capacity.probe_of(students, result)
            shown.say(f"{students} students: {'held' if found_here.held else f'broke {found_here.broke_first}'}")
            return found_here

        search = partial(
            capacity.search, capacity.confirmed(probe), first=min(50, arguments.most), most=arguments.most, asked=asked
        )
        with shown:
            answer = trio.run(search, strict_exception_groups=True)
        written = outputs.written(arguments.json, msgspec.json.format(msgspec.json.encode(answer), indent=1) + b"\n")
        outputs.tell(answer.text())
    return HELD if answer.ok and written else BROKEN


def _compare(arguments: argparse.Namespace) -> int:
    if len(arguments.files) != 2:
        raise UsageError("compare: expected two files")
    if arguments.json or arguments.html:
        raise UsageError("compare writes no file")
    if ignored := changed(arguments):
        raise UsageError(f"compare takes two files, and no {ignored[0]}")
    before, after = (results.read(path) for path in arguments.files)
    outputs.tell(comparison.table(before, after))
    worse = comparison.broke(before, after) or (before.ok and not after.ok)
    return BROKEN if worse else HELD


COMMANDS: Final = {"capacity": _capacity, "compare": _compare}


def _scenario_name(arguments: argparse.Namespace) -> str:
    files: list[Path] = arguments.files
    if arguments.scenario == "replay":
        if len(files) != 1:
            raise UsageError("replay: expected one file")
        if arguments.rate is not None:
            raise UsageError("replay keeps the distances of the recording: --speed changes them, --rate cannot")
        return f"replay:{files[0].resolve()}"
    if arguments.speed != 1:
        raise UsageError("--speed is of replay")
    if files:
        raise UsageError(f"what is {files[0]}? Only replay and compare take files")
    name: str = arguments.scenario
    return str(Path(name).resolve()) if name.endswith(".py") else name


def _tuned(arguments: argparse.Namespace, scenario: Scenario) -> Scenario:
    return scenarios.tuned(
        scenario,
        students=arguments.students,
        classes=1 if arguments.class_id else arguments.classes,
        instructors=arguments.instructors,
        events_per_s=arguments.rate,
        duration_s=None if arguments.duration is None else durations.seconds(arguments.duration, "--duration"),
        shape=None if arguments.shape is None else shapes.parse(arguments.shape),
        promised=promises.parse(arguments.slo) if arguments.slo is not None else None,
    )


def _drain_s(arguments: argparse.Namespace) -> float:
    drain_s = durations.seconds(arguments.drain, "--drain")
    if drain_s > scenarios.LONGEST_S:
        raise UsageError(f"--drain: at most {scenarios.LONGEST_S / 3600:.0f} h")
    return drain_s


def _faults(arguments: argparse.Namespace, scenario: Scenario) -> list[faults.Fault]:
    planned = [faults.parse(text) for text in arguments.fault]
    if planned and not arguments.local:
        raise UsageError("--fault needs --local: only servers that we started are ours to break")
    for fault in planned:
        if fault.at_s + fault.for_s > scenario.duration_s:
            raise UsageError(f"fault {fault.text} is not over when the load ends, at {scenario.duration_s:g} s")
    planned.sort(key=lambda fault: fault.at_s)
    for fault, after in pairwise(planned):
        if after.at_s < fault.at_s + fault.for_s:
            raise UsageError(f"fault {after.text} begins before {fault.text} is over: one at a time")
    return planned


def _check_limits(arguments: argparse.Namespace) -> None:
    if arguments.workers > MOST_WORKERS:
        raise UsageError(f"--workers: at most {MOST_WORKERS}")
    if (arguments.subscribers or 0) > MOST_SUBSCRIBERS:
        raise UsageError(f"--subscribers: at most {MOST_SUBSCRIBERS}")


@contextlib.contextmanager
def _servers(arguments: argparse.Namespace) -> Iterator[tuple[Target, Servers | None]]:
    """The target, and our servers when we started some."""
    key = None
    if arguments.key_file is not None:
        try:
            key = arguments.key_file.read_text(encoding="ascii").strip()
        except OSError as error:
            raise UsageError(f"{arguments.key_file}: {error.strerror}") from error
        except UnicodeDecodeError:
            key = ""
        if not key.isprintable() or not key or " " in key:
            raise UsageError(f"{arguments.key_file}: holds no access key: expected one line of ASCII")
    if not arguments.local:
        url = DEFAULT_URL if arguments.target is None else arguments.target
        yield target.allowed(url, arguments.i_own_this_host, key), None
        return
    if arguments.target is not None or arguments.dsn:
        raise UsageError("--local starts its own servers: no --target and no --dsn beside it")
    outputs.say("starting PostgreSQL and the daemon", sys.stderr)
    with local.running() as servers:
        yield target.allowed(servers.daemon.address, None, key), servers


def _run(
    arguments: argparse.Namespace,
    name: str,
    scenario: Scenario,
    found: Target,
    servers: Servers | None,
    *,
    drain_s: float,
    shown: Display,
) -> Run:
    transport = arguments.transport
    if transport == "auto":
        transport = "httpx" if scenario.events_per_s <= HTTPX_UP_TO else "lean"
    plan = Plan(
        scenario_name=name,
        run=new_run(),
        seed=arguments.seed,
        url=found.url,
        key=found.key,
        students=scenario.students,
        classes=scenario.classes,
        instructors=scenario.instructors,
        events_per_s=scenario.events_per_s,
        corners=scenario.shape.corners,
        speed=arguments.speed,
        closed=arguments.closed,
        transport=transport,
        class_id=arguments.class_id,
        most_events=arguments.max_events,
    )
    options = {
        "students": scenario.students,
        "classes": scenario.classes,
        "instructors": scenario.instructors,
        "subscribers": scenario.instructors if arguments.subscribers is None else arguments.subscribers,
        "events_per_s": scenario.events_per_s,
        "duration_s": scenario.duration_s,
        "shape": " ".join(f"{at_s:g}s@{share:.0%}" for at_s, share in scenario.shape.corners),
        "speed": arguments.speed,
        "class": arguments.class_id or "fresh",
        "loop": "closed" if arguments.closed else "open",
        "transport": transport,
        "workers": arguments.workers,
        "seed": arguments.seed,
        "run": plan.run,
    }
    return Run(
        plan,
        shown,
        promises=scenario.promises,
        workers=arguments.workers,
        subscribers=arguments.subscribers,
        dsn=servers.dsn if servers is not None else arguments.dsn or os.environ.get("LOADTEST_DSN"),
        servers=servers,
        drain_s=drain_s,
        options=options,
    )


if __name__ == "__main__":
    sys.exit(main())
