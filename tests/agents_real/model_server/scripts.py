"""What the model does, whichever protocol it is asked by."""

from __future__ import annotations

import time
from collections.abc import Iterator
from enum import Enum

import attrs

__all__ = ["ANSWER", "REFUSALS", "SCRIPTS", "Cut", "Ending", "Refusal", "Script", "Usage"]

ANSWER = "The stand-in model says hello."
LONG = 3600  # seconds until a usage limit is lifted
SHORT = 2  # seconds that a rate limit asks for

_WORDS = tuple(f"{word} " for word in ANSWER.split(" ")[:-1]) + tuple(ANSWER.split(" ")[-1:])


class Usage:
    """Tokens, the same in every reply, easy to recognise."""

    READ = 120
    CACHED = 20  # among those
    WRITTEN = 7


class Cut(Exception):  # noqa: N818 - how an answer ends, not an error
    """The model stops in the middle of its answer."""


class Ending(Enum):
    """How a reply ends."""

    WELL = "well"
    STALL = "stall"
    DROP = "drop"
    ERROR = "error"


@attrs.frozen
class Script:
    """One reply: a command to run first, the words of the answer, seconds before each, and the end after them."""

    words: tuple[str, ...] = _WORDS
    command: str | None = None
    pause: float = 0.0
    ending: Ending = Ending.WELL

    def spoken(self) -> Iterator[str]:
        """The words in their time.

        Raises:
            Cut: After the last word, where the answer is to break off.
        """
        for word in self.words:
            time.sleep(self.pause)
            yield word
        if self.ending is not Ending.WELL:
            raise Cut


@attrs.frozen
class Refusal:
    """A request that is answered by a status and, in each vendor's own shape, by the reason.

    Attributes:
        anthropic: The error's type and message.
        openai: The error's type, its code, and its message.
        retry_after: Seconds.
    """

    status: int
    anthropic: tuple[str, str]
    openai: tuple[str, str | None, str]
    retry_after: int | None = None
    anthropic_status: int | None = None


SCRIPTS = {
    "ok": Script(),
    "tool": Script(command="echo hi"),
    "badtool": Script(command="exit 3"),
    "writetool": Script(command="echo hi > ../outside.txt; cat ../outside.txt"),
    "longtool": Script(command="sleep 300", pause=0.5),
    "fasttool": Script(command="sleep 300"),
    "empty": Script(words=()),
    "slow": Script(words=("one ", "two ", "three"), pause=1.0),
    "stall": Script(words=_WORDS[:2], ending=Ending.STALL),
    "drop": Script(words=_WORDS[:2], ending=Ending.DROP),
    "failed": Script(words=_WORDS[:2], ending=Ending.ERROR),
}

REFUSALS = {
    "error401": Refusal(
        401,
        ("authentication_error", "invalid x-api-key"),
        ("invalid_request_error", "invalid_api_key", "Incorrect API key provided: dummy."),
    ),
    "error500": Refusal(
        500,
        ("api_error", "Internal server error"),
        ("server_error", None, "The server had an error while processing your request."),
    ),
    "overload": Refusal(
        503,
        ("overloaded_error", "Overloaded"),
        ("server_error", "server_is_overloaded", "Our servers are currently overloaded. Please try again later."),
        anthropic_status=529,
    ),
    "rate429": Refusal(
        429,
        ("rate_limit_error", "This request would exceed the rate limit for your organization."),
        (
            "tokens",
            "rate_limit_exceeded",
            "Rate limit reached for lab on tokens per min (TPM). Please try again in 2s.",
        ),
        retry_after=SHORT,
    ),
    "limit429": Refusal(
        429,
        ("rate_limit_error", "This request would exceed your account's rate limit. Please try again later."),
        ("usage_limit_reached", None, "The usage limit has been reached"),
        retry_after=LONG,
    ),
    "quota": Refusal(
        429,
        ("invalid_request_error", "Your credit balance is too low to access the Anthropic API."),
        ("insufficient_quota", "insufficient_quota", "You exceeded your current quota, please check your plan."),
        anthropic_status=400,
    ),
}
