import json
import os
import re
import tomllib
from pathlib import Path

import attrs
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from config import ConfigError, Settings, load
from config.loading import is_loopback
from config.settings import KEYS, UNAVAILABLE, Http, Postgres

EXAMPLE = Path(__file__).parents[2] / "config" / "classpulse.example.toml"
PASSWORD = "hunter2secret"
LATER = [f"{section}.{key}" for section, keys in UNAVAILABLE.items() for key in keys]


@pytest.fixture
def toml(tmp_path):
    def write(text):
        path = tmp_path / "classpulse.toml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


def faults(path=None, environ=None):
    with pytest.raises(ConfigError) as caught:
        load(path, environ or {})
    assert all(len(fault.splitlines()) == 1 for fault in caught.value.faults), caught.value.faults
    return caught.value.faults


def attempt(path, environ):
    """The settings, or the faults: any other exception is the test's failure."""
    try:
        return load(path, environ)
    except ConfigError as error:
        told = error.faults
    assert told
    assert all(": " in fault for fault in told), told
    assert all(len(fault.splitlines()) == 1 for fault in told), told
    return told


def variable(name):
    return "CLASSPULSE_" + name.upper().replace(".", "__")


def value_of(settings, name):
    for part in name.split("."):
        settings = getattr(settings, part)
    return settings


# Defaults and sources


def test_defaults_are_the_contracts():
    settings = load(None, {})
    assert settings == attrs.evolve(Settings(), data_dir=Path.cwd() / "classpulse-data")
    assert {name: value_of(settings, name) for name in KEYS if name != "data_dir"} == {
        "http.host": "127.0.0.1",
        "http.port": 8765,
        "http.max_body_bytes": 1048576,
        "http.max_batch_events": 1000,
        "http.max_header_bytes": 32768,
        "http.cors_origins": (),
        "http.allowed_hosts": (),
        "http.public_url": "",
        "http.trusted_proxies": (),
        "http.max_connections": 10000,
        "http.idle_timeout_s": 75,
        "http.header_timeout_s": 10,
        "http.body_timeout_s": 30,
        "auth.mode": "open",
        "auth.allow_open_network": False,
        "journal.max_bytes": 2147483648,
        "journal.min_free_bytes": 536870912,
        "journal.dedupe_window_s": 600,
        "journal.dedupe_max_events": 500000,
        "postgres.dsn": "embedded",
        "postgres.dsn_file": "",
        "redis.url": "",
        "redis.url_file": "",
        "redis.max_connections": 20,
        "postgres.admin_dsn": "",
        "postgres.admin_dsn_file": "",
        "postgres.student_dsn": "",
        "postgres.student_dsn_file": "",
        "postgres.read_dsns": (),
        "postgres.read_dsns_file": "",
        "postgres.max_replica_lag_ms": 1000,
        "postgres.shards": (),
        "postgres.shards_file": "",
        "postgres.migrate": True,
        "postgres.flush_interval_ms": 500,
        "postgres.flush_max_events": 5000,
        "influxdb.url": "",
        "influxdb.token": "",
        "influxdb.token_file": "",
        "influxdb.org": "",
        "influxdb.bucket": "",
        "influxdb.api": "v2",
        "influxdb.flush_interval_ms": 1000,
        "influxdb.flush_max_points": 5000,
        "influxdb.tags": ("cell_index",),
        "session.idle_timeout_s": 1800,
        "session.retire_after_s": 3600,
        "session.idle_after_s": 180,
        "session.offline_after_s": 600,
        "broadcast.interval_ms": 100,
        "broadcast.outbox_frames": 64,
        "stuck.consecutive_errors": 3,
        "limits.users_per_class": 20000,
        "limits.notebooks_per_class": 2000,
        "retention.events_days": 400,
        "retention.sessions_days": 1200,
    }


def test_settings_are_frozen():
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        load(None, {}).http.port = 1


def test_data_dir_comes_from_the_first_state_directory_and_is_absolute(toml):
    environ = {"STATE_DIRECTORY": "/var/lib/a:/var/lib/b"}
    assert load(None, environ).data_dir == Path("/var/lib/a")
    assert load(toml('data_dir = "x/../y"'), environ).data_dir == Path.cwd() / "y"
    assert load(None, environ | {"CLASSPULSE_DATA_DIR": "/z"}).data_dir == Path("/z")


def test_environment_wins_over_the_file_and_is_parsed_by_type(toml):
    path = toml('[http]\nport = 1\nhost = "::1"\n[session]\nidle_after_s = 5')
    settings = load(
        path,
        {
            "CLASSPULSE_HTTP__PORT": "9000",
            "classpulse_http__max_body_bytes": "10",
            "CLASSPULSE_HTTP__CORS_ORIGINS": '["https://a", "http://b:80"]',
            "CLASSPULSE_POSTGRES__MIGRATE": "0",
            "CLASSPULSE_AUTH__ALLOW_OPEN_NETWORK": "TRUE",
            "CLASSPULSE_SESSION__IDLE_TIMEOUT_S": "0.5",
            "CLASSPULS": "not ours",
            "HOME": "/root",
        },
    )
    assert settings.http == Http(
        port=9000, host="::1", max_body_bytes=10, cors_origins=("https://a", "http://b:80"), allowed_hosts=()
    )
    assert settings.postgres.migrate is False
    assert settings.auth.allow_open_network is True
    assert (settings.session.idle_timeout_s, settings.session.idle_after_s) == (0.5, 5.0)


def test_a_variable_in_two_spellings_is_a_fault():
    environ = {"CLASSPULSE_HTTP__PORT": "1", "classpulse_http__port": "2"}
    assert faults(None, environ) == [
        "http.port: given by both CLASSPULSE_HTTP__PORT and classpulse_http__port; keep one"
    ]


# Faults


def test_every_fault_is_told_at_once(toml):
    path = toml(
        'data_dir = 5\n[http]\nport = "abc"\nhost = "0.0.0.0"\nprot = 1\n[metrics]\nhost = "x"\n[htp]\nport = 1'
    )
    assert faults(path, {"CLASSPULSE_BROADCAST__INTERVAL_MS": "soon", "CLASSPULSE_X": "1"}) == [
        'broadcast.interval_ms: expected an integer, got "soon"',
        "data_dir: expected a string, got 5",
        "htp: unknown section; did you mean http?",
        'http.host: "0.0.0.0" is not a loopback address, and with auth.mode = "open" whoever reaches it is let in; use 127.0.0.1, or set auth.allow_open_network = true',
        'http.port: expected an integer, got "abc"',
        "http.prot: unknown key; did you mean http.port?",
        "metrics.host: not available in this version",
        "x: unknown key (from CLASSPULSE_X)",
    ]


@pytest.mark.parametrize(
    ("key", "value", "fault"),
    [
        ("http.port", '"8765"', 'http.port: expected an integer, got "8765"'),
        ("http.port", "true", "http.port: expected an integer, got true"),
        ("http.port", "8765.0", "http.port: expected an integer, got 8765.0"),
        ("http.port", "65536", "http.port: expected an integer from 0 to 65535, got 65536"),
        ("http.port", "-1", "http.port: expected an integer from 0 to 65535, got -1"),
        ("http.port", "{ a = 1 }", "http.port: expected an integer, got a table"),
        ("http.port", "1979-05-27", 'http.port: expected an integer, got "1979-05-27"'),
        ("journal.max_bytes", "0", "journal.max_bytes: expected an integer of at least 1, got 0"),
        ("journal.max_bytes", "0x" + "f" * 9000, "journal.max_bytes: expected an integer, got a very long int"),
        ("session.idle_timeout_s", "nan", "session.idle_timeout_s: expected a number, got NaN"),
        ("session.idle_timeout_s", "true", "session.idle_timeout_s: expected a number, got true"),
        ("session.idle_timeout_s", "0", "session.idle_timeout_s: expected a number from 0.1 to 31622400, got 0"),
        ("postgres.migrate", "1", "postgres.migrate: expected true or false, got 1"),
        ("http.cors_origins", '"https://a"', 'http.cors_origins: expected a list of strings, got "https://a"'),
        (
            "http.trusted_proxies",
            '["10.0.0.0/33"]',
            'http.trusted_proxies: "10.0.0.0/33" is not an IP address or network',
        ),
        (
            "http.trusted_proxies",
            '["proxy"]',
            'http.trusted_proxies: expected a list of IP addresses and networks such as ["127.0.0.1", "10.0.0.0/8"], got ["proxy"]',
        ),
        (
            "http.public_url",
            '"https://a/b"',
            'http.public_url: expected a URL such as https://pulse.example.org, without a path, got "https://a/b"',
        ),
        (
            "http.cors_origins",
            '["https://a", 1]',
            'http.cors_origins: expected a list of strings, got ["https://a", 1]',
        ),
        (
            "http.cors_origins",
            '["https://a/"]',
            'http.cors_origins: expected a list of origins such as ["https://hub.example.org"], without a path, got ["https://a/"]',
        ),
        ("http.host", '""', 'http.host: expected an IP address or a host name, got ""'),
        ("http.host", '"127.0.0.1:80"', 'http.host: expected an IP address or a host name, got "127.0.0.1:80"'),
        ("http.host", '"a\\nb"', 'http.host: expected an IP address or a host name, got "a\\nb"'),
        (
            "http.host",
            '"' + "é" * 100 + '"',
            'http.host: expected an IP address or a host name, got "' + "\\u00e9" * 13 + "\\…",
        ),
        ("auth.mode", '"keys"', 'auth.mode: "keys" is not available in this version'),
        ("auth.mode", '"Open"', 'auth.mode: expected "open", got "Open"'),
        ("data_dir", '""', 'data_dir: expected a path, got ""'),
        ("http.tls_cert", '"x"', "http.tls_cert: not available in this version"),
        ("http.tls_key_file", '"x"', "http.tls_key_file: not available in this version"),
        (
            "postgres.admin_dsn",
            '"embedded"',
            "postgres.admin_dsn: expected a postgresql:// URL (the value is not shown)",
        ),
        (
            "postgres.read_dsns",
            '["postgresql://a/x", "secret"]',
            "postgres.read_dsns: expected a list of postgresql:// URLs (the value is not shown)",
        ),
        ("metrics.anything", "1", "metrics.anything: not available in this version"),
        ("port", "1", "port: unknown key; did you mean http.port?"),
        ('"http.port"', "1", '"http.port": unknown key; did you mean http.port?'),
        ('http."a\\nb"', "1", 'http."a\\nb": unknown key'),
        ("http", "1", "http: expected a table, got 1"),
        ("metrics", "[{}]", "metrics: expected a table, got [{}]"),
        ("metrics", "{}", "metrics: not available in this version"),
        ("nonsense", "{}", "nonsense: unknown section"),
        ("data_dir.a", "1", "data_dir: expected a string, got a table"),
    ],
)
def test_a_fault_in_the_file(toml, key, value, fault):
    assert faults(toml(f"{key} = {value}")) == [fault]


@pytest.mark.parametrize(
    ("name", "text", "fault"),
    [
        ("CLASSPULSE_HTTP__PORT", "abc", 'http.port: expected an integer, got "abc"'),
        ("CLASSPULSE_HTTP__PORT", "", 'http.port: expected an integer, got ""'),
        ("CLASSPULSE_HTTP__PORT", "9" * 5000, 'http.port: expected an integer, got "' + "9" * 79 + "…"),
        ("CLASSPULSE_SESSION__IDLE_TIMEOUT_S", "inf", "session.idle_timeout_s: expected a number, got Infinity"),
        ("CLASSPULSE_POSTGRES__MIGRATE", "yes", 'postgres.migrate: expected true or false, got "yes"'),
        ("CLASSPULSE_HTTP__ALLOWED_HOSTS", "a,b", 'http.allowed_hosts: expected a list of strings, got "a,b"'),
        ("CLASSPULSE_HTTP__ALLOWED_HOSTS", "{}", "http.allowed_hosts: expected a list of strings, got a table"),
        ("CLASSPULSE_AUTH__MODE", "keys", 'auth.mode: "keys" is not available in this version'),
        (
            "CLASSPULSE_HTTP__TLS_CERT",
            "x",
            "http.tls_cert: not available in this version (from CLASSPULSE_HTTP__TLS_CERT)",
        ),
        (
            "CLASSPULSE_HTTP_PORT",
            "1",
            "http_port: unknown key (from CLASSPULSE_HTTP_PORT); did you mean CLASSPULSE_HTTP__PORT?",
        ),
        ("CLASSPULSE_ZZZ", "1", "zzz: unknown key (from CLASSPULSE_ZZZ)"),
        ("CLASSPULSE_", "1", '"": unknown key (from CLASSPULSE_)'),
    ],
)
def test_a_fault_in_the_environment(name, text, fault):
    assert faults(None, {name: text}) == [fault]


@pytest.mark.parametrize("name", LATER)
def test_a_key_of_a_later_version_is_refused_wherever_it_stands(tmp_path, name):
    path = tmp_path / "later.toml"
    path.write_text(f'{name} = "x"')
    assert faults(path) == [f"{name}: not available in this version"]
    assert faults(None, {variable(name): "x"}) == [f"{name}: not available in this version (from {variable(name)})"]


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "::", "10.0.0.1", "localhost.example.org", "fe80::1%eth0", "::ffff:10.0.0.1"]
)
def test_open_mode_stays_on_loopback_unless_told(host):
    environ = {"CLASSPULSE_HTTP__HOST": host}
    (fault,) = faults(None, environ)
    assert fault.startswith(f'http.host: "{host}" is not a loopback address')
    assert load(None, environ | {"CLASSPULSE_AUTH__ALLOW_OPEN_NETWORK": "true"}).http.host == host


@pytest.mark.parametrize(
    ("keys", "fault"),
    [
        (
            'dsn = "postgresql://a/x"\nshards = ["postgresql://b/x"]',
            "postgres.dsn: given beside postgres.shards, which stand in its place; keep one",
        ),
        (
            'read_dsns = ["postgresql://a/x"]\nshards = ["postgresql://b/x"]',
            "postgres.read_dsns: not with postgres.shards, whose queries go to the shards themselves",
        ),
        (
            'shards = ["postgresql://b/x", "postgresql://b/x"]',
            "postgres.shards: a database is named twice (the value is not shown)",
        ),
    ],
)
def test_shards_stand_alone(toml, keys, fault):
    assert faults(toml(f"[postgres]\n{keys}")) == [fault]


def test_lists_of_secrets_come_from_files_and_credentials_too_and_are_never_printed(tmp_path, toml):
    dsns = (f"postgresql://me:{PASSWORD}@a/x", f"postgresql://me:{PASSWORD}@b/x")
    (tmp_path / "postgres.shards").write_text("\n".join(dsns) + "\n\n")
    (tmp_path / "postgres.admin_dsn").write_text(dsns[0] + "\n")
    settings = load(None, {"CREDENTIALS_DIRECTORY": str(tmp_path)})
    assert settings.postgres.shards == dsns
    assert settings.postgres.admin_dsn == dsns[0]
    assert PASSWORD not in repr(settings)
    assert load(toml(f'postgres.read_dsns_file = "{tmp_path}/postgres.shards"'), {}).postgres.read_dsns == dsns
    (tmp_path / "postgres.shards").write_text(PASSWORD)
    (fault,) = faults(None, {"CREDENTIALS_DIRECTORY": str(tmp_path)})
    assert fault.startswith("postgres.shards: expected a list of postgresql:// URLs")
    assert PASSWORD not in fault


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost", "LOCALHOST", "::ffff:127.0.0.1"])
def test_loopback(host):
    assert is_loopback(host)
    assert load(None, {"CLASSPULSE_HTTP__HOST": host}).http.host == host


def test_session_times_are_in_order(toml):
    assert faults(toml("session = { idle_after_s = 700, retire_after_s = 599.5 }")) == [
        "session.offline_after_s: expected at least session.idle_after_s (700), got 600",
        "session.retire_after_s: expected at least session.offline_after_s (600), got 599.5",
    ]
    load(toml("session = { idle_after_s = 10, offline_after_s = 10, retire_after_s = 10 }"), {})


# The file itself


def test_a_missing_or_unreadable_file_is_one_clear_line(tmp_path, toml):
    missing = tmp_path / "missing.toml"
    assert faults(missing) == [f"{missing}: cannot be read: No such file or directory"]
    assert faults(tmp_path) == [f"{tmp_path}: cannot be read: Is a directory"]
    path = toml(b"\xff\xfe")
    assert faults(path) == [f"{path}: not UTF-8 text"]


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("[http]\nport = = 1", "line 2, column 8"),
        ("[http]\nport = ", "line 2, column 8"),
        ("a = 1\na = 2\n", "line 2, column 6"),
        ("a = " + "[" * 100_000, ""),
        ("a = " + "1" * 5000, ""),
    ],
)
def test_a_syntax_error_tells_line_and_column(toml, text, where):
    path = toml(text)
    (fault,) = faults(path)
    assert fault.startswith(f"{path}: not valid TOML: ")
    assert where in fault


# The secret


def test_the_dsn_is_never_printed():
    dsn = f"postgresql://me:{PASSWORD}@db/x?password={PASSWORD}"
    settings = load(None, {"CLASSPULSE_POSTGRES__DSN": dsn})
    assert settings.postgres.dsn == dsn
    assert PASSWORD not in repr(settings) + str(settings.postgres)
    assert "'embedded'" in repr(Postgres())


@pytest.mark.parametrize(
    "dsn", [f"mysql://me:{PASSWORD}@db", f"postgres:{PASSWORD}", f"postgresql://me:{PASSWORD} @db", ""]
)
def test_a_bad_dsn_is_a_fault_that_does_not_show_it(toml, dsn):
    fault = 'postgres.dsn: expected "embedded" or a postgresql:// URL (the value is not shown)'
    assert faults(toml(f"postgres.dsn = {json.dumps(dsn)}")) == [fault]
    (from_environment,) = faults(None, {"CLASSPULSE_POSTGRES__DSN": dsn})
    assert PASSWORD not in from_environment
    (wrong_type,) = faults(toml(f'postgres.dsn = ["{PASSWORD}"]'))
    assert wrong_type == "postgres.dsn: expected a string (the value is not shown)"


def test_the_dsn_from_a_file_or_a_credential(tmp_path, toml):
    secret = tmp_path / "secret"
    secret.write_text("postgres://me:x@db/y\n")
    assert load(toml(f'postgres.dsn_file = "{secret}"'), {}).postgres.dsn == "postgres://me:x@db/y"
    (tmp_path / "postgres.dsn").write_text("postgresql://credential/y")
    credential = {"CREDENTIALS_DIRECTORY": str(tmp_path)}
    assert load(None, credential).postgres.dsn == "postgresql://credential/y"
    assert load(None, {"CREDENTIALS_DIRECTORY": str(tmp_path / "none")}).postgres.dsn == "embedded"

    label = "the systemd credential postgres.dsn"
    both = {"CLASSPULSE_POSTGRES__DSN": "embedded", "CLASSPULSE_POSTGRES__DSN_FILE": str(secret)}
    twice = "postgres.dsn: given more than once ({}); keep one"
    assert faults(None, both) == [twice.format("postgres.dsn, postgres.dsn_file")]
    assert faults(None, both | credential) == [twice.format(f"postgres.dsn, postgres.dsn_file, {label}")]
    assert faults(toml('postgres.dsn = "embedded"'), credential) == [twice.format(f"postgres.dsn, {label}")]


INFLUX = '[influxdb]\nurl = "http://db:8086"\n'


def test_influxdb(toml, tmp_path):
    v1 = load(toml(INFLUX + f'api = "v1"\nbucket = "pulse/month"\ntoken = "me:{PASSWORD}"\ntags = []'), {}).influxdb
    assert (v1.url, v1.api, v1.bucket, v1.token, v1.tags) == (
        "http://db:8086",
        "v1",
        "pulse/month",
        f"me:{PASSWORD}",
        (),
    )
    assert PASSWORD not in repr(v1)
    (tmp_path / "influxdb.token").write_text(f"{PASSWORD}\n")
    both = toml(INFLUX + 'org = "o"\nbucket = "b"')
    assert load(both, {"CREDENTIALS_DIRECTORY": str(tmp_path)}).influxdb.token == PASSWORD
    in_file = {"CLASSPULSE_INFLUXDB__TOKEN_FILE": str(tmp_path / "influxdb.token")}
    assert load(both, in_file).influxdb.token == PASSWORD
    assert faults(both, in_file | {"CLASSPULSE_INFLUXDB__TOKEN": "x"}) == [
        "influxdb.token: given more than once (influxdb.token, influxdb.token_file); keep one"
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (INFLUX + 'api = "v1"', ["influxdb.bucket: expected beside influxdb.url; with api v1 it is database or database/policy"]),
        (INFLUX + 'bucket = "b"', ['influxdb.org: expected beside influxdb.url, unless influxdb.api = "v1"']),
        ('[influxdb]\nbucket = "b"', ["influxdb.bucket: given without influxdb.url, which says where InfluxDB is"]),
        (f'[influxdb]\ntoken = "{PASSWORD}"', ["influxdb.token: given without influxdb.url, which says where InfluxDB is"]),
        ('[influxdb]\napi = "v3"', ['influxdb.api: expected "v1" or "v2", got "v3"']),
        ('[influxdb]\ntags = ["user_id"]', ['influxdb.tags: expected ["cell_index"] or [], got ["user_id"]']),
        ('[influxdb]\nurl = "db:8086"',
         ['influxdb.url: expected a URL such as http://localhost:8086, without user and password, got "db:8086"']),
        ('[influxdb]\nurl = "http://me:x@db"',
         ['influxdb.url: expected a URL such as http://localhost:8086, without user and password, got "http://me:x@db"']),
        (f'[influxdb]\ntoken = "{PASSWORD} x"',
         ["influxdb.token: expected printable characters without spaces (the value is not shown)"]),
    ],
)  # fmt: skip
def test_faults_of_influxdb(toml, text, expected):
    assert faults(toml(text)) == expected


@pytest.mark.parametrize(
    "url",
    [
        "redis://127.0.0.1", "redis://:p%40ss@cache:6379/2", "rediss://me:x@[::1]:6380/0?ssl_cert_reqs=none",
        "unix:///run/redis/redis.sock", "unix://:x@/run/r.sock?db=1", "",
    ],
)  # fmt: skip
def test_urls_of_redis(toml, url):
    assert load(toml(f"redis.url = {json.dumps(url)}"), {}).redis.url == url


@pytest.mark.parametrize(
    "url", [f"http://:{PASSWORD}@cache", f"redis:{PASSWORD}", f"redis://:{PASSWORD}@cache/x", f"unix://{PASSWORD}"]
)
def test_a_bad_url_of_redis_is_a_fault_that_does_not_show_it(toml, url):
    fault = "redis.url: expected a redis://, rediss:// or unix:// URL (the value is not shown)"
    assert faults(toml(f"redis.url = {json.dumps(url)}")) == [fault]


def test_the_url_of_redis_from_a_file_or_a_credential(tmp_path, toml):
    secret = tmp_path / "redis.url"
    secret.write_text(f"redis://:{PASSWORD}@cache\n")
    settings = load(toml(f'redis.url_file = "{secret}"'), {})
    assert settings.redis.url == f"redis://:{PASSWORD}@cache"
    assert PASSWORD not in repr(settings)
    assert load(None, {"CREDENTIALS_DIRECTORY": str(tmp_path)}).redis.url == settings.redis.url
    secret.write_text(" \n")
    assert faults(toml(f'redis.url_file = "{secret}"')) == [f'redis.url_file: "{secret}" is empty']


def test_a_bad_secret_file(tmp_path):
    def fault(where):
        return faults(None, {"CLASSPULSE_POSTGRES__DSN_FILE": str(where)})

    missing = tmp_path / "missing"
    assert fault(missing) == [f'postgres.dsn_file: cannot read "{missing}": No such file or directory']
    secret = tmp_path / "secret"
    secret.write_bytes(b"\xff")
    assert fault(secret) == [f'postgres.dsn_file: "{secret}" is not UTF-8 text']
    secret.write_text(PASSWORD)
    (told,) = fault(secret)
    assert told == f'postgres.dsn: expected "embedded" or a postgresql:// URL (the value from "{secret}" is not shown)'
    (tmp_path / "postgres.dsn").mkdir()
    (told,) = faults(None, {"CREDENTIALS_DIRECTORY": str(tmp_path)})
    assert told == f'postgres.dsn: cannot read "{tmp_path}/postgres.dsn": Is a directory'


# Properties

SAMPLES = {
    int: st.integers(),
    float: st.floats(),
    bool: st.booleans(),
    str: st.text(st.characters(exclude_categories=["Cs"])),
    list: st.lists(st.integers() | st.text("a/:*")),
    dict: st.dictionaries(st.text("ab", min_size=1), st.integers()),
}
FITS = {int: {int}, float: {int, float}, bool: {bool}, str: {str}, Path: {str}, tuple[str, ...]: {list}}


def toml_of(value):
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {toml_of(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml_of, value)) + "]"
    if isinstance(value, float):
        return repr(value)
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


@given(st.sampled_from(sorted(KEYS)), st.data())
def test_a_value_of_a_wrong_type_is_one_fault_led_by_its_key(tmp_path_factory, name, data):
    wrong = [kind for kind in SAMPLES if kind not in FITS[KEYS[name].type]]
    value = data.draw(st.one_of([SAMPLES[kind] for kind in wrong]))
    path = tmp_path_factory.getbasetemp() / "wrong.toml"
    path.write_text(f"{name} = {toml_of(value)}", encoding="utf-8")
    assert type(value) in wrong
    (fault,) = faults(path)
    assert fault.startswith(f"{name}: expected ")


@given(st.sampled_from(sorted(KEYS)), st.one_of(list(SAMPLES.values())))
def test_any_value_loads_as_it_is_or_is_a_fault(tmp_path_factory, name, value):
    path = tmp_path_factory.getbasetemp() / "any.toml"
    path.write_text(f"{name} = {toml_of(value)}", encoding="utf-8")
    loaded = attempt(path, {})
    if isinstance(loaded, Settings):
        expected = {list: tuple}.get(type(value), type(value))(value)
        assert value_of(loaded, name) == (Path(os.path.abspath(value)) if name == "data_dir" else expected)  # noqa: PTH100


@given(
    st.dictionaries(
        st.sampled_from([variable(name) for name in [*KEYS, *LATER]]) | st.text().map("CLASSPULSE_".__add__), st.text()
    )
)
@example({"CLASSPULSE_HTTP__CORS_ORIGINS": "[" * 100_000})
@example({"CLASSPULSE_POSTGRES__DSN_FILE": "\0"})
@example({"CLASSPULSE_DATA_DIR": "\udcff"})
def test_any_environment_loads_or_is_faults(environ):
    attempt(None, environ)


@given(st.binary() | st.text().map(str.encode))
def test_any_file_loads_or_is_faults(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "bytes.toml"
    path.write_bytes(content)
    attempt(path, {})


# The example


def documented():
    """Every ``# key = default`` of the example, under its dotted name, with the comment above it."""
    section, comment, found = "", "", {}
    for line in EXAMPLE.read_text().splitlines():
        if header := re.fullmatch(r"\[(\w+)\]", line):
            section = header[1] + "."
        elif key := re.fullmatch(r"(?:# )?(\w+) = (.*)", line):
            found[section + key[1]] = (tomllib.loads(f"x = {key[2]}")["x"], comment)
        comment = "" if not line.startswith("#") else f"{comment} {line[1:].strip()}"
    return found


def test_the_example_loads_and_changes_nothing():
    assert load(EXAMPLE, {}) == load(None, {})


def test_the_example_with_every_key_live_changes_nothing(toml):
    live = re.sub(r"^# (\w+ = )", r"\1", EXAMPLE.read_text(), flags=re.MULTILINE)
    assert len(re.findall(r"^\w+ = ", live, flags=re.MULTILINE)) == len(KEYS)
    path = toml(live.replace('dsn = "embedded"', "# dsn"))
    assert load(path, {}) == load(None, {})
    assert load(toml(live.replace("\ndsn_file =", "\n# dsn_file =")), {}) == load(None, {})


def test_the_example_documents_every_key_with_its_default_unit_and_range():
    found = documented()
    assert set(found) == set(KEYS)
    for name, (default, comment) in found.items():
        rule = KEYS[name].metadata["rule"]
        shown = Path(default) if name == "data_dir" else tuple(default) if isinstance(default, list) else default
        assert shown == KEYS[name].default, name
        assert comment, name
        assert rule.unit in comment, name
        if rule.low is not None:
            span = f"{rule.low} to {rule.high}" if rule.high is not None else f"at least {rule.low}"
            assert span in comment, name


def test_no_key_is_both_here_and_later():
    assert not set(LATER) & set(KEYS)


@pytest.mark.parametrize("place", ["u:hunter2@h:abc/db", "a..b/db", "[::1/db", "h:123456/db", "h:1:2/db"])
def test_a_dsn_that_cannot_be_meant_is_a_fault_that_does_not_show_it(place):
    with pytest.raises(ConfigError) as caught:
        load(None, {"CLASSPULSE_POSTGRES__DSN": f"postgresql://{place}"})
    (fault,) = caught.value.faults
    assert fault.startswith("postgres.dsn: ")
    assert "hunter2" not in fault


@pytest.mark.parametrize(
    "place",
    [
        "/db",
        "u:p%40@h:5432/db",
        "127.0.0.1:1/x?sslmode=require",
        "[::1]:5432/db",
        "h1:1,h2:2/db",
        "u@/db?host=%2Ftmp%2Fx",
    ],
)
def test_forms_of_a_dsn(place):
    assert load(None, {"CLASSPULSE_POSTGRES__DSN": f"postgresql://{place}"}).postgres.dsn == f"postgresql://{place}"
