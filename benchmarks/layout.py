"""Numbers with their units, and Markdown tables."""

from __future__ import annotations

from collections.abc import Callable, Sequence


def table(lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table; nothing if there is no line below the first."""
    if len(lines) < 2 or len(lines[0]) < 2:
        return ""
    widths = [max(3, *(len(line[column]) for line in lines)) for column in range(len(lines[0]))]
    padded = [[text.ljust(width) for text, width in zip(line, widths, strict=True)] for line in lines]
    rule = ["-" * width for width in widths]
    return "".join(f"| {' | '.join(line)} |\n" for line in [padded[0], rule, *padded[1:]])


def cell(value: float | None, shown: Callable[[float], str]) -> str:
    return "" if value is None else shown(value)


def seconds(value: float) -> str:
    if value < 1e-3:
        return f"{value * 1e6:.3g} us"
    return f"{value * 1e3:.3g} ms" if value < 1 else f"{value:.3g} s"


def size(value: float) -> str:
    if value < 10_000:
        return f"{value:,.0f} B"
    return f"{value / 1e3:,.0f} KB" if value < 1e6 else f"{value / 1e6:,.0f} MB"


def times(value: float) -> str:
    return f"{value:.2f} x" if 0.1 <= value < 10 else f"{value:,.0f} x" if value >= 10 else f"{value:.1g} x"


def plain(value: float) -> str:
    return f"{value:.2f}"


def percent(value: float) -> str:
    return f"{value:.1f} %"
