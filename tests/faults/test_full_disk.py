"""The journal's disk, or its budget, is used up: 503 with ``Retry-After``, then it goes on by itself.

The disk is a tmpfs of the test's own, so that it is really full; mounting one takes root.
"""

import os
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.e2e.api import Api
from tests.e2e.daemon import Daemon, in_thread
from tests.e2e.load import Load
from tests.e2e.postgres_server import PostgresServer
from tests.e2e.reckoning import check_counters, check_rows
from tests.e2e.waiting import eventually
from tests.unable import unable

DISK_BYTES = 24 * 2**20
BUDGET_BYTES = 400_000
CROWD = 200


@pytest.fixture
def server() -> Iterator[PostgresServer]:
    with PostgresServer() as started:
        yield started


@pytest.fixture
def small_disk(data_dir: Path, require_tool) -> Iterator[Path]:
    """The data directory on a disk of `DISK_BYTES`."""
    if os.geteuid() != 0:
        unable("only root may mount a tmpfs; the budget is tested without one")
    mount, umount = require_tool("mount"), require_tool("umount")
    data_dir.mkdir()
    done = subprocess.run(
        [mount, "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "classpulse-test", str(data_dir)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        unable(f"no tmpfs can be mounted here: {done.stderr.strip()}")
    try:
        yield data_dir
    finally:
        subprocess.run([umount, str(data_dir)], check=True)


def fill(filler: Path) -> None:
    """Take what is left of a disk, however much others take at the same time."""
    with suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))


async def refused(load: Load, within: float = 60) -> None:
    """Wait for refusals, each with when to come again."""
    before = len(load.refusals)

    async def some() -> bool:
        return len(load.refusals) > before

    await eventually(some, within=within, what="the journal is full")
    assert {(refusal.status, refusal.retry_after) for refusal in load.refusals[before:]} == {(503, "5")}


async def journal_is(api: Api, status: str) -> str:
    """Wait for it; returns what health says is wrong."""

    async def reached() -> dict[str, str] | None:
        found = (await api.health())[1]["checks"]["journal"]
        return found if found["status"] == status else None

    found = await eventually(reached, within=30, what=f"the journal is {status}")
    error: str = (found or {}).get("error", "")
    return error


async def postgres_has_all(api: Api) -> bool:
    return await api.lag() == 0


async def all_is_there(api: Api, database, load: Load) -> None:
    await api.wait_flushed(within=60)
    await check_rows(database, load.acknowledged)
    await check_counters(api, database, load.acknowledged.values())
    assert load.faults == []
    assert {refusal.status for refusal in load.refusals} == {503}
    print(f"{len(load.acknowledged)} events acknowledged, {len(load.refusals)} requests refused")  # noqa: T201


@pytest.mark.slow
@pytest.mark.parametrize(
    ("disk", "key", "limit", "fault"),
    [
        ("data_dir", "JOURNAL__MAX_BYTES", BUDGET_BYTES, "over journal.max_bytes"),
        ("small_disk", "JOURNAL__MIN_FREE_BYTES", DISK_BYTES * 2 // 3, "under journal.min_free_bytes"),
    ],
    ids=["budget", "disk"],
)
async def test_room_runs_out_while_postgresql_is_away(server, request, disk, key, limit, fault):
    """The journal grows up to its limit, and works on once PostgreSQL has taken what is in it."""
    database = server.create_database()
    async with Daemon(request.getfixturevalue(disk), dsn=database.dsn, settings={key: str(limit)}) as daemon:
        api = Api(daemon)
        async with Load(daemon, seed=31, crowd=CROWD) as load:
            await load.progress(300)
            await in_thread(server.kill)
            await refused(load)
            assert fault in await journal_is(api, "unhealthy")
            await in_thread(server.start)
            await journal_is(api, "healthy")
            await load.progress(1000, within=60)
            await load.finish()
        await all_is_there(api, database, load)


@pytest.mark.slow
@pytest.mark.parametrize("room_first", [True, False])
async def test_another_fills_the_disk_to_the_last_byte(room_first, server, small_disk):
    """No room is left for a commit, nor for a trim: what was acknowledged stays, and it goes on when there is room."""
    database = server.create_database()
    filler = small_disk / "filler"
    async with Daemon(small_disk, dsn=database.dsn, settings={"JOURNAL__MIN_FREE_BYTES": "0"}) as daemon:
        api = Api(daemon)
        async with Load(daemon, seed=33, crowd=CROWD) as load:
            await load.progress(300)
            await in_thread(server.kill)  # or trims would make room
            await in_thread(fill, filler)
            await refused(load)
            assert "the journal cannot commit" in await journal_is(api, "unhealthy")
            if room_first:
                filler.unlink()
                await journal_is(api, "healthy")
            await in_thread(server.start)
            if not room_first:
                await eventually(lambda: postgres_has_all(api), within=30, what="PostgreSQL has all")
                filler.unlink()
                await journal_is(api, "healthy")
            await load.progress(1000, within=60)
            await load.finish()
        await all_is_there(api, database, load)
