"""asyncpg under trio-asyncio, as trio-flavoured calls.

Errors of asyncpg stop here: what a retry may mend becomes StoreUnavailableError, what needs a person
StoreMisconfiguredError, what is wrong with the data StoreDataError.
"""

from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Final, Self, TypeAlias

import asyncpg
import trio
import trio_asyncio

from adapters.kind import POSTGRESQL, address_of, kind_of
from engine.errors import StoreDataError, StoreMisconfiguredError, StoreUnavailableError
from engine.measures import Histograms

from .telling import first_line, shown

# asyncio asks for 256 KiB of memory for each answer of some bytes: larger than any hole in the heap, so that its end
# moves, and what is made meanwhile lies behind it and stays.
_RECEIVE_BYTES: Final = 32 * 1024
# Seconds until a server that does not answer a connect counts as away.
_CONNECT_S: Final = 5
# Seconds one statement may take; a flush takes milliseconds, a migration of a large table minutes.
_STATEMENT_S: Final = 120
# A closing connection is not waited for longer than this, in seconds: the server may be gone.
_CLOSE_S: Final = 0.3

# PostgreSQL's port where a DSN names none.
_PORT: Final = 5432

# Where the database is now; raises StoreUnavailableError while nobody knows (the embedded server is not up yet).
Dsn: TypeAlias = Callable[[], str]

# PostgreSQL counts timestamps in microseconds from here (its documentation, "Date/Time Types"), ms since the epoch.
_POSTGRES_EPOCH_MS: Final = 946_684_800_000


def to_timestamptz(ms: int) -> int:
    """A time as `Connection` takes it, from ms since the epoch."""
    return (ms - _POSTGRES_EPOCH_MS) * 1000


def from_timestamptz(value: int) -> int:
    """Milliseconds since the epoch of a time as `Connection` gives it."""
    return value // 1000 + _POSTGRES_EPOCH_MS


# The metrics' name for where these connections lead.
_DATABASE: Final = "postgresql"


class Connection:
    """One PostgreSQL connection. A ``timestamptz`` is what it is on the wire: an int, see `to_timestamptz`.

    Half the cost of a COPY was datetimes made only to be encoded (docs/performance.md).
    """

    def __init__(self, raw: "asyncpg.Connection[Any]", times: Histograms | None) -> None:
        self._raw = raw
        self._times = Histograms() if times is None else times

    @classmethod
    async def connect(cls, dsn: str, times: Histograms | None = None) -> Self:
        """``times`` gets how long queries take, by their type.

        Raises StoreUnavailableError when the server is away, StoreMisconfiguredError when it will not have us, or is
        no PostgreSQL.
        """
        try:
            with _errors(dsn):
                raw = await trio_asyncio.aio_as_trio(asyncpg.connect)(
                    dsn,
                    timeout=_CONNECT_S,
                    command_timeout=_STATEMENT_S,
                    server_settings={"application_name": "classpulse"},
                )
                try:
                    raw._transport.max_size = _RECEIVE_BYTES  # noqa: SLF001 - nobody else can tell asyncio
                    await trio_asyncio.aio_as_trio(raw.set_builtin_type_codec)(
                        "timestamptz", schema="pg_catalog", codec_name="bigint", format="binary"
                    )
                except BaseException:  # a cancellation too: nobody else knows of it yet
                    raw.terminate()
                    raise
        except StoreMisconfiguredError:
            raise
        except StoreUnavailableError:
            await _raise_if_another_kind(dsn)
            raise
        return cls(raw, times)

    @property
    def closed(self) -> bool:
        """Whether it can no longer be used."""
        return bool(self._raw.is_closed())

    async def execute(self, query: str, *args: Any) -> str:
        """Run a statement; returns its command tag."""
        with self._query(query), _errors():
            return str(await trio_asyncio.aio_as_trio(self._raw.execute)(query, *args))

    async def fetch(self, query: str, *args: Any) -> list[Any]:
        """Rows, readable by index and by name."""
        with self._query(query), _errors():
            return list(await trio_asyncio.aio_as_trio(self._raw.fetch)(query, *args))

    async def copy(self, table: str, columns: Sequence[str], records: Iterable[tuple[Any, ...]]) -> None:
        """Binary COPY into a table."""
        with self._query("copy"), _errors():
            await trio_asyncio.aio_as_trio(self._raw.copy_records_to_table)(table, records=records, columns=columns)

    @contextmanager
    def _query(self, query: str) -> Iterator[None]:
        """Time what it takes, failures too: a query that times out is one that an operator wants to see."""
        began = trio.current_time()
        try:
            yield
        finally:
            verb = query.split(None, 1)[0].lower()
            kind = verb if verb.isalpha() else "script"  # a migration begins with its comment
            self._times.of(_DATABASE, kind).observe(trio.current_time() - began)

    @asynccontextmanager
    async def transaction(self, *, snapshot: bool = False) -> AsyncIterator[None]:
        """Commit at the end of the block, roll back when it raises; ``snapshot``: read only, all as of one moment."""
        await self.execute("begin isolation level repeatable read read only" if snapshot else "begin")
        try:
            yield
        except BaseException:
            with trio.move_on_after(_CLOSE_S, shield=True):
                if self.closed:
                    raise
                try:
                    await self.execute("rollback")
                except StoreUnavailableError:
                    self.terminate()
            raise
        await self.execute("commit")

    def terminate(self) -> None:
        """Drop it without a word to the server."""
        if not self._raw.is_closed():
            self._raw.terminate()

    async def close(self) -> None:
        """Close it; returns within about a second even when the server is gone."""
        with trio.move_on_after(_CLOSE_S, shield=True), _errors():
            await trio_asyncio.aio_as_trio(self._raw.close)()
        self.terminate()


async def _raise_if_another_kind(dsn: str) -> None:
    address = address_of(dsn, _PORT)
    kind = None if address is None else await kind_of(address)
    if kind not in (None, POSTGRESQL):
        raise StoreMisconfiguredError(
            f"PostgreSQL at {shown(dsn)}: {kind} answers there: correct postgres.dsn"
        ) from None


# The server will not change its mind by itself: password, role, database, encryption.
_REFUSALS: Final = (
    asyncpg.InvalidAuthorizationSpecificationError,
    asyncpg.InvalidCatalogNameError,
    asyncpg.InsufficientPrivilegeError,
)


# The data is wrong, and would be again: classes 22 (data exception) and 23 (integrity constraint violation) of
# PostgreSQL's documentation, "Error Codes", and a row that is too large for any page or index.
_DATA_CLASSES: Final = ("22", "23")
_DATA_CODES: Final = ("54000",)


@contextmanager
def _errors(dsn: str | None = None) -> Iterator[None]:
    where = "" if dsn is None else f" at {shown(dsn)}"
    try:
        yield
    except _REFUSALS as error:
        raise StoreMisconfiguredError(f"PostgreSQL{where} refuses: {first_line(error)}{_advice(error)}") from None
    except asyncpg.PostgresError as error:
        if (error.sqlstate or "")[:2] in _DATA_CLASSES or error.sqlstate in _DATA_CODES:
            raise StoreDataError("PostgreSQL", type(error).__name__) from None
        raise StoreUnavailableError(f"PostgreSQL{where}: {type(error).__name__}: {first_line(error)}") from None
    except (asyncpg.InterfaceError, asyncpg.InternalClientError, OSError, TimeoutError) as error:
        # asyncpg says InternalClientError when the server's last word came, and the end of the connection not yet.
        raise StoreUnavailableError(f"PostgreSQL{where} is away: {first_line(error)}") from None
    except (ValueError, OverflowError) as error:
        if dsn is None:  # what asyncpg itself could not encode
            raise StoreDataError("PostgreSQL", type(error).__name__) from None
        raise StoreMisconfiguredError(f"PostgreSQL: postgres.dsn cannot be used: {type(error).__name__}") from None


def _advice(error: BaseException) -> str:
    """What to do about a refusal."""
    if isinstance(error, asyncpg.InvalidPasswordError):
        return ": correct the user or the password in postgres.dsn"
    if isinstance(error, asyncpg.InvalidCatalogNameError):
        return ": create it, or correct postgres.dsn"
    if isinstance(error, asyncpg.InvalidAuthorizationSpecificationError):
        return ": correct postgres.dsn, or let the user in (pg_hba.conf)"
    return ": grant it to the user in postgres.dsn"
