"""TOML, then environment, then secrets from files: one ``Settings``, or every fault at once.

Values are gathered under their dotted names, checked one by one by the rule on their field, then against each other.
"""

import difflib
import ipaddress
import json
import math
import operator
import os
import re
import tomllib
from collections.abc import Callable, Collection, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

import cattrs

from config.errors import ConfigError
from config.settings import EMBEDDED, KEYS, UNAVAILABLE, Rule, Settings

SECTIONS: Final = frozenset(name.partition(".")[0] for name in KEYS if "." in name)
UNAVAILABLE_SECTIONS: Final = UNAVAILABLE.keys() - SECTIONS
PREFIX: Final = "CLASSPULSE_"
SHOWN_CHARS: Final = 80  # of a wrong value: enough to know it again on one line


class _UnfitError(Exception):
    """A value that does not fit its key; the message says what was expected."""


def load(path: Path | None, environ: Mapping[str, str], inherited: Collection[str] = ()) -> Settings:
    """Read the file (none: defaults), then ``environ``. Raises ConfigError with every fault, and nothing else.

    ``inherited`` are the addresses of listening sockets that a process manager handed over.
    """
    faults: list[str] = []
    given = {} if path is None else _flat(_read(path), faults)
    sources = _environment(environ, given, faults)
    faults += [_unknown(name, sources.get(name)) for name in given if name not in KEYS]
    given.setdefault("data_dir", environ.get("STATE_DIRECTORY", "").split(":")[0] or "./classpulse-data")
    _resolve_secrets(environ, given, sources, faults)

    values = {name: field.default for name, field in KEYS.items() if name not in given}
    for name in KEYS.keys() & given.keys():
        try:
            values[name] = _checked(name, given[name])
        except _UnfitError as unfit:
            faults.append(f"{name}: {unfit}{_secret_source(name, sources)}")
    faults += _contradictions(values, inherited)
    if faults:
        raise ConfigError(sorted(faults))

    tree: dict[str, Any] = {}
    for name in KEYS.keys() & given.keys():
        section, _, key = name.rpartition(".")
        (tree.setdefault(section, {}) if section else tree)[key] = given[name]
    tree["data_dir"] = os.path.abspath(tree["data_dir"])  # noqa: PTH100 - folds "." and "..", and follows no link
    return _CONVERTER.structure(tree, Settings)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach ``host``. A name other than ``localhost`` counts as reachable."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host.lower() == "localhost"
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback


# Gathering


def _read(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ConfigError([f"{path}: cannot be read: {error.strerror or error}"]) from error
    except ValueError as error:
        raise ConfigError([f"{path}: not UTF-8 text"]) from error
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        line, column = text.count("\n") + 1, len(text) - text.rfind("\n")
        reason = str(error).replace("at end of document", f"at line {line}, column {column}")
        raise ConfigError([f"{path}: not valid TOML: {reason}"]) from error


def _flat(document: dict[str, Any], faults: list[str]) -> dict[str, object]:
    given: dict[str, object] = {}
    for top, value in document.items():
        name = _written(top)
        if name in SECTIONS | UNAVAILABLE_SECTIONS:
            if not isinstance(value, dict):
                faults.append(f"{name}: expected a table, got {_shown(value)}")
            elif not value and name in UNAVAILABLE_SECTIONS:
                faults.append(f"{name}: not available in this version")
            else:
                given |= {f"{name}.{_written(key)}": inner for key, inner in value.items()}
        elif isinstance(value, dict) and name not in KEYS:
            faults.append(f"{name}: unknown section{_hint(name, {section: section for section in SECTIONS})}")
        else:
            given[name] = value
    return given


def _environment(environ: Mapping[str, str], given: dict[str, object], faults: list[str]) -> dict[str, str]:
    """Lay the variables over ``given``; return which variable gave each name."""
    sources: dict[str, str] = {}
    for variable, text in environ.items():
        if variable[: len(PREFIX)].upper() != PREFIX:
            continue
        name = ".".join(map(_written, variable[len(PREFIX) :].lower().split("__")))
        if name in sources:
            faults.append(f"{name}: given by both {sources[name]} and {_written(variable)}; keep one")
        sources[name] = _written(variable)
        given[name] = _parsed(text, KEYS[name].type) if name in KEYS else text
    return sources


def _parsed(text: str, kind: object) -> object:
    """Return the variable's value, or its text where that is of another type: the check then names it."""
    parsers: dict[object, Callable[[str], object]] = {
        int: int,
        float: float,
        bool: lambda word: {"true": True, "1": True, "false": False, "0": False}[word.lower()],
        tuple[str, ...]: json.loads,
    }
    try:
        return parsers.get(kind, str)(text)
    except (ValueError, KeyError, RecursionError):
        return text


def _resolve_secrets(
    environ: Mapping[str, str], given: dict[str, object], sources: dict[str, str], faults: list[str]
) -> None:
    """Take secrets from their files or systemd's credentials. Exactly one source: none is silently passed over."""
    for name, field in KEYS.items():
        if field.metadata["rule"].secret:
            _resolve_secret(name, environ.get("CREDENTIALS_DIRECTORY", ""), given, sources, faults)


def _resolve_secret(
    name: str, credentials: str, given: dict[str, object], sources: dict[str, str], faults: list[str]
) -> None:
    found = {name: ""} if name in given else {}
    file = given.get(f"{name}_file")
    if file and isinstance(file, str) and "\0" not in file:
        found[f"{name}_file"] = file
    if credentials and os.path.lexists(credential := f"{credentials}/{name}"):
        found[f"the systemd credential {name}"] = credential
    if len(found) > 1:
        faults.append(f"{name}: given more than once ({', '.join(found)}); keep one")
        return
    for label, where in found.items():
        if where:
            key = label if label in KEYS else name
            try:
                text = Path(where).read_text(encoding="utf-8").strip()
                given[name] = text.split() if KEYS[name].type == tuple[str, ...] else text
                sources[name] = where
                if not text:  # which could mean "none"
                    faults.append(f"{key}: {_shown(where)} is empty")
            except OSError as error:
                faults.append(f"{key}: cannot read {_shown(where)}: {error.strerror or error}")
            except ValueError:
                faults.append(f"{key}: {_shown(where)} is not UTF-8 text")


# Checking


def _checked(name: str, value: object) -> Any:
    field = KEYS[name]
    rule: Rule = field.metadata["rule"]
    got = "" if rule.secret else f", got {_shown(value)}"
    if isinstance(value, str) and value in rule.later:
        raise _UnfitError(f"{_shown(value)} is not available in this version")
    try:
        result: Any = _CONVERTER.structure(value, field.type or str)
    except _UnfitError as unfit:
        raise _UnfitError(f"expected {unfit}{got}") from None
    if rule.low is not None and not rule.low <= result <= (math.inf if rule.high is None else rule.high):
        span = f"of at least {rule.low}" if rule.high is None else f"from {rule.low} to {rule.high}"
        raise _UnfitError(f"expected {_NOUNS[field.type]} {span}{got}")
    strings: list[Any] = value if isinstance(value, list) else [value]
    if rule.pattern and not all(re.fullmatch(rule.pattern, text) for text in strings):
        raise _UnfitError(f"expected {rule.expected}{got}")
    return result


def _contradictions(values: Mapping[str, Any], inherited: Collection[str]) -> list[str]:
    """Compare keys with each other, as far as they are sound on their own."""
    faults = []
    host = values.get("http.host")
    is_open = values.get("auth.mode") == "open" and values.get("auth.allow_open_network") is False
    if is_open and host and not is_loopback(host):
        faults.append(
            f'http.host: {_shown(host)} is not a loopback address, and with auth.mode = "open" whoever reaches it '
            "is let in; use 127.0.0.1, or set auth.allow_open_network = true"
        )
    faults += [
        f'auth.mode: the inherited socket listens on {address}, which is not a loopback address, and with mode "open" '
        "whoever reaches it is let in; let it listen on 127.0.0.1, or set auth.allow_open_network = true"
        for address in inherited
        if is_open and not is_loopback(address)
    ]
    for text in values.get("http.trusted_proxies", ()):
        try:
            ipaddress.ip_network(text, strict=False)
        except ValueError:
            faults.append(f"http.trusted_proxies: {_shown(text)} is not an IP address or network")
    faults += _influx_contradictions(values)
    faults += _shard_contradictions(values)
    for earlier, later in (("idle_after_s", "offline_after_s"), ("offline_after_s", "retire_after_s")):
        low, high = values.get(f"session.{earlier}"), values.get(f"session.{later}")
        if low is not None and high is not None and low > high:
            faults.append(f"session.{later}: expected at least session.{earlier} ({low:g}), got {high:g}")
    return faults


def _influx_contradictions(values: Mapping[str, Any]) -> list[str]:
    """What `influxdb.url` needs beside it, and what means nothing without it."""
    given = {key: values.get(f"influxdb.{key}") for key in ("url", "bucket", "org", "token", "api")}
    if any(value is None for value in given.values()):
        return []
    if not given["url"]:
        return [
            f"influxdb.{key}: given without influxdb.url, which says where InfluxDB is"
            for key in ("bucket", "org", "token")
            if given[key]
        ]
    faults = []
    if not given["bucket"]:
        faults.append("influxdb.bucket: expected beside influxdb.url; with api v1 it is database or database/policy")
    if not given["org"] and given["api"] == "v2":
        faults.append('influxdb.org: expected beside influxdb.url, unless influxdb.api = "v1"')
    return faults


def _shard_contradictions(values: Mapping[str, Any]) -> list[str]:
    shards = values.get("postgres.shards")
    if not shards:
        return []
    faults = []
    if values.get("postgres.dsn", EMBEDDED) != EMBEDDED:
        faults.append("postgres.dsn: given beside postgres.shards, which stand in its place; keep one")
    if values.get("postgres.read_dsns"):
        faults.append("postgres.read_dsns: not with postgres.shards, whose queries go to the shards themselves")
    if len(set(shards)) < len(shards):
        faults.append("postgres.shards: a database is named twice (the value is not shown)")
    return faults


def _unknown(name: str, variable: str | None) -> str:
    source = f" (from {variable})" if variable else ""
    section, _, key = name.partition(".")
    if section in UNAVAILABLE_SECTIONS or key.removesuffix("_file") in UNAVAILABLE.get(section, ()):
        return f"{name}: not available in this version{source}"
    names = {key: PREFIX + key.upper().replace(".", "__") if variable else key for key in KEYS}
    return f"{name}: unknown key{source}{_hint(name, names)}"


def _hint(name: str, written: Mapping[str, str]) -> str:
    close = difflib.get_close_matches(name.lower(), written, n=1)
    return f"; did you mean {written[close[0]]}?" if close else ""


def _secret_source(name: str, sources: Mapping[str, str]) -> str:
    if not KEYS[name].metadata["rule"].secret:
        return ""
    return f" (the value{' from ' + _shown(sources[name]) if name in sources else ''} is not shown)"


def _written(key: str) -> str:
    """Return the key as TOML writes it: quoted unless bare, so that it stays on one line and its dots are its own."""
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else json.dumps(key)


def _shown(value: object) -> str:
    if isinstance(value, dict):
        return "a table"
    try:
        text = json.dumps(value, default=str)
    except (ValueError, RecursionError):  # an integer or a nesting beyond what Python prints
        text = f"a very long {type(value).__name__}"
    return text if len(text) <= SHOWN_CHARS else text[:SHOWN_CHARS] + "…"


def _strict(accepts: Callable[[Any], bool], noun: str) -> Callable[[Any, Any], Any]:
    def structure(value: Any, kind: Any) -> Any:
        if not accepts(value):
            raise _UnfitError(noun)
        return kind(value)

    return structure


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and -(2**63) <= value < 2**63


_NOUNS: Final[dict[object, str]] = {
    bool: "true or false",
    int: "an integer",
    float: "a number",
    str: "a string",
    Path: "a string",
    tuple[str, ...]: "a list of strings",
}
_CHECKS: Final[dict[object, Callable[[Any], bool]]] = {
    bool: lambda value: isinstance(value, bool),
    int: _is_integer,
    float: lambda value: _is_integer(value) or (isinstance(value, float) and math.isfinite(value)),
    str: lambda value: isinstance(value, str),
    Path: lambda value: isinstance(value, str),
    tuple[str, ...]: lambda value: isinstance(value, list) and all(isinstance(item, str) for item in value),
}
_CONVERTER: Final = cattrs.Converter(detailed_validation=False, forbid_extra_keys=True)
for _kind, _noun in _NOUNS.items():
    _hook = _strict(_CHECKS[_kind], _noun)
    if isinstance(_kind, type):  # outranks the hook of cattrs, which would coerce
        _CONVERTER.register_structure_hook(_kind, _hook)
    else:
        _CONVERTER.register_structure_hook_func(partial(operator.eq, _kind), _hook)
