"""What `classpulse check` asks of a store, and how it is told: one line when all is well, else one line a fault."""

from collections.abc import Callable
from typing import Final, NamedTuple, Protocol

from engine.errors import StoreRefusedError, StoreUnavailableError

# A clock further off than this, in ms, is a fault: a machine that keeps time by NTP is within milliseconds.
MAX_CLOCK_MS: Final = 5000


class Finding(NamedTuple):
    """What was found at a store that answers."""

    server: str  # its kind and version, as "PostgreSQL 18.1"
    where: str  # its address, without a secret
    clock_ms: int = 0  # how far its clock is ahead of ours
    notes: tuple[str, ...] = ()  # what else is good to know, a few words each
    faults: tuple[str, ...] = ()  # what keeps it from being used as it must, each with what to do


class Checkable(Protocol):
    """A store that can be looked at from the command line, beside a daemon that may be using it."""

    @property
    def name(self) -> str:
        """Its name in health and offsets."""

    async def check(self) -> Finding:
        """Reach it, and prove that it can do what it must; leaves nothing behind.

        Raises StoreUnavailableError or StoreRefusedError when it cannot be looked at.
        """


async def tell(store: Checkable, say: Callable[[str], None]) -> bool:
    """Check a store and say what was found; returns whether all is well."""
    try:
        found = await store.check()
    except (StoreUnavailableError, StoreRefusedError) as error:
        say(f"{store.name}: {error}")
        return False
    faults = list(found.faults)
    if abs(found.clock_ms) > MAX_CLOCK_MS:
        faults.append(
            f"its clock is {abs(found.clock_ms) / 1000:.1f} s {'ahead of' if found.clock_ms > 0 else 'behind'} this "
            "machine's: let both be set by NTP"
        )
    for fault in faults:
        say(f"{store.name}: {fault}")
    if not faults:
        say(f"{store.name}: " + ", ".join(["ok", found.server, *found.notes, clock(found.clock_ms), found.where]))
    return not faults


def clock(ahead_ms: int) -> str:
    """The difference of two clocks, for people."""
    return f"clock {ahead_ms:+d} ms"


def clock_ahead(before: int, theirs: int, after: int) -> int:
    """How far their clock is ahead, in ms: it was read somewhere between two looks at ours."""
    if before <= theirs <= after:
        return 0
    return theirs - after if theirs > after else theirs - before
