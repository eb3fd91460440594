"""The names of the live stream's topics."""

from typing import Final, NamedTuple
from urllib.parse import unquote

from engine.decode import is_class_id, tidy_user_id
from engine.errors import UnknownTopicError
from engine.event import MAX_PATH_CHARS, MAX_USER_ID_CHARS

CLASS: Final = "class"
USER: Final = "user"
NOTEBOOK: Final = "notebook"
OPS: Final = "ops"

# Longest part of a name, in characters.
_LONGEST: Final = {USER: MAX_USER_ID_CHARS, NOTEBOOK: MAX_PATH_CHARS}


class TopicName(NamedTuple):
    """A name, taken apart: what kind it is, of which class, and about what in it."""

    kind: str
    class_id: str = ""
    part: str = ""


def parse_topic(name: str) -> TopicName:
    """Take a name apart; its parts are percent-encoded UTF-8. Raises UnknownTopicError."""
    if name == OPS:
        return TopicName(OPS)
    kind, _, rest = name.partition(":")
    first, slash, second = rest.partition("/")
    try:
        part = unquote(second, errors="strict")
    except UnicodeDecodeError:
        part = ""
    if is_class_id(first):  # which percent-encoding does not change
        if kind == CLASS and not slash:
            return TopicName(CLASS, first)
        if kind == USER:
            part = tidy_user_id(part)
        if kind in _LONGEST and 0 < len(part) <= _LONGEST[kind]:
            return TopicName(kind, first, part)
    raise UnknownTopicError(
        f"there is no topic {name[:100]!r}: subscribe to class:<class id>, user:<class id>/<user id>, "
        "notebook:<class id>/<path> (parts percent-encoded) or ops"
    )
