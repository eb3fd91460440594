"""Which of several databases keeps a student."""

from functools import lru_cache
from hashlib import md5
from typing import NamedTuple

# Students whose shard is remembered: the hash is asked for with every event that is stored.
_REMEMBERED = 65_536


@lru_cache(_REMEMBERED)
def shard_of(user_id: str, count: int) -> int:
    """``int(md5(user_id)[:8], 16) % count``, of the hash's hex form: as spread and stable as anybody can compute it."""
    return int(md5(user_id.encode(), usedforsecurity=False).hexdigest()[:8], 16) % count


class Shard(NamedTuple):
    """A place among shards. The default is the one database of a daemon without shards."""

    position: int = 0
    size: int = 1  # how many there are

    def keeps(self, user_id: str) -> bool:
        """Whether this student's rows and state are here."""
        return shard_of(user_id, self.size) == self.position

    def name(self, store: str) -> str:
        """What ``store`` is called in offsets and metrics: ``postgresql``, or ``postgresql.0`` and so on."""
        return store if self.size == 1 else f"{store}.{self.position}"
