"""The mirror: keeps in the cache what each student looks like, for programs that do not listen to the stream."""

from collections.abc import Mapping
from typing import Final

import msgspec
import trio

from engine.clock import WallClock
from engine.cohort import Cohort
from engine.event import UserKey
from engine.faults import reach
from engine.keys import SESSION_TTL_S, session_key
from engine.ports import Cache, LiveUser
from engine.view import Thresholds, user_view

# Between two looks, in seconds: a student who runs cells all the time is written as often.
_INTERVAL_S: Final = 1.0
# Students looked at without letting others run, and in one look, those who wait the longest first: about 20 µs each.
_CHUNK: Final = 50
_MAX_STUDENTS: Final = 2000

_encode: Final = msgspec.json.Encoder().encode


class Mirror:
    """Mailbox: one slot a student, with the last event that it is to show. It cannot be fuller than memory is."""

    def __init__(
        self,
        cache: Cache,
        users: Mapping[UserKey, LiveUser],
        cohorts: Mapping[str, Cohort],
        *,
        thresholds: Thresholds,
        clock: WallClock,
    ) -> None:
        """``users`` and ``cohorts`` are the router's, live."""
        self._cache = cache
        self._users = users
        self._cohorts = cohorts
        self._thresholds = thresholds
        self._clock = clock
        self._changed: dict[UserKey, int] = {}
        self._due: dict[UserKey, int] = {}  # when time alone changes a student's status, ms

    def note(self, changed: Mapping[UserKey, int]) -> None:
        """The seq of the last event about each of these students. Never waits."""
        self._changed.update(changed)

    async def run(self) -> None:
        """Look every `_INTERVAL_S`, for ever."""
        while True:
            await trio.sleep(_INTERVAL_S)
            reach("mirror.look")
            await self.look()

    async def look(self) -> None:
        """Write what every student that changed looks like; those whose event is not applied yet wait for the next."""
        now = self._clock()
        due = [key for key, at in self._due.items() if at <= now]
        for key in due:
            del self._due[key]
            self._changed.setdefault(key, 0)
        for count, key in enumerate(list(self._changed)[:_MAX_STUDENTS], 1):
            seq = self._changed.pop(key)
            user = self._users.get(key)
            if user is None:
                self._due.pop(key, None)
            elif user.position < seq:
                self._changed.setdefault(key, seq)
            else:
                self._write(key, user, now)
            if count % _CHUNK == 0:
                await trio.lowlevel.checkpoint()

    def _write(self, key: UserKey, user: LiveUser, now: int) -> None:
        cohort = self._cohorts.get(key[0]) or Cohort(key[0])
        view, due_at = user_view(user.state, now, self._thresholds, cohort)
        self._cache.put(session_key(*key), _encode(view), SESSION_TTL_S)
        if due_at is None:
            self._due.pop(key, None)
        else:
            self._due[key] = due_at
