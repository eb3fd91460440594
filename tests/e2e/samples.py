"""Valid events to vary."""

import itertools
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

from tests.e2e.recording import written

_users = itertools.count(1)


def new_user() -> str:
    """A user that no other test knows."""
    return f"user{next(_users)}"


def now() -> str:
    return written(datetime.now(UTC))


def activity(user_id: str = "alice", /, **fields: Any) -> dict[str, Any]:
    """The least that an event needs, plus an id."""
    return {"event_id": str(uuid4()), "event_type": "lesson_liked", "user_id": user_id, **fields}


def run(user_id: str = "alice", /, **fields: Any) -> dict[str, Any]:
    """A cell that ran, now, without an error."""
    cell = {"notebook_path": "intro.ipynb", "session_id": "s1", "cell_index": 0, "cell_type": "code"}
    return activity(
        user_id, **{"event_type": "cell_executed", "timestamp": now(), "has_error": False, **cell, **fields}
    )


def failed_run(user_id: str = "alice", /, **fields: Any) -> dict[str, Any]:
    return run(user_id, **{"has_error": True, "error_message": "ValueError: no", **fields})
