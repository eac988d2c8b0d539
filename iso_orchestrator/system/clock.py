"""The one place that reads a clock."""

import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Protocol

import attrs

from iso_orchestrator.record.model import truncate_to_ms
from iso_orchestrator.system.interrupts import unmasked

__all__ = ["Backoff", "Clock", "InjectedClock", "SystemClock", "monotonic", "sleep", "truncate_to_ms"]

monotonic = time.monotonic
nap = time.sleep  # in a masked block Ctrl-C does not end it, as it ends `sleep`

_FIRST_PAUSE = 0.0005  # seconds
_LONGEST_PAUSE = 0.02  # at some 20 microseconds a look, a process waits at a thousandth of a core
_BOOT_CLOCK = getattr(time, "CLOCK_BOOTTIME", None)


class Clock(Protocol):
    """What the rest of the package knows of time."""

    def now(self) -> datetime:
        """The time in UTC, aware, cut to milliseconds."""
        ...

    def boot(self) -> tuple[str, float] | None:
        """The id of this boot and the seconds since it, sleep included; None where there is no such clock."""
        ...


class SystemClock:
    """The machine's clocks."""

    def now(self) -> datetime:
        """The wall clock."""
        # A third of the time of cutting what datetime.now() gives; a float holds milliseconds until long after 2100.
        return datetime.fromtimestamp(time.time_ns() // 1_000_000 / 1000, UTC)

    def boot(self) -> tuple[str, float] | None:
        """The boot clock, which no administrator and no time server turns back."""
        if _BOOT_CLOCK is None or (boot_id := _boot_id()) is None:
            return None
        return boot_id, time.clock_gettime(_BOOT_CLOCK)


@attrs.frozen(eq=False)
class InjectedClock:
    """A clock that a test moves: it replaces the boot clock too."""

    read: Callable[[], datetime]

    def now(self) -> datetime:
        """The injected time.

        Raises:
            TypeError: It is no datetime.
            ValueError: It is naive.
        """
        value = self.read()
        if not isinstance(value, datetime):
            raise TypeError(f"now() must return a datetime, not {type(value).__name__}")
        if value.tzinfo is None or value.utcoffset() is None:
            raise ValueError("now() returned a naive datetime: use datetime.now(UTC)")
        return truncate_to_ms(value.astimezone(UTC))

    def boot(self) -> None:
        """No boot clock: the injected time decides."""
        return


def sleep(seconds: float) -> None:
    """Let *seconds* go by. Ctrl-C ends it, in a masked block too."""
    with unmasked():
        time.sleep(seconds)


@attrs.define(eq=False)
class Backoff:
    """The pause between two looks: short at first, then long enough to cost nothing."""

    sleep: Callable[[float], None] = sleep
    seconds: float = _FIRST_PAUSE

    def rest(self) -> None:
        """Let time go by."""
        self.sleep(self.seconds)
        self.seconds = min(2 * self.seconds, _LONGEST_PAUSE)


def _boot_id() -> str | None:
    global _cached_boot_id
    if _cached_boot_id == "":
        try:
            with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
                _cached_boot_id = file.read().strip() or None
        except OSError:
            _cached_boot_id = None
    return _cached_boot_id


_cached_boot_id: str | None = ""
