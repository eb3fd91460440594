"""Pages of sessions, where some of what is stored has changed, moved, or is none any more."""

import json
import random
from uuid import UUID

import pytest
from msgspec.structs import replace
from starlette.requests import Request

from adapters.http.sessions import SessionRoutes
from adapters.memory import MemoryStore
from engine.ports import SessionRow
from tests.adapters.events import NOW

KEY = ("default", "ann")
NOTEBOOKS = ("a.ipynb", "b.ipynb")


class Live:
    """Knows some of the sessions better than the store does."""

    def __init__(self, rows, gone):
        self.rows, self.gone = rows, gone

    def sessions(self, class_id, user_id):
        return self.rows, self.gone


def session(number, started_at):
    return SessionRow(
        id=UUID(int=number),
        notebook_path=NOTEBOOKS[number % 2],
        client_session=None,
        started_at=started_at,
        ended_at=started_at + 1,
        closed=False,
        executions=1,
        errors=0,
    )


async def pages(routes, query):
    found, cursor = [], ""
    while cursor is not None:
        scope = {
            "type": "http",
            "method": "GET",
            "headers": [],
            "path_params": {"user_id": "ann"},
            "query_string": f"{query}{cursor}".encode(),
        }
        page = json.loads((await routes.user_sessions(Request(scope))).body)
        found += [UUID(each["id"]) for each in page["sessions"]]
        cursor = page.get("next_cursor") and f"&cursor={page['next_cursor']}"
    return found


@pytest.mark.parametrize("seed", range(20))
async def test_each_session_is_on_one_page_whatever_became_of_those_that_are_stored(seed):
    chance = random.Random(seed)
    # Few starts, so that ids decide too.
    stored = [session(number, NOW - chance.randrange(8) * 1000) for number in range(30)]
    gone = {row.id for row in stored if chance.random() < 0.3}
    moved = [replace(row, started_at=row.started_at - 1500) for row in stored if chance.random() < 0.3]
    live = [row for row in moved if row.id not in gone] + [session(100 + n, NOW - n * 900) for n in range(5)]
    store = MemoryStore()
    await store.open()
    store.sessions = {row.id: (KEY, row) for row in stored}
    routes = SessionRoutes(Live(live, gone), store, lambda: NOW)
    rows = {row.id: row for row in stored if row.id not in gone} | {row.id: row for row in live}
    expected = sorted(rows.values(), key=lambda row: (row.started_at, row.id), reverse=True)
    for limit in (1, 2, 7, 100):
        assert await pages(routes, f"limit={limit}") == [row.id for row in expected]
        for notebook in NOTEBOOKS:
            assert await pages(routes, f"limit={limit}&notebook={notebook}") == [
                row.id for row in expected if row.notebook_path == notebook
            ]
