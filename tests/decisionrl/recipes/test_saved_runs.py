"""Runs by the name of their directory: final weights, checkpoints, and directories that hold neither."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from decisionrl.callbacks import Checkpoint
from decisionrl.checkpoint import CheckpointError, save_weights
from decisionrl.recipes import recipe
from decisionrl.recipes.saved import load_run
from decisionrl.recipes.signatures import parameters
from decisionrl.run import FINAL, RunError
from decisionrl.trainer import Trainer

TINY: dict[str, Any] = {"observations": 3, "future": 2, "batch": 4, "steps": 4, "warmup": 1, "sizes": "cpu"}


def trained(out: Path) -> torch.nn.Module:
    trainer = Trainer(recipe("ptp")(**TINY), callbacks=[Checkpoint(every=2)], out=out, seed=0)
    trainer.fit(4)
    return trainer.policy


def same(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_the_policy_of_a_run_is_its_final_one_or_that_of_the_newest_checkpoint(tmp_path: Path) -> None:
    policy = trained(tmp_path / "run")
    untrained = recipe("ptp")(**TINY).policy
    assert not same(policy, untrained)
    found = load_run(tmp_path / "run")
    assert same(found.policy, policy)
    assert found.config["observations"] == 3
    assert found.evaluate is not None
    assert load_run(tmp_path / "run", evaluation=False).evaluate is None
    save_weights(untrained, tmp_path / "run" / FINAL)
    assert same(load_run(str(tmp_path / "run")).policy, untrained)


def test_what_is_no_run_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="nowhere holds no run"):
        load_run(tmp_path / "nowhere")
    trained(tmp_path / "run")
    for checkpoint in (tmp_path / "run" / "checkpoints").iterdir():
        checkpoint.unlink()
    with pytest.raises(RunError, match="neither final weights nor a checkpoint"):
        load_run(tmp_path / "run")
    save_weights(torch.nn.Linear(1, 1), tmp_path / "run" / FINAL)
    with pytest.raises(CheckpointError, match="does not fit the policy"):
        load_run(tmp_path / "run")
    (tmp_path / "run" / "config.json").write_text("{")
    with pytest.raises(RunError, match="not valid JSON"):
        load_run(tmp_path / "run")


def test_parameters_are_those_of_the_recipe_and_the_common_ones() -> None:
    found = parameters(recipe("ptp"))
    assert {"observations", "cache", "sizes", "data", "learning_rate"} <= found.keys()
    assert found["observations"] is int
