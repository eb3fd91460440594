"""Where points go, and with which word of entry."""

from typing import Final, Literal, TypeAlias

import attrs

Api: TypeAlias = Literal["v1", "v2"]

# One request, body included, in seconds: past it the server counts as away. A flush of 5,000 points takes milliseconds.
REQUEST_S: Final = 10.0


@attrs.frozen(kw_only=True)
class Target:
    """What `influxdb.*` of the configuration says. In v1 ``bucket`` is ``database`` or ``database/policy``."""

    url: str  # without a slash at its end
    token: str = attrs.field(default="", repr=False)
    org: str = ""
    bucket: str
    api: Api

    @property
    def authorization(self) -> tuple[str, str] | None:
        """The user and password that a v1 token ``user:password`` is; None where it is none."""
        user, colon, password = self.token.partition(":")
        return (user, password) if self.api == "v1" and colon else None

    @property
    def headers(self) -> dict[str, str]:
        """What every request carries. ``Token user:password`` is what 1.8 and 2 take as v1; 1.6 takes Basic."""
        return {"Authorization": f"Token {self.token}"} if self.token and self.authorization is None else {}

    @property
    def write_parameters(self) -> dict[str, str]:
        """Of `/write` or `/api/v2/write`."""
        if self.api == "v2":
            return {"org": self.org, "bucket": self.bucket, "precision": "ns"}
        database, _, policy = self.bucket.partition("/")
        return {"db": database, "precision": "ns"} | ({"rp": policy} if policy else {})

    @property
    def container(self) -> str:
        """What the points go into, in the server's word."""
        return f"{'bucket' if self.api == 'v2' else 'database'} {self.bucket!r}"
