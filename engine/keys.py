"""The names of what is cached, and for how long. A client's own words are percent-encoded in them."""

from typing import Final
from urllib.parse import quote

# Seconds that a value is kept after it was last written.
SESSION_TTL_S: Final = 3600
SUMMARY_TTL_S: Final = 300


def session_key(class_id: str, user_id: str) -> str:
    """What a student looks like in the class's state."""
    return f"session:{quote(class_id, safe='')}:{quote(user_id, safe='')}"


def summary_key(class_id: str, notebook_path: str) -> str:
    """A notebook's summary."""
    return f"class_summary:{quote(class_id, safe='')}:{quote(notebook_path, safe='')}"


def connection_key(connection_id: str) -> str:
    """A subscriber of the live stream."""
    return f"websocket_connections:{quote(connection_id, safe='')}"
