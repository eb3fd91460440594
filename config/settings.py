"""Every key, its default and its rule. The rules drive loading (``config.loading``) and the example file's test.

The classes only hold: values are checked by ``load``, so a test may build any ``Settings`` it likes.
"""

from pathlib import Path
from typing import Any, Final

import attrs


@attrs.frozen(kw_only=True)
class Rule:
    """What a key is for and accepts; each field carries one as ``metadata["rule"]``."""

    doc: str
    unit: str = ""
    low: float | None = None  # both ends are allowed values
    high: float | None = None
    pattern: str = ""  # a string, and each string of a list, matches all of it
    expected: str = ""  # the pattern in words
    later: tuple[str, ...] = ()  # values of the contract that this version does not have
    secret: bool = False  # never in a repr, never in a fault


EMBEDDED: Final = "embedded"
YEAR_S: Final = 366 * 86400
MAX_WAIT_MS: Final = 60_000
# A name or IPv4; or IPv6, without brackets.
HOST: Final = r"[A-Za-z0-9_.-]+|[0-9A-Fa-f]*:[0-9A-Fa-f.]*:[0-9A-Fa-f:.]*(%[A-Za-z0-9_.-]+)?"
# embedded, or a libpq URL: user and password, hosts with ports (several by commas), database and parameters.
_PLACE: Final = r"(\[[0-9A-Fa-f:.]+\]|[\w%-]+(\.[\w%-]+)*\.?)?(:\d{1,5})?"
_URL: Final = rf"postgres(ql)?://([^\s@/]*@)?{_PLACE}(,{_PLACE})*([/?]\S*)?"
DSN: Final = rf"embedded|{_URL}"
# A server with user, password, port, number of the database and parameters; or the path of a socket, then parameters.
_PLACED: Final = rf"rediss?://([^\s@/]*@)?{_PLACE}(/\d*)?(\?\S*)?"
REDIS_URL: Final = rf"|{_PLACED}|unix://([^\s@/]*@)?/[^\s?]+(\?\S*)?"


def _mask(value: object) -> str:
    return repr(value) if value in (EMBEDDED, "", ()) else "'***'"


def _key(default: object, doc: str, **rule: Any) -> Any:
    field = Rule(doc=doc, **rule)
    return attrs.field(default=default, metadata={"rule": field}, repr=_mask if field.secret else True)


@attrs.frozen(kw_only=True)
class Http:
    """The edge."""

    host: str = _key("127.0.0.1", "address to listen on", pattern=HOST, expected="an IP address or a host name")
    port: int = _key(8765, "0 picks a free one; the ready line tells", low=0, high=65535)
    max_body_bytes: int = _key(1048576, "largest body, after decompression too", unit="bytes", low=1, high=2**30)
    max_batch_events: int = _key(1000, "most events in one request", unit="events", low=1, high=1_000_000)
    max_header_bytes: int = _key(32768, "largest request line and headers", unit="bytes", low=256, high=2**20)
    cors_origins: tuple[str, ...] = _key(
        (),
        "origins whose pages may query and open the stream; ingest answers every origin, without credentials",
        pattern=r"[A-Za-z][A-Za-z0-9+.-]*://[^/\s?#]+|\*",
        expected='a list of origins such as ["https://hub.example.org"], without a path',
    )
    allowed_hosts: tuple[str, ...] = _key(
        (),
        "Host names to answer (ports ignored); another gets 421. Empty: loopback names and the bound address",
        pattern=r"[^/\s]+",
        expected='a list of host names such as ["hub.example.org"]',
    )
    public_url: str = _key(
        "",
        "what users call this server: its host is answered, and its pages may open the stream. Empty: none",
        pattern=rf"|https?://({HOST}|\[[0-9A-Fa-f:.]+\])(:\d{{1,5}})?/?",
        expected="a URL such as https://pulse.example.org, without a path",
    )
    trusted_proxies: tuple[str, ...] = _key(
        (),
        "addresses and networks of proxies whose X-Forwarded-For, -Proto, -Host and Forwarded count",
        pattern=r"[0-9A-Fa-f.]*[.:][0-9A-Fa-f:.]*(/\d{1,3})?",
        expected='a list of IP addresses and networks such as ["127.0.0.1", "10.0.0.0/8"]',
    )
    max_connections: int = _key(10000, "past them a new one is answered 503", unit="connections", low=1, high=1_000_000)
    idle_timeout_s: float = _key(
        75.0, "silence between requests, or of a peer that does not read", unit="seconds", low=0.1, high=86400
    )
    header_timeout_s: float = _key(10.0, "for the whole head of a request", unit="seconds", low=0.1, high=86400)
    body_timeout_s: float = _key(30.0, "for the whole body of a request", unit="seconds", low=0.1, high=86400)


@attrs.frozen(kw_only=True)
class Auth:
    """Who may call."""

    mode: str = _key("open", "open: whoever reaches the address", pattern="open", expected='"open"', later=("keys",))
    allow_open_network: bool = _key(False, "lets mode open listen beyond loopback, and take forwarded requests")


@attrs.frozen(kw_only=True)
class Journal:
    """The disk between the 202 and the stores."""

    max_bytes: int = _key(2147483648, "payload not yet stored everywhere; past it 503", unit="bytes", low=1)
    min_free_bytes: int = _key(536870912, "free disk to leave; below it 503", unit="bytes", low=0)
    dedupe_window_s: float = _key(600.0, "how long an event_id is remembered", unit="seconds", low=0.1, high=YEAR_S)
    dedupe_max_events: int = _key(500000, "how many are remembered at most", unit="events", low=1)


@attrs.frozen(kw_only=True)
class Postgres:
    """The main store. A secret is resolved by ``load`` whichever source it came from."""

    dsn: str = _key(
        EMBEDDED,
        "embedded (in data_dir/postgres), or postgresql://…; may also be the systemd credential postgres.dsn",
        pattern=DSN,
        expected='"embedded" or a postgresql:// URL',
        secret=True,
    )
    dsn_file: str = _key("", "file that holds the dsn, in its place", pattern=r"[^\0]*", expected="a path")
    admin_dsn: str = _key(
        "",
        "the tables' owner: migrations, partitions, erasure. Empty: dsn. With shards: its user and password on each",
        pattern=rf"|{_URL}",
        expected="a postgresql:// URL",
        secret=True,
    )
    admin_dsn_file: str = _key("", "file that holds admin_dsn", pattern=r"[^\0]*", expected="a path")
    student_dsn: str = _key(
        "",
        "a login of role app_user, for what one student is shown. Empty: dsn. With shards: as admin_dsn",
        pattern=rf"|{_URL}",
        expected="a postgresql:// URL",
        secret=True,
    )
    student_dsn_file: str = _key("", "file that holds student_dsn", pattern=r"[^\0]*", expected="a path")
    read_dsns: tuple[str, ...] = _key(
        (), "streaming replicas of dsn, for queries", pattern=_URL, expected="a list of postgresql:// URLs", secret=True
    )
    read_dsns_file: str = _key("", "file that holds read_dsns, one a line", pattern=r"[^\0]*", expected="a path")
    max_replica_lag_ms: int = _key(
        1000, "a replica further behind is not asked", unit="milliseconds", low=1, high=86_400_000
    )
    shards: tuple[str, ...] = _key(
        (),
        "several primaries in place of dsn; students are spread over them",
        pattern=_URL,
        expected="a list of postgresql:// URLs",
        secret=True,
    )
    shards_file: str = _key("", "file that holds shards, one a line", pattern=r"[^\0]*", expected="a path")
    migrate: bool = _key(True, "bring the schema up to date at serve")
    flush_interval_ms: int = _key(500, "longest wait of an event", unit="milliseconds", low=1, high=MAX_WAIT_MS)
    flush_max_events: int = _key(5000, "most events in one transaction", unit="events", low=1, high=1_000_000)


@attrs.frozen(kw_only=True)
class Influxdb:
    """Time series, where there is an InfluxDB. Without a url they are in PostgreSQL."""

    url: str = _key(
        "",
        "where it listens, such as http://localhost:8086. Empty: none",
        pattern=rf"|https?://({HOST}|\[[0-9A-Fa-f:.]+\])(:\d{{1,5}})?(/[^\s?#@]*)?",
        expected="a URL such as http://localhost:8086, without user and password",
    )
    token: str = _key(
        "",
        "v2: an API token that may write to the bucket; v1: user:password. Empty: none is sent",
        pattern=r"[\x21-\x7e]*",
        expected="printable characters without spaces",
        secret=True,
    )
    token_file: str = _key("", "file that holds the token, in its place", pattern=r"[^\0]*", expected="a path")
    org: str = _key("", "v2: the organization of the bucket; InfluxDB 3 takes any name")
    bucket: str = _key("", "what points go into; v1: a database, or database/retention policy. Never made by us")
    api: str = _key(
        "v2",
        "v2: /api/v2/write (InfluxDB 2, 3); v1: /write (InfluxDB 1)",
        pattern="v1|v2",
        expected='"v1" or "v2"',
    )
    flush_interval_ms: int = _key(1000, "longest wait of a point", unit="milliseconds", low=1, high=MAX_WAIT_MS)
    flush_max_points: int = _key(5000, "most events in one write", unit="points", low=1, high=1_000_000)
    tags: tuple[str, ...] = _key(
        ("cell_index",),
        "what of cell_executions is a tag that need not be one. Without cell_index it is a field",
        pattern="cell_index",
        expected='["cell_index"] or []',
    )


@attrs.frozen(kw_only=True)
class Redis:
    """Where other programs are told. ``url`` is resolved by ``load`` whichever source it came from."""

    url: str = _key(
        "",
        "redis://, rediss:// (TLS) or unix://; may also be the systemd credential redis.url. Empty: in-process",
        pattern=REDIS_URL,
        expected="a redis://, rediss:// or unix:// URL",
        secret=True,
    )
    url_file: str = _key("", "file that holds the url, in its place", pattern=r"[^\0]*", expected="a path")
    max_connections: int = _key(20, "most connections at once", unit="connections", low=1, high=10_000)


@attrs.frozen(kw_only=True)
class Session:
    """When a silent user counts as what. Whole or decimal numbers."""

    idle_timeout_s: float = _key(1800.0, "silence that ends a session", unit="seconds", low=0.1, high=YEAR_S)
    retire_after_s: float = _key(3600.0, "the actor leaves memory", unit="seconds", low=0.1, high=YEAR_S)
    idle_after_s: float = _key(180.0, "status idle", unit="seconds", low=0.1, high=YEAR_S)
    offline_after_s: float = _key(600.0, "status offline", unit="seconds", low=0.1, high=YEAR_S)


@attrs.frozen(kw_only=True)
class Broadcast:
    """The live stream."""

    interval_ms: int = _key(100, "changes are gathered this long", unit="milliseconds", low=1, high=MAX_WAIT_MS)
    outbox_frames: int = _key(64, "frames kept for a slow subscriber", unit="frames", low=1, high=100_000)


@attrs.frozen(kw_only=True)
class Stuck:
    """When a student counts as stuck."""

    consecutive_errors: int = _key(3, "failed runs in a row", unit="runs", low=1, high=1_000_000)


@attrs.frozen(kw_only=True)
class Limits:
    """How much one class may hold live. Past it events are rejected."""

    users_per_class: int = _key(20000, "students in memory at once", unit="students", low=1, high=10_000_000)
    notebooks_per_class: int = _key(2000, "notebooks ever", unit="notebooks", low=1, high=10_000)


@attrs.frozen(kw_only=True)
class Retention:
    """When rows are dropped, a whole month (UTC) at a time. An event may be 30 days old when it comes."""

    events_days: int = _key(400, "cell_executions, activity_events, samples", unit="days", low=31, high=36_600)
    sessions_days: int = _key(1200, "learning_sessions", unit="days", low=31, high=36_600)


@attrs.frozen(kw_only=True)
class Settings:
    """The whole configuration. ``load`` makes ``data_dir`` absolute, and takes ``$STATE_DIRECTORY`` for its default."""

    data_dir: Path = attrs.field(
        default=Path("classpulse-data"),
        metadata={"rule": Rule(doc="journal and embedded PostgreSQL", pattern=r"[^\0]+", expected="a path")},
    )
    http: Http = attrs.field(factory=Http)
    auth: Auth = attrs.field(factory=Auth)
    journal: Journal = attrs.field(factory=Journal)
    postgres: Postgres = attrs.field(factory=Postgres)
    influxdb: Influxdb = attrs.field(factory=Influxdb)
    redis: Redis = attrs.field(factory=Redis)
    session: Session = attrs.field(factory=Session)
    broadcast: Broadcast = attrs.field(factory=Broadcast)
    stuck: Stuck = attrs.field(factory=Stuck)
    limits: Limits = attrs.field(factory=Limits)
    retention: Retention = attrs.field(factory=Retention)


def _fields() -> dict[str, "attrs.Attribute[Any]"]:
    found: dict[str, attrs.Attribute[Any]] = {}
    for field in attrs.fields(Settings):
        if field.type is not None and attrs.has(field.type):
            found |= {f"{field.name}.{inner.name}": inner for inner in attrs.fields(field.type)}
        else:
            found[field.name] = field
    return found


# Dotted name, as in the contract, to its field.
KEYS: Final = _fields()

# The contract's keys whose feature this version does not have: refused, so that nobody believes them in force.
UNAVAILABLE: Final[dict[str, tuple[str, ...]]] = {
    "http": ("tls_cert", "tls_key"),
    "encryption": ("keys",),
    "capture": ("code", "result"),
    "metrics": ("host", "port"),
}
