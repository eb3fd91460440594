"""What waits to go out: messages in their order, and the newest write of each key. Bounded; the oldest is dropped."""

from collections import deque
from collections.abc import Mapping
from typing import Final, NamedTuple, TypeAlias

import trio

# Most that waits while the server is away, of messages and of writes: some seconds of a busy class, and their bytes.
MAX_ITEMS: Final = 10_000
MAX_BYTES: Final = 8 * 2**20
# Most that goes out in one round trip. On a busy core a trip takes 60 ms, whatever is in it, so this decides how many
# messages a second go out: some 10,000 a trip.
_BATCH_WRITES: Final = 200
_BATCH_BYTES: Final = 4 * 2**20

# To be published: a channel, and a text.
Message: TypeAlias = tuple[str, bytes]


class Write(NamedTuple):
    """To be done to a key: keep the value or the fields until ``expires_at`` (trio's clock), or forget both."""

    expires_at: float
    value: bytes | None = None
    fields: Mapping[str, str] | None = None

    @property
    def size(self) -> int:
        """Bytes, about."""
        return len(self.value or b"") + 50 * len(self.fields or ())


class _Piece(NamedTuple):
    """Messages that came together: to count and to drop them one by one would cost as much as to send them."""

    messages: list[Message]
    size: int  # bytes of their texts


class Batch(NamedTuple):
    """What goes out together."""

    messages: list[Message]
    writes: dict[str, Write]


class Backlog:
    """Filled by whoever has news, without waiting; emptied by one reader."""

    def __init__(self, max_items: int = MAX_ITEMS, max_bytes: int = MAX_BYTES) -> None:
        """Each bound holds for messages and for writes apart."""
        self._max_items = max_items
        self._max_bytes = max_bytes
        self._messages: deque[_Piece] = deque()
        self._message_count = 0
        self._message_bytes = 0
        self._writes: dict[str, Write] = {}
        self._write_bytes = 0
        self._filled = trio.Event()
        self.dropped = 0  # messages and writes that will never go out

    def __len__(self) -> int:
        return self._message_count + len(self._writes)

    def publish(self, messages: list[Message]) -> None:
        """Add messages; they stay together, also when they are dropped."""
        piece = _Piece(messages, sum(len(text) for _, text in messages))
        self._messages.append(piece)
        self._message_count += len(messages)
        self._message_bytes += piece.size
        while self._message_count > self._max_items or self._message_bytes > self._max_bytes:
            self.dropped += len(self._oldest().messages)
        self._filled.set()

    def write(self, key: str, write: Write) -> None:
        """Add a write, in place of an older one of the key."""
        self._forget(key)
        self._writes[key] = write
        self._write_bytes += write.size
        while len(self._writes) > self._max_items or self._write_bytes > self._max_bytes:
            self._forget(next(iter(self._writes)))
            self.dropped += 1
        self._filled.set()

    def waiting(self, key: str) -> Write | None:
        """The write of this key that did not go out yet."""
        return self._writes.get(key)

    def take(self) -> Batch:
        """The oldest, for one round trip. Writes whose time is over are left out: nobody misses them."""
        batch = Batch([], {})
        size, now = 0, trio.current_time()
        while self._messages and size < _BATCH_BYTES:
            piece = self._oldest()
            size += piece.size
            batch.messages.extend(piece.messages)
        while self._writes and len(batch.writes) < _BATCH_WRITES and size < _BATCH_BYTES:
            key = next(iter(self._writes))
            write = self._forget(key)
            if write is not None and write.expires_at > now:
                size += write.size
                batch.writes[key] = write
        if not self:
            self._filled = trio.Event()
        return batch

    def failed(self, batch: Batch) -> None:
        """Nobody knows what of a batch arrived. Writes go again, as that does no harm; a message never comes twice."""
        self.dropped += len(batch.messages)
        newer, self._writes, self._write_bytes = self._writes, {}, 0
        for key, write in (batch.writes | newer).items():
            self.write(key, write)

    async def wait_filled(self) -> None:
        """Wait until something is in it."""
        await self._filled.wait()

    def _oldest(self) -> "_Piece":
        piece = self._messages.popleft()
        self._message_count -= len(piece.messages)
        self._message_bytes -= piece.size
        return piece

    def _forget(self, key: str) -> Write | None:
        write = self._writes.pop(key, None)
        if write is not None:
            self._write_bytes -= write.size
        return write
