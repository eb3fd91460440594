"""The events of the bench, as cell_monitor writes them: camelCase, one JSON object of about 550 bytes each.

Made of fragments, so that wrk's Lua only concatenates: ids and time, then a user's fragment, then a cell's.
"""

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import NAMESPACE_URL, uuid4, uuid5

CELLS = 12
# A cell's runs differ; one in five fails.
RUNS_PER_CELL = 5
NOTEBOOKS = 3
TEAMS = 40
PAUSE_S = 30

_CODE = "frame = pd.read_csv('week_{index:02}.csv')\nframe[frame.score > {run}].score.mean()"
_ERROR = "KeyError: 'score_{index}'\n  cell {index}, line 2: frame[frame.score > {run}]"


def _fragment(fields: dict[str, object]) -> str:
    """Without the braces."""
    return json.dumps(fields, ensure_ascii=False, separators=(",", ":"))[1:-1]


def new_run() -> str:
    """The first 24 characters of a run's event ids; the last 12 are a counter in hex."""
    return str(uuid4())[:24]


def user_fragments(users: int) -> list[str]:
    """Who and where, with a trailing comma: each user works on one notebook in one session."""
    return [
        _fragment(
            {
                "emailAddress": f"student{user:05}@example.com",
                "teamName": f"Team {user % TEAMS:02}",
                "userName": f"山田 太郎 {user}" if user % 4 == 0 else f"Taro Yamada {user}",
                "sessionId": str(uuid5(NAMESPACE_URL, f"session-{user}")),
                "notebookPath": f"lessons/week_{user % NOTEBOOKS:02}.ipynb",
            }
        )
        + ","
        for user in range(users)
    ]


def cell_fragments() -> list[str]:
    """What ran, with the closing brace: every cell of a notebook, `RUNS_PER_CELL` times."""
    return [_cell(index, run) for run in range(RUNS_PER_CELL) for index in range(CELLS)]


def _cell(index: int, run: int) -> str:
    failed = (index + run) % RUNS_PER_CELL == 0
    fields: dict[str, object] = {
        "cellId": str(uuid5(NAMESPACE_URL, f"cell-{index}")),
        "cellIndex": index,
        "cellType": "code",
        "code": _CODE.format(index=index, run=run),
        "executionCount": run * CELLS + index + 1,
        "hasError": failed,
    }
    if failed:
        fields["errorMessage"] = _ERROR.format(index=index, run=run)
    else:
        fields["result"] = f"team 00: {index}.5, {run}"
    fields["executionDurationMs"] = index % 7
    return _fragment(fields) + "}"


def write_fragments(directory: Path, users: int) -> tuple[Path, Path]:
    """The two files that `events.lua` reads: users' and cells' fragments, one a line."""
    users_file, cells_file = directory / f"users-{users}.txt", directory / "cells.txt"
    users_file.write_text("\n".join(user_fragments(users)) + "\n", encoding="utf-8")
    cells_file.write_text("\n".join(cell_fragments()) + "\n", encoding="utf-8")
    return users_file, cells_file


def arrivals(users: int, runs: int) -> Iterator[str]:
    """Each user opens a notebook and runs its first cells: the events, in the order of users."""
    prefix, number = new_run(), 0
    cells = cell_fragments()
    now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    for user in user_fragments(users):
        for step in range(runs + 1):
            kind = "notebook_opened" if step == 0 else "cell_executed"
            rest = user[:-1] + "}" if step == 0 else user + cells[step]
            yield f'{{"eventId":"{prefix}{number:012x}","eventType":"{kind}","eventTime":"{now}",{rest}'
            number += 1


def samples(kind: str, users: int, count: int) -> Iterator[str]:
    """Events of one kind: ``ran``, ``failed``, or ``opened`` (a notebook); users and cells take turns.

    Up to now, each user about every `PAUSE_S`: equal times would take less room in a store of series.
    """
    prefix = new_run()
    cells = [cell for cell in cell_fragments() if ('"hasError":true' in cell) == (kind == "failed")]
    who = user_fragments(users)
    name = "notebook_opened" if kind == "opened" else "cell_executed"
    now = datetime.now(UTC)
    for number in range(count):
        user = who[number % users]
        ago = timedelta(seconds=(count - 1 - number) // users * PAUSE_S, milliseconds=number * 7919 % 10_007)
        at = (now - ago).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        rest = user[:-1] + "}" if kind == "opened" else user + cells[number // users % len(cells)]
        yield f'{{"eventId":"{prefix}{number:012x}","eventType":"{name}","eventTime":"{at}",{rest}'
