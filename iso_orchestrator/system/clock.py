"""Clocks: the only module that reads the time."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import cache, partial
from typing import Protocol

import attrs

from iso_orchestrator.record.model import truncate_to_ms
from iso_orchestrator.system.events import LONGEST_WAIT
from iso_orchestrator.system.interrupts import interruptible

# Not `time.monotonic`: tools that freeze the time of tests replace that in each module, and no time limit would come.
monotonic: Callable[[], float] = partial(time.clock_gettime, time.CLOCK_MONOTONIC)
nap = time.sleep  # unlike `sleep`, Ctrl-C does not end it in a masked block

_FIRST_PAUSE = 0.0005  # seconds
_LONGEST_PAUSE = 0.02  # seconds; a look takes some 20 microseconds, so that waiting costs a thousandth of a core
_FIRST_NAMESPACE = 0xEFFFFFFA  # the number that Linux gives the time namespace of the boot
_BOOT_CLOCK = getattr(time, "CLOCK_BOOTTIME", None)


class Clock(Protocol):
    """A source of the time, as the rest of the package uses it."""

    def now(self) -> datetime:
        """The time in UTC, as an aware datetime cut to milliseconds."""
        ...

    def boot(self) -> tuple[str, float] | None:
        """The id of this boot and the seconds since then, with sleep; None where there is no such clock."""
        ...


class SystemClock:
    """The machine's clocks."""

    def now(self) -> datetime:
        """The wall clock."""
        # A third of the time of `truncate_to_ms(datetime.now(UTC))`. A float holds milliseconds until long after 2100.
        return datetime.fromtimestamp(time.time_ns() // 1_000_000 / 1000, UTC)

    def boot(self) -> tuple[str, float] | None:
        """The boot clock, which never goes back, whoever sets the time."""
        try:
            found = _clock_id()
        except OSError:
            return None
        return None if _BOOT_CLOCK is None or not found else (found, time.clock_gettime(_BOOT_CLOCK))


@attrs.frozen
class InjectedClock:
    """A clock that a test moves. It replaces the boot clock too.

    Args:
        read: Returns the time.
    """

    read: Callable[[], datetime]

    def now(self) -> datetime:
        """The injected time.

        Raises:
            TypeError: `read` returned no datetime.
            ValueError: `read` returned a naive datetime.
        """
        value = self.read()
        if not isinstance(value, datetime):
            raise TypeError(f"now() must return a datetime, not {type(value).__name__}")
        if value.tzinfo is None or value.utcoffset() is None:
            raise ValueError("now() returned a naive datetime: use datetime.now(UTC)")
        return truncate_to_ms(value.astimezone(UTC))

    def boot(self) -> None:
        """None: the injected time decides."""
        return


def sleep(seconds: float) -> None:
    """Sleep. Ctrl-C ends it, in a masked block too."""
    with interruptible():
        end = monotonic() + seconds
        while (left := end - monotonic()) > LONGEST_WAIT:
            time.sleep(LONGEST_WAIT)
        time.sleep(max(0.0, left))


@attrs.define
class Backoff:
    """Pauses between two looks: short at first, then long enough to cost nothing.

    Args:
        seconds: The first pause.
    """

    sleep: Callable[[float], None] = sleep
    seconds: float = _FIRST_PAUSE

    def rest(self) -> None:
        """Sleep, and make the next pause longer."""
        self.sleep(self.seconds)
        self.seconds = min(2 * self.seconds, _LONGEST_PAUSE)


@cache
def boot_id() -> str:
    """The id of this boot of the machine; empty where none is known.

    Raises:
        OSError: It cannot be read for now.
    """
    try:
        with open("/proc/sys/kernel/random/boot_id", "rb") as file:  # a text's encoding may need one more descriptor
            return file.read().decode().strip()
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return ""


@cache
def _clock_id() -> str:
    """The id of the boot that the boot clock counts from, and of the time namespace, which may shift that clock."""
    try:
        namespace = os.stat("/proc/self/ns/time").st_ino
    except OSError:  # before Linux 5.6, which has none
        return boot_id()
    return boot_id() if not boot_id() or namespace == _FIRST_NAMESPACE else f"{boot_id()}:{namespace}"


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_clock_id.cache_clear)  # a new namespace begins with a child
