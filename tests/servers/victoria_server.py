"""VictoriaMetrics for tests (Debian's package): proves that the v2 wire format is taken, and no more than that.

It accepts wrong tokens and malformed lines, turns strings into 0, and keeps milliseconds only.
"""

import json
from typing import Any

import httpx

from tests.servers.process import ServerProcess


class VictoriaServer(ServerProcess):
    def __init__(self, program: str) -> None:
        super().__init__("victoria")
        self._program = program

    def command(self) -> list[str]:
        return [
            self._program,
            f"-httpListenAddr=127.0.0.1:{self.port}",
            f"-storageDataPath={self.base}/data",
            "-retentionPeriod=100y",
            "-search.latencyOffset=0s",
            "-loggerLevel=WARN",
            "-memory.allowedBytes=64MB",
        ]

    def answers(self) -> bool:
        try:
            return httpx.get(f"{self.url}/health", timeout=1, trust_env=False).status_code == 200
        except httpx.HTTPError:
            return False

    def series(self, selector: str) -> list[dict[str, Any]]:
        """What it has of a selector such as ``cell_executions_has_error``: ``{"metric", "values", "timestamps"}``."""
        httpx.get(f"{self.url}/internal/force_flush", timeout=30, trust_env=False)
        answer = httpx.post(f"{self.url}/api/v1/export", data={"match[]": selector}, timeout=30, trust_env=False)
        assert answer.status_code == 200, answer.text
        return [json.loads(line) for line in answer.text.splitlines()]
