"""Numbers the way tables and pages show them."""

from __future__ import annotations

import math
from collections.abc import Iterable

MISSING = "\N{EN DASH}"
MINUS = "\N{MINUS SIGN}"
THIN_SPACE = "\N{NARROW NO-BREAK SPACE}"


def format_value(value: float | None, decimals: int | None = None) -> str:
    """Four significant digits, or the given decimals; no exponent between 10⁻⁴ and 10⁷."""
    if value is None or not math.isfinite(value):
        return MISSING
    size = abs(value)
    if size != 0 and not 1e-4 <= size < 1e7:
        return _typeset(f"{value:.3e}")
    if decimals is None:
        decimals = _decimals_for(size)
    return _typeset(f"{value:,.{decimals}f}")


def column_decimals(values: Iterable[float | None]) -> int | None:
    """The decimals that align a column of values; None where their sizes differ too much for one format."""
    sizes = [abs(value) for value in values if value is not None and math.isfinite(value) and value != 0]
    if not sizes or max(sizes) > 100 * min(sizes):
        return None
    return _decimals_for(min(sizes))


def format_gap(gap: float | None, decimals: int | None = None) -> str:
    """A relative gap as a signed percentage."""
    if gap is None or not math.isfinite(gap):
        return MISSING
    percent = 100 * gap
    if decimals is None:
        decimals = gap_decimals([gap])
    shown = round(percent, decimals)
    return _typeset(f"{shown:+,.{decimals}f}") + " %" if shown else f"{0:.{decimals}f} %"


def gap_decimals(gaps: Iterable[float | None]) -> int:
    """The decimals that align a column of gaps."""
    sizes = [abs(100 * gap) for gap in gaps if gap is not None and math.isfinite(gap) and gap != 0]
    smallest = min(sizes, default=0.0)
    return 2 if smallest < 1 else 1 if smallest < 100 else 0


def format_seconds(seconds: float | None) -> str:
    """A duration: milliseconds, seconds, minutes or hours."""
    if seconds is None or not math.isfinite(seconds):
        return MISSING
    if seconds < 1:
        return f"{1000 * seconds:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def _decimals_for(size: float) -> int:
    return 3 if size == 0 else max(0, min(6, 3 - math.floor(math.log10(size))))


def _typeset(text: str) -> str:
    return text.replace("-", MINUS).replace(",", THIN_SPACE)
