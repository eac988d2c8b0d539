"""Limits: when each is lifted, read from the words of the CLIs."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from functools import partial
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iso_orchestrator.agents import Agent, Codex, OpenCode
from iso_orchestrator.agents.limits import from_epoch, is_limit, retry_after, until_of
from iso_orchestrator.agents.turn import Transcript, last_error_line


def error_of(kind: type[Agent]) -> Callable[[str], object]:
    """Reads the error from the standard error of a run that printed nothing."""
    return partial(kind().error_message, Transcript())


BERLIN = ZoneInfo("Europe/Berlin")
NOW = datetime(2026, 11, 22, 9, 30, tzinfo=UTC)  # 10:30 in Berlin


def utc(day: int, hour: int, minute: int, second: int = 0, *, month: int = 11, year: int = 2026) -> datetime:
    return datetime(year, month, day, hour, minute, second, tzinfo=UTC)


# Local times are Berlin's. A minute that is named ends a minute later.
TIMES = [
    # codex: today's is a time alone
    ("You\u2019ve hit your usage limit. Upgrade to Pro or try again at 9:55 PM.", utc(22, 20, 56)),
    ("You've hit your usage limit. Try again at 11:05 AM.", utc(22, 10, 6)),
    ("You've hit your usage limit. Try again at 12:00 PM.", utc(22, 11, 1)),
    ("You've hit your usage limit. or try again at Jan 23rd, 2027 4:06 AM.", utc(23, 3, 7, month=1, year=2027)),
    ("You've hit your usage limit. Try again at Nov 22nd, 2026 1:00 PM.", utc(22, 12, 1)),
    ("You've hit your usage limit. Try again at 9:55\u202fPM.", utc(22, 20, 56)),
    ("You've hit your usage limit or try again in 5 days 22 hours 11 minutes.", utc(28, 7, 42)),
    ("You've hit your usage limit. Try again in 3h 42m.", utc(22, 13, 13)),
    ("Rate limit reached for lab. Please try again in 2s.", utc(22, 9, 30, 2)),
    # the minute has just passed: it was today's, not tomorrow's
    ("You've hit your usage limit. Try again at 10:30 AM.", utc(22, 9, 31)),
    ("You've hit your usage limit. Try again at 10:29 AM.", utc(22, 9, 30)),
    ("You've hit your usage limit. Try again at 10:25 AM.", utc(22, 9, 26)),
    # claude: a time alone is within a day
    ("You've hit your limit · resets 10:02am (UTC)", utc(22, 10, 3)),
    ("You've hit your limit · resets 9am (UTC)", utc(23, 9, 1)),
    ("You've hit your session limit · resets 2:30pm (Pacific/Auckland)", utc(23, 1, 31)),
    ("You've hit your session limit · resets 7:50pm", utc(22, 18, 51)),
    ("You've hit your weekly limit · resets Nov 30 at 6am (Asia/Tokyo)", utc(29, 21, 1)),
    ("You've hit your weekly limit · resets Dec 3, 9am", utc(3, 8, 1, month=12)),
    ("You've hit your weekly limit · resets Jan 2, 9am", utc(2, 8, 1, month=1, year=2027)),
    ("Weekly limit reached · resets 12am (Asia/Seoul) · /upgrade to Max", utc(22, 15, 1)),
    ("Claude usage limit reached. Your limit will reset at 3pm (America/Santiago).", utc(22, 18, 1)),
    ("Claude AI usage limit reached|1795341767", utc(22, 10, 2, 47)),
]

NO_TIME = [
    "You've hit your usage limit. Try again later.",
    "You've hit your usage limit, or try again at 10 de jul. de 2026, 11:52.",
    "You've hit your limit · resets 10am (Nowhere/Land)",
    "You've hit your limit · resets 10am (../../etc/passwd)",
    "You've hit your limit · resets 13pm",
    "You've hit your limit · resets 9:75am (UTC)",
    "You've hit your limit · resets Feb 31 at 9am",
    "You've hit your usage limit. Try again at Nov 31st, 2026 4:06 AM.",
    "You've hit your usage limit. Try again at Nov 1st, 0000 4:06 AM.",
    "You've hit your usage limit. Try again in 2 fortnights.",
    "You've hit your usage limit. Try again in 999999 days 999999 days 999999 days.",
    "",
]


@pytest.mark.parametrize(("text", "until"), TIMES)
def test_times_are_read(text: str, until: datetime) -> None:
    """Each form that was seen, from codex and from claude, is recognized as a limit, and gives its moment."""
    assert until_of(text, NOW, BERLIN) == until
    assert is_limit(text)


@pytest.mark.parametrize("text", NO_TIME)
def test_what_is_no_time_is_none(text: str) -> None:
    """A text without a clear time gives none."""
    assert until_of(text, NOW, BERLIN) is None


def test_a_limit_told_just_before_midnight_is_read_just_after_it() -> None:
    """A time of yesterday, read just after midnight, is not put off by a day."""
    just_after = datetime(2026, 11, 22, 23, 0, 5, tzinfo=UTC)  # 0:00:05 in Berlin
    assert until_of("Try again at 11:59 PM.", just_after, BERLIN) == utc(22, 23, 0)
    assert until_of("Try again at 12:10 AM.", just_after, BERLIN) == utc(22, 23, 11)


def test_a_date_around_new_year_is_the_nearest() -> None:
    """A date without a year is not a year off."""
    new_year = datetime(2027, 1, 1, 0, 0, 30, tzinfo=UTC)
    assert until_of("resets Dec 31 at 11:59pm (UTC)", new_year) == utc(1, 0, 0, month=1, year=2027)
    assert until_of("resets Jan 1, 9am (UTC)", new_year - timedelta(days=1)) == utc(1, 9, 1, month=1, year=2027)


def test_the_end_of_summer_time_is_the_later() -> None:
    """Half past two comes twice in that night; the later is taken, since the earlier could meet the limit again."""
    night = datetime(2026, 10, 24, 22, tzinfo=UTC)
    assert until_of("resets 2:30am", night, BERLIN) == utc(25, 1, 31, month=10)


def test_the_zone_of_the_clock_does_not_matter() -> None:
    """The same *now* in another time zone gives the same moment."""
    elsewhere = NOW.astimezone(timezone(timedelta(hours=-11)))
    for text, until in TIMES:
        assert until_of(text, elsewhere, BERLIN) == until


def test_local_time_is_the_machine_s(monkeypatch: pytest.MonkeyPatch) -> None:
    """A time without a zone is in the machine's, with the offset of that day: summer time ended in between."""
    with monkeypatch.context() as changes:
        changes.setenv("TZ", "Europe/Berlin")
        time.tzset()
        before_the_end = datetime(2026, 10, 23, 12, tzinfo=UTC)
        assert until_of("Try again at Oct 24th, 2026 9:00 AM.", before_the_end) == utc(24, 7, 1, month=10)
        assert until_of("Try again at Oct 26th, 2026 9:00 AM.", before_the_end) == utc(26, 8, 1, month=10)
    time.tzset()


@given(st.text() | st.from_regex(r"(try again|resets) (at|in) [\w:, ()]{0,40}"), st.datetimes(timezones=st.just(UTC)))
def test_no_text_raises(text: str, now: datetime) -> None:
    """Any text at any time gives a moment or None."""
    until = until_of(text, now, BERLIN)
    assert until is None or until.tzinfo is UTC


@given(st.datetimes(datetime(2020, 1, 1), datetime(2040, 1, 1)), st.integers(1, 1380))
def test_a_time_of_day_is_within_a_day_and_never_early(now: datetime, minutes: int) -> None:
    """A limit that ends within 23 hours, in the words of codex and claude, lasts to the end of its minute."""
    now = now.replace(tzinfo=UTC)
    end = now + timedelta(minutes=minutes)
    until = until_of(f"resets {end:%I:%M%p} (UTC)", now)
    assert until is not None
    assert timedelta() < until - end <= timedelta(minutes=1)


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        ("exceeded retry limit, last status: 429 Too Many Requests", True),
        ("API Error: Request rejected (429) · This request would exceed your account's rate limit.", True),
        ("You've reached your Fable limit. Run /usage-credits to continue.", True),
        ("5-hour limit reached ∙ resets 3pm", True),
        ("Quota exceeded. Check your plan and billing details.", False),
        ("Credit balance is too low", False),
        ("You exceeded your current quota (429), please check your plan: insufficient_quota", False),
        ("context window limit reached", False),
        ("API Error: 529 Overloaded.", False),
        ("connect ECONNREFUSED 127.0.0.1:4290", False),
    ],
)
def test_limits_are_told_from_other_errors(text: str, limit: bool) -> None:
    """A used-up credit, an overload and a full context are no limits that time lifts."""
    assert is_limit(text) is limit


def test_a_status_tells_a_limit_too() -> None:
    """Status 429 is a limit with any words, except those for a used-up credit."""
    assert is_limit("no", 429)
    assert not is_limit("no", 500)
    assert not is_limit("You exceeded your current quota", 429)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "2"}, 2),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after-ms": "250", "retry-after": "9"}, 0.25),
        ({"retry-after": "Sun, 22 Nov 2026 09:31:00 GMT"}, 60),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "9" * 400}, None),
        ({"retry-after-ms": "nan"}, None),
        ({"retry-after": None}, None),
        ({}, None),
    ],
)
def test_headers_are_read(headers: dict[str, object], seconds: float | None) -> None:
    """Seconds, milliseconds and dates are read; anything else gives None."""
    assert retry_after(headers, NOW) == (None if seconds is None else NOW + timedelta(seconds=seconds))


def test_an_epoch_in_milliseconds_is_no_moment() -> None:
    """A number outside of all years gives None."""
    assert from_epoch(1795341767) == utc(22, 10, 2, 47)
    assert [from_epoch(value) for value in (1795341767000, float("nan"), 10**400, "1795341767", None)] == [None] * 5


LOGGED = "timestamp=2026-11-22T09:30:00.000Z level=ERROR "
BEGINNINGS = [
    "",
    "resets in ",
    "resets in 1",
    "resets jan",
    "hit your ",
    "limit reached|",
    LOGGED,
    f'{LOGGED}error="',
    "\x1b[",
]
REPEATED = [
    "a",
    "0",
    " ",
    "1h",
    "1 h and ",
    "resets ",
    "resets 1pm (",
    "try again at ",
    "your ",
    "-",
    "\x1b[0;",
    "\\",
    '\\"',
]
REPEATED += [
    "error",
    "error.",
    " error.",
    'error="',
    'error="\\"',
    f"{LOGGED}\n",
    f'{LOGGED}error="',
    " small=true",
    "[",
    '{"a":',
]


@pytest.mark.parametrize("beginning", BEGINNINGS)
@pytest.mark.parametrize(
    "read", [is_limit, partial(until_of, now=NOW), last_error_line, error_of(Codex), error_of(OpenCode)]
)
def test_a_hostile_line_takes_no_longer_than_its_length(beginning: str, read: Callable[[str], object]) -> None:
    """Each search of 64 KB takes some milliseconds; with the square of the length it would be many seconds."""
    for repeated in REPEATED:
        line = beginning + repeated * (65_536 // len(repeated))
        began = time.process_time()
        read(line)
        assert time.process_time() - began < 2, repeated
