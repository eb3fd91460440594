"""The embedded PostgreSQL server: the wheel's binaries, run as a supervised child on a private Unix socket.

It holds to these rules. Only the wheel's binaries are used, never its Python code. A cluster and a copy of the binaries
appear by one rename, so a kill at any moment leaves nothing half-made in their place. A pid in a file proves nothing: a
leftover server is one that answers on its socket and names this directory. As root, the cluster and the socket's
directory belong to an unprivileged user, and no mode of a directory above them is ever changed.
"""

from adapters.embedded.postmaster import running_dsn
from adapters.embedded.server import EmbeddedPostgres

__all__ = ["EmbeddedPostgres", "running_dsn"]
