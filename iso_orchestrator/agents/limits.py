"""Usage limits in the words of agents and providers: whether an error is one, and when it is lifted."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, date, datetime, time, timedelta, tzinfo
from email.utils import parsedate_to_datetime
from zoneinfo import ZoneInfo

# Sentences of the CLIs, from their recorded output and from users' reports.
_LIMIT = re.compile(
    r"(?:hit|reached) your (?:[\w-]+ )?limit|(?:usage|rate|session|hour|daily|weekly|monthly)[ _-]limit"
    r"|too many requests|\(429\)",
    re.IGNORECASE,
)
# Only a payment lifts these: a wait would never end.
_CREDIT = re.compile(r"insufficient_quota|quota exceeded|exceeded your current quota|credit balance", re.IGNORECASE)

_EPOCH = re.compile(r"limit reached\|(\d{10})\b")
_IN = re.compile(r"(?:try again|resets?) in ((?:\d{1,6}(?:\.\d{1,3})?\s*[a-z]+[\s,]*(?:and )?)+)", re.IGNORECASE)
_SPAN = re.compile(r"(\d+(?:\.\d+)?)\s*([a-z]+)", re.IGNORECASE)
_AT = re.compile(
    r"(?:try again at|resets?(?: at)?)\s+"
    r"(?:(?P<month>[a-z]{3})[a-z]*\.? (?P<day>\d{1,2})(?:st|nd|rd|th)?(?:,? (?P<year>\d{4}))?,? (?:at )?)?"
    r"(?P<hour>\d{1,2})(?::(?P<minute>\d\d))?\s?(?P<half>[ap])m\b(?: \((?P<zone>[^()]+)\))?",
    re.IGNORECASE,
)

_SECONDS = {
    unit: seconds
    for units, seconds in [
        ("s sec secs second seconds", 1.0),
        ("m min mins minute minutes", 60.0),
        ("h hr hrs hour hours", 3600.0),
        ("d day days", 86400.0),
        ("ms", 0.001),
    ]
    for unit in units.split()
}
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")

_TOO_MANY_REQUESTS = 429

_MINUTE = timedelta(minutes=1)
# A time of day that has just passed is today's, and the limit is over: tomorrow's would be a day too late.
_JUST_NOW = timedelta(minutes=10)


def is_limit(text: str, status: object = None) -> bool:
    """Whether an error is a limit that is lifted after some time, by its text or its HTTP status.

    Example:
        >>> is_limit("You've hit your usage limit. Try again later.")
        True
        >>> is_limit("Quota exceeded. Check your plan and billing details.")
        False
    """
    return (status == _TOO_MANY_REQUESTS or bool(_LIMIT.search(text))) and not _CREDIT.search(text)


def until_of(text: str, now: datetime, zone: tzinfo | None = None) -> datetime | None:
    """When the limit in the text of an error is lifted.

    Args:
        text: The text, with a time of day, a date, a span or an epoch.
        now: When the error came; aware.
        zone: The time zone of a time without one. None is this machine's, which the CLIs use.

    Returns:
        A moment in UTC; the end of the minute where a minute is named. None if the text names no time.

    Example:
        >>> noon = datetime(2026, 11, 22, 12, tzinfo=UTC)
        >>> until_of("You've hit your limit · resets 10:02am (UTC)", noon)
        datetime.datetime(2026, 11, 23, 10, 3, tzinfo=datetime.timezone.utc)
    """
    try:
        return _epoch_in(text) or _span_in(text, now) or _moment_in(text, now, zone)
    except (ValueError, OverflowError, OSError, LookupError):
        return None  # the 31st of June, 13 PM, fortnights, an unknown zone


def from_epoch(value: object, per_second: int = 1) -> datetime | None:
    """The moment that is *value* / *per_second* seconds after 1970; None where there is no such moment."""
    try:
        return datetime.fromtimestamp(value / per_second, UTC) if isinstance(value, int | float) else None
    except (ValueError, OverflowError, OSError):
        return None


def retry_after(headers: Mapping[str, object], at: datetime) -> datetime | None:
    """When to try again, by the headers of a refusal that came *at* a moment; None if they do not say.

    Example:
        >>> retry_after({"retry-after": "90"}, datetime(2026, 11, 22, tzinfo=UTC))
        datetime.datetime(2026, 11, 22, 0, 1, 30, tzinfo=datetime.timezone.utc)
    """
    try:
        if (milliseconds := headers.get("retry-after-ms")) is not None:
            return at + timedelta(milliseconds=float(str(milliseconds)))
        value = str(headers.get("retry-after", ""))
        if re.fullmatch(r"\d+(?:\.\d+)?", value):
            return at + timedelta(seconds=float(value))
        return parsedate_to_datetime(value).astimezone(UTC)
    except (ValueError, OverflowError, OSError):
        return None


def _epoch_in(text: str) -> datetime | None:
    found = _EPOCH.search(text)
    return from_epoch(int(found[1])) if found else None


def _span_in(text: str, now: datetime) -> datetime | None:
    found = _IN.search(text)
    spans = _SPAN.findall(found[1]) if found else []
    if not spans:
        return None
    parts = [(float(count), _SECONDS[unit.lower()]) for count, unit in spans]
    span = timedelta(seconds=sum(count * unit for count, unit in parts))
    is_cut = min(unit for _, unit in parts) >= _SECONDS["minute"]
    return now.astimezone(UTC) + span + (_MINUTE if is_cut else timedelta())


def _moment_in(text: str, now: datetime, zone: tzinfo | None) -> datetime | None:
    found = _AT.search(text)
    if found is None:
        return None
    if found["zone"]:
        zone = UTC if found["zone"] == "UTC" else ZoneInfo(found["zone"])
    clock = _clock(int(found["hour"]), int(found["minute"] or 0), found["half"].lower())
    if found["month"] is None:
        return _next(clock, now, zone)
    month, day = _MONTHS.index(found["month"].lower()) + 1, int(found["day"])
    if found["year"]:
        return _end_of_minute(date(int(found["year"]), month, day), clock, zone)
    return _nearest(month, day, clock, now, zone)


def _clock(hour: int, minute: int, half: str) -> time:
    if not 1 <= hour <= 12:
        raise ValueError(f"there is no {hour} {half}m")
    return time(hour % 12 + (12 if half == "p" else 0), minute)


def _next(clock: time, now: datetime, zone: tzinfo | None) -> datetime:
    """The next moment of *clock*: today's, or tomorrow's; just after midnight also yesterday's."""
    today = now.astimezone(zone).date()
    moments = (_end_of_minute(today + timedelta(days=days), clock, zone) for days in (-1, 0, 1))
    return next(moment for moment in moments if moment > now - _JUST_NOW)


def _nearest(month: int, day: int, clock: time, now: datetime, zone: tzinfo | None) -> datetime:
    """The nearest date without a year: at the end of December that of the next year, just after it of the last."""
    years = range(now.year - 1, now.year + 2)
    moments = [_end_of_minute(date(year, month, day), clock, zone) for year in years if _has(year, month, day)]
    return min(moments, key=lambda moment: abs(moment - now))


def _has(year: int, month: int, day: int) -> bool:
    return (month, day) != (2, 29) or year % 4 == 0


def _end_of_minute(day: date, clock: time, zone: tzinfo | None) -> datetime:
    # The CLIs cut the seconds off, in spans too, so the limit still holds when the minute begins. At the end of summer
    # time one local time is two moments: take the later.
    local = datetime.combine(day, clock, zone).replace(fold=1)
    return local.astimezone(UTC) + _MINUTE
