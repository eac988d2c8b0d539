"""A private PostgreSQL cluster, with the defaults that initdb gives it, on a socket in a temporary folder."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

USER = "postgres"


@dataclass(frozen=True)
class Cluster:
    """A running server.

    Attributes:
        binaries: The folder of its programs.
        socket: The folder of its socket.
    """

    binaries: Path
    socket: Path

    def url(self, database: str) -> str:
        return f"postgresql://{USER}@/{database}?host={self.socket}"

    def drop(self, database: str) -> None:
        """Remove a database if it exists, even if clients are connected."""
        call(self.binaries / "dropdb", "--if-exists", "--force", "-h", self.socket, "-U", USER, database)

    def syncs(self) -> int | None:
        """How often the log was synced since the start; None if this version does not count it."""
        query = "SELECT pg_sleep(1.5); SELECT wal_sync FROM pg_stat_wal"  # the counts are published with a delay
        command = [self.binaries / "psql", "-h", self.socket, "-U", USER, "-Atc", query, USER]
        told = subprocess.run(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        return int(told.stdout.split()[-1]) if told.returncode == 0 else None


def binaries() -> Path | None:
    """The folder of PostgreSQL's programs; None if it is not installed."""
    if (found := shutil.which("initdb")) is not None:
        return Path(found).resolve().parent
    if shutil.which("pg_config") is None:
        return None
    folder = Path(call("pg_config", "--bindir").strip())
    return folder if (folder / "initdb").exists() else None


@contextmanager
def cluster(data: Path) -> Iterator[Cluster]:
    """Make a cluster in the folder *data*, start it, and stop it at the end. For root, the user postgres runs it."""
    programs = binaries()
    if programs is None:
        raise FileNotFoundError("PostgreSQL is not installed")
    socket = Path(tempfile.mkdtemp(prefix="bench-"))
    data.mkdir(mode=0o700, parents=True)
    before: list[str] = []
    if os.geteuid() == 0:
        before = ["runuser", "-u", USER, "--"]
        for folder in (data, socket):
            shutil.chown(folder, USER)
    control = [*before, str(programs / "pg_ctl"), "--silent", "-w", "-D", str(data), "-l", str(data / "log")]
    try:
        call(*before, programs / "initdb", "-D", data, "-U", USER, "--auth=trust", "--no-instructions")
        call(*control, "-o", f"-k {socket} -c listen_addresses=''", "start")
        try:
            yield Cluster(programs, socket)
        finally:
            call(*control, "-m", "fast", "stop")
    finally:
        shutil.rmtree(socket, ignore_errors=True)
        shutil.rmtree(data, ignore_errors=True)


def call(*command: str | Path) -> str:
    done = subprocess.run(
        [str(part) for part in command], check=True, text=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    return done.stdout
