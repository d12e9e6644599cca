"""Numbers the way tables and pages show them."""

from __future__ import annotations

import math

MISSING = "\N{EN DASH}"
MINUS = "\N{MINUS SIGN}"
THIN_SPACE = "\N{NARROW NO-BREAK SPACE}"


def format_value(value: float | None) -> str:
    """Four significant digits at least, thousands apart, no exponent between 10⁻⁴ and 10⁷."""
    if value is None or not math.isfinite(value):
        return MISSING
    size = abs(value)
    if size != 0 and not 1e-4 <= size < 1e7:
        return f"{value:.3e}".replace("-", MINUS)
    decimals = 0 if size >= 1e5 else 3 if size == 0 else max(0, min(6, 3 - math.floor(math.log10(size))))
    return f"{value:,.{decimals}f}".replace("-", MINUS).replace(",", THIN_SPACE)


def format_gap(gap: float | None) -> str:
    """A relative gap as a signed percentage."""
    if gap is None or not math.isfinite(gap):
        return MISSING
    percent = 100 * gap
    decimals = 0 if abs(percent) >= 100 else 1 if abs(percent) >= 10 else 2
    text = f"{percent:+,.{decimals}f} %".replace("-", MINUS).replace(",", THIN_SPACE)
    return text.replace(MINUS, "").replace("+", "") if float(f"{percent:.{decimals}f}") == 0 else text


def format_seconds(seconds: float | None) -> str:
    """A duration: milliseconds, seconds, minutes or hours."""
    if seconds is None:
        return MISSING
    if seconds < 1:
        return f"{1000 * seconds:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
