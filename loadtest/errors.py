"""What ends a run or a bench before its time."""


class LoadTestError(Exception):
    """It cannot be run, or what was measured is wrong; the message is for people."""


class UsageError(LoadTestError):
    """Asked in a way that makes no sense, or that is refused; exit 2."""


class TransportError(Exception):
    """A request got no whole answer: refused, cut, or silent for too long."""


class CannotTryError(LoadTestError):
    """More than this machine, or a bound of the harness, allows: it says nothing of the daemon."""


class InterruptedSearchError(LoadTestError):
    """Somebody ended a run of a search."""


def all_of(error: BaseException) -> list[BaseException]:
    """What a group of groups is made of; of any other error, itself."""
    if not isinstance(error, BaseExceptionGroup):
        return [error]
    return [leaf for part in error.exceptions for leaf in all_of(part)]
