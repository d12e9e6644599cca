"""What a recipe can be called with."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import lru_cache
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints


@lru_cache
def parameters(function: Callable[..., Any]) -> dict[str, Any]:
    """The keyword arguments of a recipe and their types, those of ``**common: Unpack[...]`` among them."""
    hints = get_type_hints(function)
    found: dict[str, Any] = {}
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            found |= get_type_hints(get_args(hints[name])[0])
        else:
            found[name] = hints[name]
    return found


def check_choices(function: Callable[..., Any], arguments: Mapping[str, Any]) -> None:
    """Raise ValueError where an argument is none of the values that its type names."""
    hints = parameters(function)
    for name, value in arguments.items():
        choices = _choices(hints.get(name))
        if choices and value not in choices:
            raise ValueError(f"{name} = {value!r}; valid: {', '.join(map(str, choices))}")


def _choices(hint: Any) -> tuple[Any, ...]:
    """The values, if there are only so many; () otherwise."""
    if get_origin(hint) is Literal:
        return get_args(hint)
    if get_origin(hint) in (Union, UnionType):
        each = [(None,) if part is type(None) else _choices(part) for part in get_args(hint)]
        return tuple(value for values in each for value in values) if all(each) else ()
    return ()
