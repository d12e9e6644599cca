"""Look something up by name, with a helpful error."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import TypeVar

T = TypeVar("T")


class UnknownNameError(ValueError):
    """A name that stands for nothing; the message suggests the nearest one."""


def pick(kind: str, name: str, known: Mapping[str, T]) -> T:
    """``known[name]``, or an UnknownNameError that suggests the nearest name."""
    if name in known:
        return known[name]
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.4)
    hint = f"; did you mean {near[0]!r}?" if near else ";"
    raise UnknownNameError(f"unknown {kind} {name!r}{hint} Known: {', '.join(sorted(known))}")
