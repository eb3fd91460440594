"""The harness within the bench: one run of `classpulse loadtest`, with its own code."""

import contextlib
import os
import sys

from loadtest import cli
from loadtest import result as results
from loadtest.bench.measures import Bench
from loadtest.errors import LoadTestError
from loadtest.result import Result


def play(bench: Bench, label: str, scenario: str, *arguments: str) -> Result:
    """What the command found. It may use both cores, and so may what it starts; LoadTestError when it found nothing."""
    path = bench.directory / f"{label}.json"
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {bench.cores.server, bench.cores.load})
    try:
        with contextlib.redirect_stdout(sys.stderr):
            cli.main([scenario, *arguments, "--json", str(path)])
    finally:
        os.sched_setaffinity(0, before)
    if not path.exists():
        raise LoadTestError(f"{scenario}: no result")
    found = results.read(path)
    if found.interrupted:
        raise KeyboardInterrupt
    return found


def figure(found: Result, name: str) -> float:
    """Times in seconds; NaN when it was not measured."""
    return _or_nan(found.figures[name])


def daemon_cores(found: Result) -> float:
    """The daemon's CPU while it was loaded, in cores; NaN when nobody saw it."""
    return _or_nan(found.while_loaded(lambda sample: sample.cpu_cores))


def faults(found: Result) -> list[str]:
    """What was lost, doubled or not told, by account."""
    return [f"{check.name}: {check.faults} faults {check.event_ids}" for check in found.checks if not check.held]


def _or_nan(value: float | None) -> float:
    return float("nan") if value is None else value
