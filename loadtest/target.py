"""The daemon under load: where it is, and whether we may."""

import ipaddress
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from loadtest.errors import UsageError

EVENTS = "/api/v1/events"
STREAM = "/api/v1/stream"


@dataclass(frozen=True)
class Target:
    """A daemon's address and the access key for it, if it wants one."""

    url: str  # http(s)://host:port, without a path
    key: str | None = field(default=None, repr=False)

    @property
    def tls(self) -> bool:
        """Whether it is reached over TLS."""
        return self.url.startswith("https:")

    @property
    def host(self) -> str:
        """Name or address."""
        return urlsplit(self.url).hostname or ""

    @property
    def port(self) -> int:
        """Given, or the scheme's own."""
        return urlsplit(self.url).port or (443 if self.tls else 80)

    @property
    def netloc(self) -> str:
        """For the Host header."""
        return urlsplit(self.url).netloc

    @property
    def loopback(self) -> bool:
        """Whether it is this machine."""
        return is_loopback(self.host)

    @property
    def headers(self) -> list[tuple[str, str]]:
        """What each request carries beside its own."""
        return [("Authorization", f"Bearer {self.key}")] if self.key else []


def allowed(url: str, owned: str | None, key: str | None = None) -> Target:
    """The target; UsageError unless it is loopback or the host that its owner named."""
    try:
        parts = urlsplit(url)
        port_fits = parts.port is None or 0 < parts.port < 65536
    except ValueError:
        raise UsageError(f"target: expected http://host:port, got {url!r}") from None
    if parts.scheme not in {"http", "https"} or not parts.hostname or not port_fits or parts.path not in {"", "/"}:
        raise UsageError(f"target: expected http://host:port, got {url!r}")
    if parts.username is not None or parts.query or parts.fragment:
        raise UsageError("target: give the key with --key-file, and no query")
    target = Target(f"{parts.scheme}://{parts.netloc}", key)
    if not target.loopback and target.host != (owned or "").lower():
        raise UsageError(
            f"target: {target.host} is not this machine; a load test can take a server down. "
            f"If it is yours, say --i-own-this-host {target.host}"
        )
    return target


def is_loopback(host: str) -> bool:
    """Whether a name or address can only be this machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
