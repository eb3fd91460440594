"""`engine.checks`: what is told of real servers, whole and broken, each fault in one line that says what to do."""

import http.server
import threading
from collections.abc import Iterator
from urllib.parse import quote

import pytest
import trio

from adapters.asyncio_bridge import open_loop
from adapters.bus.probe import RedisCheck
from adapters.kind import HTTP, POSTGRESQL, REDIS, kind_of
from adapters.postgres.probe import DatabaseCheck, migrate_database
from engine.checks import Finding, clock_ahead, tell
from engine.clock import wall_clock
from tests.e2e.postgres_server import free_port

HOUR_MS = 3_600_000


@pytest.fixture
async def loop():
    async with open_loop():
        yield


@pytest.fixture
def http_port() -> Iterator[int]:
    with http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as server:
        server.RequestHandlerClass.log_message = lambda *_: None
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


async def silence(_):
    await trio.sleep_forever()


@pytest.fixture
async def mute_port():
    """Somebody who takes connections and never says a word."""
    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(trio.serve_tcp, silence, 0)
        yield listeners[0].socket.getsockname()[1]
        nursery.cancel_scope.cancel()


async def told(store):
    lines = []
    well = await tell(store, lines.append)
    assert all(line.startswith(f"{store.name}: ") and "\n" not in line for line in lines), lines
    assert well == lines[0].startswith(f"{store.name}: ok, ")
    return lines


def database_check(dsn, *, clock=wall_clock, migrates=True, writes=True):
    return DatabaseCheck(dsn, clock=clock, migrates=migrates, writes=writes)


def redis_check(url, *, clock=wall_clock):
    return RedisCheck(url, clock=clock)


# --- the clock


@pytest.mark.parametrize(
    ("before", "theirs", "after", "ahead"),
    [(10, 10, 10, 0), (10, 15, 20, 0), (10, 25, 20, 5), (10, 3, 20, -7)],
)
def test_a_clock_counts_as_right_within_the_time_it_took_to_ask(before, theirs, after, ahead):
    assert clock_ahead(before, theirs, after) == ahead


@pytest.mark.parametrize(
    ("ahead", "says"), [(5000, "ok, X 1, clock +5000 ms, here"), (7500, "7.5 s ahead of"), (-5100, "5.1 s behind")]
)
async def test_a_clock_far_off_is_a_fault(ahead, says):
    class Store:
        name = "x"

        async def check(self):
            return Finding("X 1", "here", ahead)

    (line,) = await told(Store())
    assert says in line


@pytest.mark.parametrize("shift", [HOUR_MS, -HOUR_MS])
async def test_the_clocks_of_real_servers_are_compared(loop, database, redis_server, shift):
    def wrong():
        return wall_clock() + shift

    for store in (database_check(database.dsn, clock=wrong), redis_check(redis_server.url, clock=wrong)):
        (line,) = await told(store)
        assert ("3600.0 s behind" if shift > 0 else "3600.0 s ahead of") in line, line


# --- kinds


async def test_kinds_of_servers(http_port, postgres, redis_server, make_redis, mute_port):
    assert await kind_of(("127.0.0.1", http_port)) == HTTP
    assert await kind_of(("127.0.0.1", postgres.port)) == POSTGRESQL
    assert await kind_of(("127.0.0.1", redis_server.port)) == REDIS
    assert await kind_of(redis_server.socket_path) == REDIS
    assert await kind_of(("127.0.0.1", make_redis("--requirepass", "x").port)) == REDIS
    assert await kind_of(("127.0.0.1", mute_port)) is None
    assert await kind_of(("127.0.0.1", free_port())) is None
    assert await kind_of("/nowhere/at.all") is None


async def test_a_server_of_another_kind_is_named(loop, http_port, postgres, redis_server, monkeypatch):
    monkeypatch.setattr("adapters.asyncio_bridge.postgres._CONNECT_S", 1)
    for port, kind in ((http_port, HTTP), (redis_server.port, REDIS)):
        (line,) = await told(database_check(f"postgresql://me:s3cret@127.0.0.1:{port}/x"))
        assert line.endswith(f"{kind} answers there: correct postgres.dsn")
        assert "s3cret" not in line
    for port, kind in ((http_port, HTTP), (postgres.port, POSTGRESQL)):
        (line,) = await told(redis_check(f"redis://:s3cret@127.0.0.1:{port}/0"))
        assert line.endswith(f"{kind} answers there: correct redis.url")
        assert "s3cret" not in line


async def test_nobody_there(loop):
    port = free_port()
    for store in (database_check(f"postgresql://127.0.0.1:{port}/x"), redis_check(f"redis://127.0.0.1:{port}")):
        (line,) = await told(store)
        assert "is away" in line
    (line,) = await told(redis_check("unix:///nowhere/redis.sock"))
    assert "No such file" in line


# --- PostgreSQL


async def test_a_database_before_and_after_its_schema(loop, database):
    (line,) = await told(database_check(database.dsn))
    assert line.startswith("postgresql: ok, PostgreSQL 18.")
    assert "no tables yet" in line
    assert line.endswith(database.dsn)
    (line,) = await told(database_check(database.dsn, migrates=False))
    assert "run `classpulse migrate`" in line
    version = await migrate_database(database.dsn)
    for migrates in (True, False):
        (line,) = await told(database_check(database.dsn, migrates=migrates))
        assert f", schema {version}, clock " in line


async def test_a_newer_and_an_edited_schema(loop, database):
    await migrate_database(database.dsn)
    database.server.execute("select 1")
    await change(database, "insert into schema_migrations values (9999, 'future', 'x')")
    (line,) = await told(database_check(database.dsn))
    assert "9999" in line
    assert line.endswith("upgrade classpulse")
    await change(database, "delete from schema_migrations where version = 9999")
    await change(database, "update schema_migrations set checksum = 'x' where version = 1")
    (line,) = await told(database_check(database.dsn))
    assert "its checksum differs" in line


async def test_a_database_that_is_not_there(loop, postgres):
    (line,) = await told(database_check(postgres.dsn("nowhere")))
    assert line.endswith('refuses: database "nowhere" does not exist: create it, or correct postgres.dsn')


async def test_a_database_that_is_read_only(loop, database):
    await migrate_database(database.dsn)
    await change(database, f'alter database "{database.name}" set default_transaction_read_only = on')
    (line,) = await told(database_check(database.dsn))
    assert "read-only" in line
    assert "set default_transaction_read_only = off" in line
    (line,) = await told(database_check(database.dsn, writes=False))
    assert line.startswith("postgresql: ok")


async def test_rights_that_are_missing_are_named_with_what_grants_them(loop, database):
    await migrate_database(database.dsn)
    await change(database, 'create role "Lesser" login')
    dsn = database.dsn.replace("postgres@", "Lesser@")
    try:
        await change(database, 'grant select on all tables in schema public to "Lesser"')
        lines = await told(database_check(dsn))
        assert [line.split(":")[1].strip()[:40] for line in lines] == [
            "user Lesser may not make tables",
            "user Lesser may not insert in activity_e",
            "user Lesser may not update in activity_e",
        ]
        for line in lines:  # what it says to do is what helps
            await change(database, line.split("`")[1])
        (line,) = await told(database_check(dsn))
        assert line.startswith("postgresql: ok")
    finally:
        await change(database, 'drop owned by "Lesser"; drop role "Lesser"')


async def change(database, sql):
    from tests.e2e.postgres_server import psql

    await trio.to_thread.run_sync(psql, database.dsn, sql)


# --- Redis


async def test_a_redis_that_is_well_is_left_as_it_was(loop, redis_server):
    for url in (redis_server.url, f"unix://{redis_server.socket_path}"):
        (line,) = await told(redis_check(url))
        assert line.startswith("redis: ok, Redis 7."), line
        assert line.endswith(url.removeprefix("unix://")), line
    assert redis_server.do("DBSIZE") == 0


async def test_a_wrong_password_and_a_missing_one(loop, make_redis):
    server = make_redis("--requirepass", "r:ght@%")
    server.password = "r:ght@%"
    right = server.url.replace("redis://", f"redis://:{quote('r:ght@%', safe='')}@")
    (line,) = await told(redis_check(right))
    assert line.startswith("redis: ok")
    assert "r%3A" not in line
    (line,) = await told(redis_check(server.url.replace("redis://", "redis://:s3cret@")))
    assert line.endswith("correct the password in redis.url")
    assert "s3cret" not in line
    (line,) = await told(redis_check(server.url))
    assert "Authentication required" in line


async def test_a_number_of_a_database_that_does_not_exist(loop, redis_server):
    (line,) = await told(redis_check(redis_server.url.removesuffix("0") + "99"))
    assert "out of range: correct the number" in line


async def test_a_replica(loop, redis_server, make_redis):
    replica = make_redis("--replicaof", "127.0.0.1", str(redis_server.port))
    (line,) = await told(redis_check(replica.url))
    assert f"let redis.url lead to its primary, 127.0.0.1:{redis_server.port}" in line


async def test_a_redis_without_memory(loop, make_redis):
    server = make_redis("--maxmemory", "1mb", "--maxmemory-policy", "noeviction")
    server.do("CONFIG", "SET", "maxmemory", "1")
    (line,) = await told(redis_check(server.url))
    assert "maxmemory" in line


@pytest.mark.parametrize(
    ("rights", "fault"),
    [
        (("~*", "+@all"), "may not publish to progress_events"),
        (("&*", "+@all", "~class_summary:*", "~websocket_connections:*"), "refuses"),
        (("&*", "~*", "+@all", "-eval"), "refuses"),
        (("&*", "~*", "+@all", "-hset"), "refuses"),
        (("&*", "~*", "+@all", "-time"), "refuses"),
    ],
    ids=["channels", "keys", "eval", "hset", "time"],
)
async def test_rights_of_a_user_of_redis(loop, make_redis, rights, fault):
    server = make_redis()
    server.do("ACL", "SETUSER", "pulse", "on", ">pw", "resetchannels", *rights)
    lines = await told(redis_check(server.url.replace("redis://", "redis://pulse:pw@")))
    assert all(fault in line for line in lines[:1]), lines
    assert "ok" not in lines[0]


async def test_the_rights_that_the_documentation_names_are_enough(loop, make_redis):
    server = make_redis()
    server.do(*DOCUMENTED.split())
    (line,) = await told(redis_check(server.url.replace("redis://", "redis://classpulse:pw@")))
    assert line.startswith("redis: ok")


# docs/redis.md gives it so, with another password.
DOCUMENTED = (
    "ACL SETUSER classpulse on >pw resetchannels &progress_events &error_events &session_events "
    "~session:* ~class_summary:* ~websocket_connections:* +ping +info +time +select +eval +publish "
    "+get +set +del +hset +pexpire"
)
