"""The command line of `classpulse loadtest`: what can be asked for, and what is said of it."""

import argparse
import re
from pathlib import Path
from typing import Final

from loadtest import faults, promises, scenarios
from loadtest.transports import TRANSPORTS

DEFAULT_URL: Final = "http://127.0.0.1:8765"
# Length of one run of a capacity search, in seconds; a third of it is the ramp.
PROBE_S: Final = 20.0
MOST_WORKERS: Final = 64
MOST_SUBSCRIBERS: Final = 2000


def parser() -> argparse.ArgumentParser:
    """The command line."""
    names = "\n".join(f"  {each.name:<14} {each.says}" for each in scenarios.BUILT_IN.values())
    told = {
        "p50, p99, max": ("s", "answers to POSTs; any other percentile too, such as p99.9"),
        "query_p99, …": ("s", "answers to queries"),
        "notify_p99, …": ("s", "news at a subscriber's socket; alert_… and delta_… are of these"),
    } | promises.FIGURES
    figures = "\n".join(f"  {name:<14} {says}{f' ({unit})' * bool(unit)}" for name, (unit, says) in told.items())
    made = argparse.ArgumentParser(
        prog="classpulse loadtest",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Loads a daemon with virtual students, checks that nothing is lost, and judges promises.",
        epilog=f"scenarios:\n{names}\n  FILE.py        SCENARIO of your own\n  replay FILE    recorded requests\n"
        "  capacity       how many students this daemon carries\n  compare A B    two results (JSON)\n"
        f"\nfigures of --slo:\n{figures}\n"
        "\nexit codes: 0 every promise held and nothing is missing, 1 not, 2 bad usage",
    )
    made.add_argument("scenario", metavar="SCENARIO")
    made.add_argument("files", nargs="*", type=Path, metavar="FILE", help="of replay and compare")
    where = made.add_argument_group("the daemon")
    where.add_argument("--target", metavar="URL", help=f"default {DEFAULT_URL}")
    where.add_argument("--local", action="store_true", help="start a daemon and a PostgreSQL of their own on loopback")
    where.add_argument("--i-own-this-host", metavar="HOST", help="needed for a target that is not this machine")
    where.add_argument("--dsn", help="PostgreSQL of the daemon: rows are counted too ($LOADTEST_DSN keeps it private)")
    where.add_argument("--key-file", type=Path, metavar="FILE", help="holds an access key, for a daemon that wants one")
    where.add_argument(
        "--class", dest="class_id", type=_class_id, metavar="ID", help="post to this class and not to fresh ones"
    )
    what = made.add_argument_group("the load")
    what.add_argument("--students", type=_count)
    what.add_argument("--classes", type=_count)
    what.add_argument("--instructors", type=_natural, help="they ask queries, and each has a subscriber")
    what.add_argument("--subscribers", type=_natural, help="open streams; default one an instructor")
    what.add_argument("--rate", type=float, metavar="N", help="events a second of all students together")
    what.add_argument(
        "--duration", metavar="TIME", help="such as 30s, 10m: the shape is pressed together, or its end held"
    )
    what.add_argument("--shape", metavar="SPEC", help='such as "ramp:10s hold:50s spike:5s@100%%"')
    what.add_argument("--closed", action="store_true", help="closed loop: users wait for answers")
    what.add_argument("--speed", type=float, default=1.0, metavar="X", help="of replay (default 1)")
    what.add_argument("--seed", default="1", help="the same seed plays the same load (default 1)")
    what.add_argument("--transport", choices=["auto", *TRANSPORTS], default="auto")
    what.add_argument("--workers", type=_count, default=1, help="processes that make the load (default 1)")
    what.add_argument("--max-events", type=_count, default=2_000_000, metavar="N", help="bound (default 2000000)")
    what.add_argument("--fault", action="append", default=[], metavar="KIND@TIME+TIME", help=_fault_help())
    judged = made.add_argument_group("the verdict")
    judged.add_argument("--slo", metavar="PROMISES", help='such as "p99<100ms, notify_p99<1s, errors<0.1%%"')
    judged.add_argument("--drain", default="60s", metavar="TIME", help="wait so long for the stores (default 60s)")
    judged.add_argument("--step", default=f"{PROBE_S:.0f}s", metavar="TIME", help="length of a run of capacity")
    judged.add_argument("--most", type=_count, default=10_000, help="students that capacity tries (default 10000)")
    judged.add_argument("--json", type=Path, metavar="FILE", help="write the result there")
    judged.add_argument("--html", type=Path, metavar="FILE", help="write the report there")
    return made


def changed(arguments: argparse.Namespace) -> list[str]:
    """The options that are not at their defaults, as people write them: a command refuses those that it ignores."""
    defaults = parser().get_default
    names = [name for name, value in vars(arguments).items() if value != defaults(name)]
    # `class_id` is `--class`, which is no name in Python.
    return [f"--{name.removesuffix('_id').replace('_', '-')}" for name in names if name not in {"scenario", "files"}]


def _fault_help() -> str:
    return "with --local; " + "; ".join(f"{kind}: {says}" for kind, (says, _) in faults.KINDS.items())


def _class_id(text: str) -> str:
    """The contract's, of `class_id`."""
    if re.fullmatch(r"[A-Za-z0-9._-]{1,64}", text) is None:
        raise argparse.ArgumentTypeError(f"expected 1 to 64 letters, digits or ._- and got {text!r}")
    return text


def _count(text: str) -> int:
    return _whole(text, 1)


def _natural(text: str) -> int:
    return _whole(text, 0)


def _whole(text: str, least: int) -> int:
    try:
        number = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a whole number, got {text!r}") from None
    if number < least:
        raise argparse.ArgumentTypeError(f"must be at least {least}")
    return number
