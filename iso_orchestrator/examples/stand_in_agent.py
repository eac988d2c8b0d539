"""A stand-in for an agent's command line: it takes its time, prints JSON lines, and sometimes fails.

Example:
    python -m iso_orchestrator.examples.stand_in_agent --company Acme --role "data engineer" --attempt 1

It uses nothing of the package: to the demo it is a program like any other.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import time
from collections.abc import Sequence
from zlib import crc32

__all__ = ["main"]

_STAGES = ("reading the posting", "comparing it with the profile", "filling in the form")
_LAST_FAILING_ATTEMPT = 2


def main(argv: Sequence[str] | None = None) -> int:
    """Work on one job.

    Returns:
        The exit code: 0, or 1 when the job failed.
    """
    options = _parser().parse_args(argv)
    job = f"{options.company}:{options.role}"
    session = f"{crc32(job.encode()):08x}-{os.getpid()}"
    _emit(type="session", session=session)
    for stage in _STAGES:
        _emit(type="progress", message=stage)
        time.sleep(options.seconds / len(_STAGES))
    if _fails(job, options.attempt):
        _emit(type="error", message="the site did not answer")
        return 1
    outcome = "SKIPPED" if crc32(job.encode()) % 5 == 0 else "APPLIED"
    if options.ledger:
        _note(options.ledger, {"company": options.company, "role": options.role, "attempt": options.attempt})
    _emit(type="result", outcome=outcome, session=session)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="stand_in_agent", description="A stand-in for an agent.", allow_abbrev=False)
    parser.add_argument("--company", required=True)
    parser.add_argument("--role", required=True)
    parser.add_argument("--attempt", type=int, default=1, help="which attempt this is; some of the first two fail")
    parser.add_argument("--seconds", type=float, default=0.4, help="how long it takes (default: 0.4)")
    parser.add_argument("--ledger", metavar="FILE", help="append a line to FILE when the job is done")
    return parser


def _fails(job: str, attempt: int) -> bool:
    """Decided by the job and the attempt alone, so that three attempts are always enough."""
    return attempt <= _LAST_FAILING_ATTEMPT and crc32(f"{attempt}:{job}".encode()) % 3 == 0


def _emit(**message: str) -> None:
    print(json.dumps(message), flush=True)


def _note(path: str, entry: dict[str, str | int]) -> None:
    line = json.dumps(entry).encode() + b"\n"
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        os.write(fd, line)  # in one piece: others append to the same file
    finally:
        os.close(fd)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends it without a traceback
    raise SystemExit(main())
