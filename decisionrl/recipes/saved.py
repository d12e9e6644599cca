"""Runs that are there already: the experiment with the trained policy, by the name of the directory."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from decisionrl import checkpoint, run
from decisionrl.experiment import Experiment
from decisionrl.recipes import recipe
from decisionrl.recipes.signatures import parameters


def load_run(directory: Path | str, **changes: Any) -> Experiment:
    """The experiment of a run with its policy as it was trained: the final weights, or those of the newest checkpoint.

        policy = load_run("runs/ptp-return-side-seed0", evaluation=False).policy

    changes: arguments of the recipe in place of the run's.

    Raises:
        RunError: there is no run, or it has no weights yet.
        CheckpointError: the weights do not fit.
        ValueError: the recipe refuses what it was called with, such as data that is not there any more.
    """
    directory = Path(directory)
    config = read_config(directory)
    function = recipe(str(config.get("recipe")))
    experiment = function(**own_arguments(function, config) | changes)
    final = directory / run.FINAL
    if final.exists():
        checkpoint.load_weights(experiment.policy, final)
        return experiment
    state = checkpoint.load_newest(directory / run.CHECKPOINTS)
    if state is None:
        raise run.RunError(f"{directory} holds neither final weights nor a checkpoint")
    experiment.policy.load_state_dict(state["learner"]["policy"])
    return experiment


def read_config(directory: Path) -> dict[str, Any]:
    """Every resolved setting of a run.

    Raises:
        RunError: there is none.
    """
    path = directory / run.CONFIG
    try:
        config: dict[str, Any] = json.loads(path.read_text())
    except FileNotFoundError:
        raise run.RunError(f"{directory} holds no run: {path} does not exist") from None
    except ValueError as error:
        raise run.RunError(f"{path}: not valid JSON: {error}") from None
    return config


def own_arguments(function: Callable[..., Any], config: dict[str, Any]) -> dict[str, Any]:
    """Of a run's settings those that its recipe was called with."""
    known = parameters(function)
    return {key: value for key, value in config.items() if key in known}
