"""Every error that Classpulse raises on purpose. Exceptions of libraries stop at the adapter that uses them."""


class ClasspulseError(Exception):
    """The root: its message is one line for a person, and says what was wrong, where, and what to do."""


class StartError(ClasspulseError):
    """The daemon must not start as things stand: a lock is held, a gap would open, a schema is newer."""


class MalformedError(ClasspulseError):
    """The request is not what its content type says (400)."""


class TooManyEventsError(ClasspulseError):
    """More events in one request than ``http.max_batch_events`` (413)."""


class OverLimitError(ClasspulseError):
    """Some events of a batch are past a limit of their class; none of the batch was taken.

    ``refused`` tells why, by position in the batch. The others may be offered again without them.
    """

    def __init__(self, refused: dict[int, str]) -> None:
        super().__init__(next(iter(refused.values())))
        self.refused = refused


class TooLargeError(ClasspulseError):
    """An answer would be larger than anybody can look at; the message says what to ask for instead (422)."""


class UnavailableError(ClasspulseError):
    """Events cannot be made durable now (503). ``retry_after_s`` is what the client is told to wait, in seconds."""

    def __init__(self, message: str, *, retry_after_s: int = 1) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class StoreUnavailableError(ClasspulseError):
    """A store did not answer, or lost its connection; the same call may go through later.

    ``retry_after_s``: it asked not to be called again for so many seconds.
    """

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class StoreRefusedError(ClasspulseError):
    """A store answers, but must not be used: a newer schema, a gap, another daemon, a wrong password."""


class StoreDataError(StoreUnavailableError):
    """A store will not have what was to be written. Who cannot leave the bad part out can only try again.

    ``kind`` is the type of the store's error; its text, which may hold what a student wrote, is left out.
    """

    def __init__(self, store: str, kind: str) -> None:
        super().__init__(f"{store} refuses data: {kind}")
        self.kind = kind


class UnknownTopicError(ClasspulseError):
    """A subscriber asked for a topic that does not exist; the message says which, and what topics there are."""


class OverloadedError(ClasspulseError):
    """A subscriber reads so slowly that alerts it has not had are no longer kept (close code 1013)."""


def flatten(group: BaseExceptionGroup[BaseException]) -> list[BaseException]:
    """The exceptions in a group, however deep."""
    found: list[BaseException] = []
    for error in group.exceptions:
        found += flatten(error) if isinstance(error, BaseExceptionGroup) else [error]
    return found
