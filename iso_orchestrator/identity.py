"""Names for this process and for what it begins: unique for ever, and said in locks and records."""

from __future__ import annotations

import os
from functools import cache

__all__ = ["host_name", "unique_name"]


def unique_name() -> str:
    """16 hex digits that nobody else has. `secrets` would take longer to import than most of this package."""
    return os.urandom(8).hex()


@cache
def host_name() -> str:
    """This machine, as its network knows it."""
    if hasattr(os, "uname"):
        return os.uname().nodename
    import socket  # Windows: some milliseconds, and nothing else here needs it

    return socket.gethostname()
