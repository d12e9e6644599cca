"""What records episodes for offline learning, without downloads."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

from decisionrl.names import pick

MAKERS = {
    "sac": "decisionrl.recording.sac",
    "clones": "decisionrl.recording.clones",
    "demonstrations": "decisionrl.recording.demonstrations",
    "histories": "decisionrl.recording.histories",
}
"""Maker name -> module that holds a function of that name and METADATA; imported when used."""


class RecordingError(RuntimeError):
    """What was to be recorded did not come about, such as a policy that learned nothing."""


def maker(name: str) -> Callable[..., list[Path]]:
    """The maker's function, which returns the directories it wrote; UnknownNameError if there is none."""
    module = importlib.import_module(pick("maker", name, MAKERS))
    return cast(Callable[..., list[Path]], getattr(module, name))


def metadata(name: str) -> Mapping[str, Any]:
    """Title, arXiv id and what it makes sets of."""
    return cast(Mapping[str, Any], importlib.import_module(pick("maker", name, MAKERS)).METADATA)
