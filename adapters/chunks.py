"""Many events in pieces, so that other tasks have their turn between two of them."""

from collections.abc import Iterable, Iterator
from typing import Final

from engine.event import PackedCommit

# Events that are encoded for a store between two looks at other tasks: about 5 ms of work.
_EVENTS: Final = 1500


def in_chunks(commits: Iterable[PackedCommit]) -> Iterator[list[PackedCommit]]:
    """The same commits, whole, about `_EVENTS` events at a time."""
    chunk: list[PackedCommit] = []
    events = 0
    for commit in commits:
        chunk.append(commit)
        events += len(commit)
        if events >= _EVENTS:
            yield chunk
            chunk, events = [], 0
    if chunk:
        yield chunk
