"""Supervision: an actor that fails is run again, with backoff; it never takes its siblings down."""

from collections.abc import Awaitable, Callable
from typing import Final

import structlog
import trio

from engine.backoff import Backoff
from engine.errors import StartError, StoreUnavailableError

# Seconds before the first restart, doubling up to the last; back to the first after an actor held out for a while.
_FIRST_S: Final = 0.1
_LAST_S: Final = 5.0
_HELD_OUT_S: Final = 60.0

log = structlog.get_logger("supervisor")


async def supervise(name: str, run: Callable[[], Awaitable[None]]) -> None:
    """Run an actor until it returns. ``run`` must leave nothing half done that its next run does not mend.

    StartError passes: trying again cannot help.
    """
    backoff = Backoff(_FIRST_S, _LAST_S)
    while True:
        began = trio.current_time()
        try:
            await run()
        except StoreUnavailableError as error:
            log.warning("actor restarts", actor=name, reason=str(error))
        except StartError:
            raise
        except Exception:
            log.exception("actor restarts", actor=name)
        else:
            return
        if trio.current_time() - began > _HELD_OUT_S:
            backoff.reset()
        await trio.sleep(backoff.pause_s())
