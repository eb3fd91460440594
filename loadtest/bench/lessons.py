"""The rows of the scenarios: harness, daemon and stores together on two cores."""

from typing import Final

from loadtest import promises, scenarios
from loadtest.bench import harness
from loadtest.bench.measures import Bench
from loadtest.bench.report import Figure, Row
from loadtest.result import Judgement

# Each with the shape that is played here, and not its own where that takes too long.
NAMES: Final = {
    "classroom": ("classroom-200", "ramp:10s hold:20s"),
    "campus": ("campus-5000", "ramp:30s hold:20s"),
    "burst": ("burst", None),
}
WORDS: Final = {
    "p99": "API p99",
    "notify_p99": "notification p99",
    "errors": "requests failed at first",
    "alert_max": "slowest alert",
    "drain": "lag 0 after",
}


def lesson(bench: Bench, label: str) -> Row:
    """One scenario, as `classpulse loadtest NAME --local` plays it, in a shorter form."""
    name, shape = NAMES[label]
    scenario = scenarios.BUILT_IN[name]
    bench.say(f"{name}: {scenario.says}")
    found = harness.play(bench, label, name, "--local", *(("--shape", shape) if shape else ()))
    length = f"{found.options['duration_s']:.0f} s" + (f" of {scenario.duration_s:.0f}" if shape else "")
    row = Row(f"{name}, {length}: harness, daemon and stores on two cores")
    row.figures += [judged(each) for each in found.judgements]
    row.judge("lost, doubled or not told", sum(check.faults for check in found.checks), "events", 0)
    row.problems += harness.faults(found)
    row.add("events acknowledged", found.events["acknowledged"])
    row.add("a second", harness.figure(found, "rate"))
    for figure in ("p50", "notify_p50", "query_p99"):
        row.add(figure.replace("_", " "), 1000 * harness.figure(found, figure), "ms")
    row.add("highest lag", harness.figure(found, "lag_max"), "events")
    row.add("daemon's CPU", harness.daemon_cores(found), "cores")
    row.add("harness' CPU", found.generator.cpu_cores, "cores")
    row.notes += found.notes
    if shape:
        row.notes.append(f"all {scenario.duration_s:.0f} s: classpulse loadtest {name} --local")
    return row


def judged(each: Judgement) -> Figure:
    """A promise of the scenario's as the bench tells it: times in ms."""
    promise = promises.parse(each.promise)[0]
    scale, unit = (1000.0, "ms") if promise.unit == "s" else (1.0, promise.unit)
    return Figure(
        WORDS.get(each.figure, each.figure),
        float("nan") if each.value is None else scale * each.value,
        unit,
        f"{promise.relation} {scale * promise.bound:g} {unit}",
        each.held,
        ratio=each.strain if promise.bound else None,
    )
