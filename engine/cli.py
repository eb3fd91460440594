"""The command line: parse, load the configuration, start. Exit codes are the contract's."""

import argparse
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Collection, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from engine import logs
from engine.errors import ClasspulseError, flatten

if TYPE_CHECKING:
    from config import Settings

_OK, _FAULT, _USAGE = 0, 1, 2


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    given = sys.argv[1:] if argv is None else list(argv)
    if given[:1] == ["loadtest"]:  # has a command line of its own, and options that argparse would take for ours
        from loadtest.cli import main as loadtest

        return loadtest(given[1:])
    arguments = _parser().parse_args(given)
    command: Callable[[argparse.Namespace], int] = arguments.command
    return command(arguments)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="classpulse", description="Live, durable classroom events from Jupyter.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, run: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text)
        command.set_defaults(command=run)
        return command

    serve = add("serve", _serve, "the daemon")
    serve.add_argument(
        "--accept-gap", action="store_true", help="start although the database lacks events that the journal trimmed"
    )
    check = add("check", _check, "validate the configuration and reach every configured store")
    migrate = add("migrate", _migrate, "bring the database to the current schema")
    for command in (serve, check, migrate):
        command.add_argument("--config", type=Path, metavar="FILE", help="a TOML file; the environment wins over it")
    commands.add_parser("loadtest", help="load a daemon with virtual students, and check that nothing is lost")
    add("version", _version, "print the version")
    return parser


def _settings(arguments: argparse.Namespace, inherited: Collection[str] = ()) -> "Settings | None":
    """The configuration; None after every fault was told."""
    from config import ConfigError, load

    try:
        return load(arguments.config, os.environ, inherited)
    except ConfigError as error:
        for fault in error.faults:
            print(f"config: {fault}", file=sys.stderr)
        return None


def _serve(arguments: argparse.Namespace) -> int:
    from config import load
    from engine.app import App, Manager

    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until the app takes it: by default it would end us
    logs.configure("info")
    try:
        manager = Manager(os.environ)
    except ClasspulseError as error:
        print(f"serve: {error}", file=sys.stderr)
        return _FAULT
    settings = _settings(arguments, manager.addresses)
    if settings is None:
        return _USAGE
    reread = partial(load, arguments.config, os.environ, manager.addresses)
    app = App(settings, manager, reread, accept_gap=arguments.accept_gap)
    return _run("serve", partial(app.run, lambda url: print(f"classpulse ready {url}", flush=True)))


def _check(arguments: argparse.Namespace) -> int:
    from engine.app import check

    settings = _settings(arguments)
    if settings is None:
        return _USAGE
    logs.configure("warning")
    return _OK if trio.run(check, settings, print) else _FAULT


def _migrate(arguments: argparse.Namespace) -> int:
    from engine.app import migrate

    settings = _settings(arguments)
    if settings is None:
        return _USAGE
    logs.configure("warning")
    return _run("migrate", partial(migrate, settings, print))


def _version(_: argparse.Namespace) -> int:
    print(f"classpulse {version('classpulse')}")
    return _OK


def _run(name: str, run: Callable[[], Awaitable[None]]) -> int:
    """Run to the end. What we raise on purpose is told in one line; anything else is a bug and keeps its traceback."""
    code = _OK
    try:
        trio.run(run, strict_exception_groups=True)
    except* ClasspulseError as group:
        for error in flatten(group):
            print(f"{name}: {error}", file=sys.stderr)
        code = _FAULT
    return code
