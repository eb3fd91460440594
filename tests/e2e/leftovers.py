"""PostgreSQL servers that a killed daemon left behind."""

from pathlib import Path

import psutil

STOP_WITHIN_S = 10


def stop_leftover_servers(base: Path) -> None:
    """Stop each server whose data directory is below ``base``: only what a daemon of this test started lives there."""
    for pid_file in base.rglob("postmaster.pid"):
        try:
            server = psutil.Process(int(pid_file.read_text().splitlines()[0]))
            if not Path(server.cwd()).is_relative_to(base):
                continue  # the pid was reused by somebody else
            family = [server, *server.children(recursive=True)]
            server.terminate()
            psutil.wait_procs([server], timeout=STOP_WITHIN_S)
            for process in family:
                if process.is_running():
                    process.kill()
            psutil.wait_procs(family, timeout=STOP_WITHIN_S)
        except (psutil.NoSuchProcess, FileNotFoundError, ValueError, IndexError):
            continue  # it went by itself
