"""What may be told of a server and of its errors: logs, `classpulse check` and `/api/v1/health` show it to anybody."""

from typing import Final
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

# Parameters of a URL that say where it leads. Any other may be a secret: both libraries take a password as one.
_HARMLESS: Final = frozenset({"host", "port", "dbname", "database", "db", "sslmode"})


def shown(url: str) -> str:
    """A URL that may be shown: ``***`` for a password, and of its parameters only those that say where it leads."""
    parts = urlsplit(url)
    server = parts.netloc
    if parts.password is not None:
        server = f"{parts.username or ''}:***@{server.rpartition('@')[2]}"
    harmless = [(key, value) for key, value in parse_qsl(parts.query) if key in _HARMLESS]
    query = urlencode(harmless, safe="/", quote_via=quote)
    # Not by `urlunsplit`: it leaves out the slashes before an empty host.
    return f"{parts.scheme}://{server}{parts.path}{query and '?'}{query}"


def first_line(error: BaseException) -> str:
    """What went wrong, without what follows: PostgreSQL's DETAIL can hold a student's row."""
    return (str(error).splitlines() or [type(error).__name__])[0]
