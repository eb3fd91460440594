"""What trusted proxies say about a request: ``X-Forwarded-*``, or ``Forwarded`` (RFC 7239).

A proxy adds its word at the end of a list: the last is the nearest proxy's, and the only one surely not made up.
"""

import ipaddress
import re
from collections.abc import Iterable
from typing import Final

import attrs

from .messages import Headers

NAMES: Final = frozenset(
    {b"forwarded", b"x-forwarded-for", b"x-forwarded-host", b"x-forwarded-proto", b"x-real-ip"},
)
_SCHEMES: Final = ("http", "https")
# name=token or name="quoted", of the last element.
_PAIR: Final = re.compile(rb'(for|host|proto)=(?:"([^"\\]*)"|([^\s;,"]+))', re.IGNORECASE)


@attrs.frozen
class Forwarded:
    """Where a request came from before the proxies; what they did not say is None."""

    client: str | None = None  # IP address
    scheme: str | None = None  # http or https
    host: bytes | None = None  # as in a Host header


class Proxies:
    """The proxies that are believed: addresses and networks, as in ``http.trusted_proxies``."""

    def __init__(self, trusted: Iterable[str]) -> None:
        self._networks = [ipaddress.ip_network(text, strict=False) for text in trusted]

    def trusts(self, address: str) -> bool:
        """Whether a peer's address is one of them. What is no address (a Unix socket's) is not."""
        try:
            ip = ipaddress.ip_address(address.partition("%")[0])
        except ValueError:
            return False
        ip = getattr(ip, "ipv4_mapped", None) or ip
        return any(ip in network for network in self._networks)

    def read(self, headers: Headers) -> Forwarded:
        """What the headers say, last word first; a client's address is the last that is no proxy of ours."""
        said: dict[bytes, list[bytes]] = {}
        for name, value in headers:
            if name in NAMES:
                said.setdefault(name, []).extend(part.strip() for part in value.split(b","))
        hops = said.get(b"x-forwarded-for") or said.get(b"x-real-ip") or []
        hosts = said.get(b"x-forwarded-host", [])
        schemes = said.get(b"x-forwarded-proto", [])
        for element in said.get(b"forwarded", []):
            for name, quoted, token in _PAIR.findall(element):
                {b"for": hops, b"host": hosts, b"proto": schemes}[name.lower()].append(quoted or token)
        scheme = schemes[-1].decode("latin-1").lower() if schemes else ""
        return Forwarded(
            client=self._client(hops),
            scheme=scheme if scheme in _SCHEMES else None,
            host=hosts[-1] if hosts and hosts[-1] else None,
        )

    def _client(self, hops: list[bytes]) -> str | None:
        client = None
        for hop in reversed(hops):
            try:
                client = str(ipaddress.ip_address(_without_port(hop.decode("latin-1"))))
            except ValueError:  # "unknown", or a name that hides it
                break
            if not self.trusts(client):
                break
        return client


def _without_port(text: str) -> str:
    if text.startswith("["):
        return text[1:].partition("]")[0]
    return text.partition(":")[0] if text.count(":") == 1 else text
