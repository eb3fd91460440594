"""The row of all stores: a daemon with PostgreSQL, InfluxDB and Redis beside one with PostgreSQL alone."""

import math
from statistics import mean, median

from loadtest.bench import daemon as daemons
from loadtest.bench import servers
from loadtest.bench.daemon import Daemon, Drained
from loadtest.bench.measures import BATCH, BATCH_CONNECTIONS, FEW_USERS, WARM_UP_S, Bench
from loadtest.bench.report import Row

# What issue 4 promises.
SHARE_OF_ALONE = 0.6
# Lag is steady when it grows by no more than this share of what comes in.
STEADY = 0.05
LEAST_ROUNDS = 3
# So long that a second's flushes of InfluxDB do not look like growth.
STEADY_LENGTH = 2


def stores(bench: Bench) -> Row:
    """Both daemons in turn, each with the core to itself; then the one with all stores at the promised rate."""
    row = Row(f"all stores beside PostgreSQL alone, {BATCH} events a POST, {BATCH_CONNECTIONS} connections")
    bench.say(row.title)
    core, place = bench.cores, bench.directory
    with (
        servers.influx(place, core.load) as influx,
        servers.redis_server(place, core.load) as redis,
        daemons.running(bench.database, "alone", place, core.server) as alone,
        daemons.running(bench.database, "all", place, core.server, influx=influx, more=redis.environment) as everything,
    ):
        found: dict[str, list[Drained]] = {"alone": [], "all": []}
        for daemon in (alone, everything):
            _load(bench, daemon, WARM_UP_S)
        for round_ in range(max(LEAST_ROUNDS, bench.rounds)):
            for daemon in (alone, everything)[:: 1 if round_ % 2 == 0 else -1]:
                found[daemon.name].append(_load(bench, daemon, bench.seconds))
        promised = SHARE_OF_ALONE * median(each.sustained_per_s for each in found["alone"])
        steady = _load(bench, everything, STEADY_LENGTH * bench.seconds, promised)
        alone.refuse_double_rows()
        for daemon in (alone, everything):
            row.problems += [f"{daemon.name}: {problem}" for problem in daemon.problems]
        dropped = everything.checks()["redis"]["dropped"]
    rates = {name: median(each.load.events_per_s for each in loads) for name, loads in found.items()}
    kept = {name: median(each.sustained_per_s for each in loads) for name, loads in found.items()}
    for name, loads in found.items():
        row.add(f"{name}: taken", rates[name], "events/s")
        row.add(f"{name}: p99", median(each.load.p99_ms for each in loads), "ms")
        row.add(f"{name}: CPU an event, drain included", median(each.cpu_us_per_event for each in loads), "µs")
        row.add(f"{name}: its share of its core", median(each.load.server_busy for each in loads))
        row.add(f"{name}: time until lag 0", median(each.drain_s for each in loads), "s")
        row.add(f"{name}: lag's growth", median(_growth(each) for each in loads), "of taken")
    row.add("share of alone, taken", rates["all"] / rates["alone"])
    row.add("alone: stored over load and drain", kept["alone"], "events/s")
    # What is taken beyond it waits in the journal, so this is the rate at which lag can be steady.
    row.judge_ratio(
        "all: stored over load and drain", kept["all"], "events/s", kept["alone"], SHARE_OF_ALONE, least=True
    )
    row.add("at that share of what alone stores: taken", steady.load.events_per_s, "events/s")
    row.add("its p99", steady.load.p99_ms, "ms")
    row.add("its highest lag", max(steady.lags), "events")
    growth = _growth(steady)
    row.judge("its lag's growth", growth, "of taken", STEADY)
    row.add("its time until lag 0", steady.drain_s, "s")
    row.add("messages that Redis was not told", dropped)
    row.add("points verified in InfluxDB", sum(each.stored for each in [*found["all"], steady]))
    return row


def _load(bench: Bench, daemon: Daemon, seconds: float, events_per_s: float = math.inf) -> Drained:
    found = daemon.measure(
        bench.generator,
        users=FEW_USERS,
        batch=BATCH,
        connections=BATCH_CONNECTIONS,
        seconds=seconds,
        events_per_s=events_per_s,
    )
    bench.say(
        f"  {daemon.name:6} {found.load.events_per_s:9,.0f} events/s  {found.sustained_per_s:9,.0f} stored"
        f"  p99 {found.load.p99_ms:.1f} ms  {found.cpu_us_per_event:.1f} µs CPU an event"
        f"  core {found.load.server_busy:.0%}  drained in {found.drain_s:.1f} s  lags {found.lags}"
    )
    return found


def _growth(found: Drained) -> float:
    """By how many events the lag grew for one that was taken, from the first half of the load to the second."""
    half = len(found.lags) // 2
    grown = mean(found.lags[half:]) - mean(found.lags[:half])
    return grown / (found.load.events_per_s * found.load.seconds / 2)
