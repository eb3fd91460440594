"""System calls of a process, as ``strace -f -ttt -y`` writes them, in the order they began and ended."""

import os
import re
import signal
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from subprocess import PIPE

import attrs
import trio

RECEIVE = ("recvfrom", "recvmsg", "read", "readv")
SEND = ("sendto", "sendmsg", "write", "writev")
WRITE = ("write", "writev", "pwrite64", "pwritev", "pwritev2")
SYNC = ("fsync", "fdatasync")
CALLS = ",".join(sorted({*RECEIVE, *SEND, *WRITE, *SYNC}))

_LINE = re.compile(r"^(?P<thread>\d+) +[\d.]+ (?P<rest>.*)$")
_BEGUN = re.compile(r"^(?P<name>\w+)\((?P<fd>\d+)<(?P<target>.*?)>(?=[,) ])(?P<rest>.*)$")
_RESUMED = re.compile(r"^<\.\.\. (?P<name>\w+) resumed>(?P<rest>.*)$")
_FAILED = re.compile(r"= -1 E[A-Z]+")


@attrs.define
class Call:
    """One call. ``begun`` and ``ended`` are line numbers of the trace: a call is over before another begins when its
    ``ended`` is less than the other's ``begun``."""

    name: str
    target: str  # a path, or socket:[inode]
    text: str  # arguments and result
    begun: int
    ended: int

    @property
    def succeeded(self) -> bool:
        return _FAILED.search(self.text) is None


def parse(trace: str) -> list[Call]:
    """Every call that ended, sorted by its begin."""
    calls: list[Call] = []
    unfinished: dict[str, Call] = {}
    for number, line in enumerate(trace.splitlines()):
        found = _LINE.match(line)
        if found is None:
            continue
        thread, rest = found["thread"], found["rest"]
        if begun := _BEGUN.match(rest):
            call = Call(begun["name"], begun["target"], begun["rest"], number, number)
            if rest.endswith("<unfinished ...>"):
                unfinished[thread] = call
            else:
                calls.append(call)
        elif (resumed := _RESUMED.match(rest)) and (waiting := unfinished.pop(thread, None)):
            waiting.text += resumed["rest"]
            waiting.ended = number
            calls.append(waiting)
    return sorted(calls, key=lambda call: call.begun)


@asynccontextmanager
async def traced(strace: str, pid: int, output: Path):
    """Trace a running process, all its threads included, while the block runs; then ``output`` holds the trace."""
    command = [strace, "-f", "-ttt", "-y", "-s", "512", "-e", f"trace={CALLS}", "-o", str(output), "-p", str(pid)]
    async with trio.open_nursery() as nursery:
        tracer = await nursery.start(partial(trio.run_process, command, stderr=PIPE, check=False))
        try:
            with trio.fail_after(20):
                said = b""
                while b"attached" not in said:
                    data = await tracer.stderr.receive_some()
                    assert data, said.decode()
                    said += data
            yield
        finally:
            os.kill(tracer.pid, signal.SIGINT)  # strace lets go of the process and ends
