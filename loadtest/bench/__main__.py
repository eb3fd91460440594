"""`make bench`: the daemon's figures beside a floor measured in the same run.

`docs/performance.md` says what each means.
"""

import argparse
import contextlib
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from types import FrameType

from loadtest import database, result
from loadtest.bench import disk, fanout, lessons, measures, queries, report, stores
from loadtest.errors import LoadTestError
from loadtest.processes import ROOT, claim_cores, need

ROWS = ("single", "batch", "users", "fanout", *lessons.NAMES)
# What is measured when it is asked for: nothing is promised about it by `make bench`.
MORE = ("floor", "disk", "series", "stores")


def main() -> int:
    """Exit 0 when every promise held, 1 when one did not, 2 when the bench cannot run."""
    arguments = _arguments()
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        machine, rows = _run(arguments)
    except LoadTestError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    print(report.table(machine, rows))
    if arguments.json:
        report.write_json(arguments.json, machine, rows)
    return 0 if all(row.held for row in rows) else 1


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    """SIGTERM ends the bench as Ctrl-C does: children first."""
    raise KeyboardInterrupt


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m loadtest.bench",
        description="the bench: figures as shares of a floor measured in the same run (docs/performance.md)",
    )
    parser.add_argument("--seconds", type=float, default=8, help="length of a measurement (default 8)")
    parser.add_argument("--rounds", type=int, default=3, help="daemon figures a row, medians are reported (default 3)")
    parser.add_argument("--only", default=",".join(ROWS), help=f"rows: {','.join(ROWS)} (default); {', '.join(MORE)}")
    parser.add_argument(
        "--subscribers", type=int, default=fanout.SUBSCRIBERS, help=f"of fanout (default {fanout.SUBSCRIBERS})"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    parser.add_argument("--keep", action="store_true", help="keep logs, and the daemons' data, and say where")
    arguments = parser.parse_args()
    arguments.only = arguments.only.split(",")
    if unknown := set(arguments.only) - {*ROWS, *MORE}:
        parser.error(f"--only: unknown row {', '.join(sorted(unknown))}")
    if arguments.seconds < 2 or arguments.rounds < 1 or arguments.subscribers < 2:
        parser.error("--seconds and --subscribers must be at least 2, --rounds at least 1")
    return arguments


def _run(arguments: argparse.Namespace) -> tuple[dict[str, str], list[report.Row]]:
    need("wrk", "taskset")
    cores = claim_cores()
    rows: list[report.Row] = []
    single_rate: float | None = None
    with contextlib.ExitStack() as stack:
        # The cluster's directory is its unprivileged user's, and so beside ours, not inside.
        make = tempfile.mkdtemp if arguments.keep else lambda prefix: stack.enter_context(_temporary(prefix))
        directory, cluster = Path(make(prefix="classpulse-bench-")), Path(make(prefix="classpulse-bench-pg-"))
        if arguments.keep:
            print(f"logs, and the daemons' data, stay in {directory} and {cluster}", file=sys.stderr)
        postgres = stack.enter_context(database.running(cluster, cores.load)).database
        bench = measures.Bench(cores, postgres, directory, arguments.seconds, arguments.rounds)
        machine = _machine(directory) | {"PostgreSQL": postgres.ask("postgres", "SHOW server_version")}
        if "floor" in arguments.only:
            rows.append(measures.floor_only(bench))
        if "disk" in arguments.only:
            rows.append(disk.disk(bench))
        if "single" in arguments.only:
            row, single_rate = measures.single(bench)
            rows.append(row)
        if "batch" in arguments.only:
            rows.append(measures.batch(bench, single_rate))
        if "users" in arguments.only:
            rows.append(measures.users(bench))
        if "fanout" in arguments.only:
            rows.append(fanout.fanout(bench, arguments.subscribers))
        rows += [lessons.lesson(bench, name) for name in lessons.NAMES if name in arguments.only]
        if "series" in arguments.only:
            rows.append(queries.queries(bench))
        if "stores" in arguments.only:
            rows.append(stores.stores(bench))
    return machine, rows


def _temporary(prefix: str) -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix=prefix, ignore_cleanup_errors=True)


def _machine(directory: Path) -> dict[str, str]:
    """What the figures depend on."""
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return {
        "commit": commit.stdout.strip() or "unknown",
        "machine": result.machine(),
        "Python": platform.python_version(),
        "fdatasync": f"{_sync_ms(directory):.2f} ms (median of 50, 4 KiB appended)",
    }


def _sync_ms(directory: Path) -> float:
    """What one commit to this disk costs at least; near 0 means a disk that forgets (tmpfs)."""
    times = []
    with (directory / "sync").open("wb", buffering=0) as file:
        for _ in range(50):
            file.write(bytes(4096))
            started = time.perf_counter()
            os.fdatasync(file.fileno())
            times.append((time.perf_counter() - started) * 1000)
    return median(times)


if __name__ == "__main__":
    sys.exit(main())
