"""Recorded data by name: a lab, a flat file, or a Minari dataset in a directory or in Minari's folder."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from decisionrl.experience.d4rl import load_d4rl
from decisionrl.experience.histories import LearningHistories, collect_histories, open_histories
from decisionrl.experience.minari import ROOT, load_minari
from decisionrl.experience.preference_formats import load_segments, score_names
from decisionrl.experience.preferences import Segments
from decisionrl.experience.store import DatasetError, EpisodeStore
from decisionrl.names import UnknownNameError, pick
from decisionrl.recording.demonstrations import record_demonstrations
from decisionrl.recording.histories import HistoryPlan
from decisionrl.recording.labs import Lab, gridworld_lab, point_lab, two_modes_lab

LAB = "lab/"
"""How the names of labs begin."""

LABS: Mapping[str, Callable[[], Lab]] = {
    "lab/gridworld": gridworld_lab,
    "lab/point": point_lab,
    "lab/two-modes": two_modes_lab,
}
"""The labs that are recorded where they are asked for, with their default arguments."""

DEMONSTRATIONS: Mapping[str, str] = {
    "lab/return-side": "decisionrl/ReturnSide-v0",
    "lab/count-visits": "decisionrl/CountVisits-v0",
    "lab/push-t": "decisionrl/PushT-v0",
}
"""Demonstrations of these tasks, recorded where they are asked for; nobody compared their segments."""

HISTORIES: Mapping[str, Mapping[str, Any]] = {
    "lab/darkroom": {"streams": 50},
    "lab/darkroom-noise": {"streams": 50, "noise": 0.3},
    "lab/darkroom-permuted": {"streams": 50, "env": "darkroom_permuted"},
    "lab/bandit": {"streams": 1, "env": "bandit", "env_options": {"horizon": 100}, "source": "mixture", "steps": 100},
}
"""Learning histories, recorded where they are asked for, with these arguments of their maker."""

SEGMENTS = "segments.npz"
"""The file of segments and scores in the directory of a dataset, beside its ``data``."""

METADATA = "data/metadata.json"
"""What every dataset of Minari has in its directory."""


def open_data(name: str | Path) -> EpisodeStore:
    """Episodes by name.

    Args:
        name: a lab, one of ``LABS`` or ``DEMONSTRATIONS``; a directory with a Minari dataset (in it is
            ``data/metadata.json``); an .hdf5, .h5 or .npz file in the form of D4RL; or the id of a dataset in
            Minari's folder.

    Raises:
        UnknownNameError: there is nothing of that name; it suggests the nearest one.
        DatasetError: what is there cannot be used.
        ImportError: a package to read it is not installed.
    """
    if str(name) in LABS:
        return _lab(str(name)).episodes
    if str(name) in DEMONSTRATIONS:
        return _demonstrations(str(name))
    path = Path(name)
    if path.is_file():
        return load_d4rl(path)
    return load_minari(_directory(name))


def open_segments(name: str | Path, *, score: str | None = None) -> Segments:
    """Segments of :func:`open_data`'s episodes, with the scores of that name: a lab's own, or those in the file
    ``segments.npz`` in the dataset's directory.

    Raises:
        UnknownNameError: there is nothing of that name; it suggests the nearest one.
        DatasetError: there are no segments, or none with such a score.
        ImportError: a package to read it is not installed.
    """
    if str(name) in LABS:
        lab = _lab(str(name))
        return lab.segments if score is None else lab.scored(score)
    file = _segments_file(name)
    return load_segments(file, load_minari(file.parent), score=score)


def open_score_names(name: str | Path) -> list[str]:
    """The names of the scores of :func:`open_segments`, the one to prefer first; it may raise what that raises."""
    return list(_lab(str(name)).scores) if str(name) in LABS else score_names(_segments_file(name))


def open_histories_of(name: str | Path) -> LearningHistories:
    """Learning histories by name.

    Args:
        name: a lab, one of ``HISTORIES``, or a directory of ``make-dataset histories``.

    Raises:
        UnknownNameError: there is no lab of that name; it suggests the nearest one.
        DatasetError: what is there cannot be used.
    """
    if str(name) in HISTORIES or (str(name).startswith(LAB) and not Path(name).exists()):
        pick("data", str(name), HISTORIES)
        return _histories(str(name))
    return open_histories(name)


@cache
def _lab(name: str) -> Lab:
    return LABS[name]()


@cache
def _demonstrations(name: str) -> EpisodeStore:
    return record_demonstrations(env=DEMONSTRATIONS[name])


@cache
def _histories(name: str) -> LearningHistories:
    plan = HistoryPlan(**HISTORIES[name])
    return collect_histories(plan.layout("train"), plan.learn)


def _segments_file(name: str | Path) -> Path:
    if Path(name).is_file() or str(name) in DEMONSTRATIONS:
        raise DatasetError(
            f"{name} has no segments; valid: a lab with teachers or a Minari dataset, or load_segments of a file of "
            "segments"
        )
    file = _directory(name) / SEGMENTS
    if not file.is_file():
        raise DatasetError(f"{name} has no segments; valid: a file {file}, written by save_segments")
    return file


def _directory(name: str | Path) -> Path:
    """Where the Minari dataset of that name is."""
    if (Path(name) / METADATA).is_file():
        return Path(name)
    folder = Path(os.environ.get(ROOT, "~/.minari/datasets")).expanduser()
    local = {path.parents[1].relative_to(folder).as_posix(): path.parents[1] for path in folder.rglob(METADATA)}
    try:
        return pick("data", str(name), {**dict.fromkeys([*LABS, *DEMONSTRATIONS], folder), **local})
    except UnknownNameError as error:
        raise UnknownNameError(f"{error}; a directory with {METADATA}; an .hdf5, .h5 or .npz file") from None
