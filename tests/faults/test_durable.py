"""The commit reaches the disk before the 202: shown by the order of the daemon's system calls."""

import pytest

from tests.e2e.api import Api
from tests.e2e.daemon import Daemon
from tests.e2e.samples import run
from tests.faults.trace import RECEIVE, SEND, SYNC, WRITE, parse, traced

POSTS = 5


@pytest.mark.slow
async def test_the_answer_waits_for_the_disk(require_tool, database, data_dir):
    strace = require_tool("strace")
    output = data_dir.parent / "trace"
    events = [run("alice", cell_index=index) for index in range(POSTS)]
    async with Daemon(data_dir, dsn=database.dsn) as daemon:
        await Api(daemon).accept(run("alice", cell_index=99))  # what is done only once is done
        async with traced(strace, daemon.pid, output):
            for event in events:
                await Api(daemon).accept(event)
    calls = parse(output.read_text())

    for event in events:
        at = next(
            n
            for n, call in enumerate(calls)
            if call.name in RECEIVE and "socket" in call.target and event["event_id"] in call.text
        )
        received = calls[at]
        answered = next(
            call
            for call in calls[at:]
            if call.name in SEND and call.target == received.target and "HTTP/1.1 202" in call.text
        )
        between = [call for call in calls if received.ended < call.begun and call.ended < answered.begun]
        written = [call for call in between if call.name in WRITE and call.target.startswith(str(data_dir))]
        assert written, "nothing was written to the journal before the answer"
        last = written[-1]
        synced = [call for call in between if call.name in SYNC and call.target == last.target and call.succeeded]
        assert any(sync.begun > last.ended for sync in synced), [(call.name, call.target) for call in between]
