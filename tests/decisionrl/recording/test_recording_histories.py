"""The maker of learning histories: what is on disk, going on after a cut, what it refuses."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from decisionrl.envs.gridworld import made_family
from decisionrl.experience.histories import open_histories
from decisionrl.experience.store import DatasetError
from decisionrl.names import UnknownNameError
from decisionrl.recording import MAKERS, maker, metadata
from decisionrl.recording.histories import histories
from decisionrl.recording.tabular_sources import tabular_ppo

TINY: dict[str, Any] = {"env_options": {"size": 4, "horizon": 5}, "streams": 4, "steps": 20, "tasks_per_shard": 4}


def files(directory: Path) -> dict[str, bytes]:
    return {str(each.relative_to(directory)): each.read_bytes() for each in directory.rglob("*") if each.is_file()}


def test_the_maker_is_registered() -> None:
    assert "histories" in MAKERS
    assert maker("histories") is histories
    assert metadata("histories")["arxiv"] == "2505.15143"


def test_histories_are_those_of_the_source(tmp_path: Path) -> None:
    (path,) = histories(**TINY, noise=0.25, seed=3, out=tmp_path)
    assert path == tmp_path / "darkroom-ppo-noise0.25-train-seed3"
    made = open_histories(path)
    family = made_family(made.info["env"], made.info["env_options"])
    train, _ = family.split()
    assert made.task.equal(train)
    assert made.max_return.equal(family.max_return[train])
    assert (made.num_histories, made.episodes, made.horizon) == (4, 4, 5)
    pieces = tabular_ppo(family, train, streams=4, episodes=4, noise=0.25, seed=3)  # type: ignore[arg-type]
    task, history = torch.cartesian_prod(torch.arange(len(train)), torch.arange(4)).T
    got = made.windows(task, history, torch.zeros_like(task), 20)
    for value, each in zip(got, zip(*pieces, strict=True), strict=True):
        assert value.equal(torch.cat(each, 2).flatten(0, 1))
    assert {name: array.dtype for name, array in made.blocks[0].items()} == dict.fromkeys(
        ("observation", "action", "reward", "next_observation"), np.dtype("uint8")
    )


def test_test_tasks_go_to_a_directory_of_their_own(tmp_path: Path) -> None:
    paths = histories(**TINY, source="q_learning", test_tasks=True, split_seed=7, out=tmp_path)
    assert [path.name for path in paths] == ["darkroom-q-learning-train-seed0", "darkroom-q-learning-test-seed0"]
    family = made_family("darkroom", TINY["env_options"])
    for path, part, tasks in zip(paths, ("train", "test"), family.split(7), strict=True):
        made = open_histories(path)
        assert made.task.equal(tasks)
        assert made.info["tasks"] == part


@pytest.mark.parametrize("source", ["ppo", "a2c", "q_learning"])
def test_an_interrupted_call_goes_on_to_the_same_files(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from decisionrl.recording import histories as module

    class Stop(BaseException):
        pass

    def stopping(self: Any, done: int, steps: int) -> None:
        if done > steps / 2:
            raise Stop

    with monkeypatch.context() as patch:
        patch.setattr("decisionrl.recording.histories._Progress.__call__", stopping)
        with pytest.raises(Stop):
            module.histories(**TINY, source=source, noise=0.25, out=tmp_path / "cut")
    (cut,) = histories(**TINY, source=source, noise=0.25, out=tmp_path / "cut")
    (whole,) = histories(**TINY, source=source, noise=0.25, out=tmp_path / "whole")
    assert files(cut) == files(whole)
    assert histories(**TINY, source=source, noise=0.25, out=tmp_path / "cut") == [cut]


def test_the_size_of_a_shard_changes_nothing(tmp_path: Path) -> None:
    returns = []
    for size in (3, 100):
        (path,) = histories(**TINY | {"tasks_per_shard": size}, out=tmp_path / str(size))
        returns.append(open_histories(path).episode_returns())
    assert returns[0].equal(returns[1])


def test_streams_take_the_rates_in_turn(tmp_path: Path) -> None:
    options = TINY | {"steps": 150, "streams": 8, "env_options": {"size": 3, "horizon": 5}}
    (path,) = histories(**options, rates=[1e-6, 0.3], out=tmp_path)
    late = open_histories(path).episode_returns()[..., -10:].mean((0, 2))
    assert late[1::2].min() > late[0::2].max() + 0.5


def test_options_reach_the_algorithm(tmp_path: Path) -> None:
    one, other = (
        histories(**TINY, source_options=options, out=tmp_path / str(len(options)))[0]
        for options in ({}, {"learning_rate": 0.5})
    )
    assert not open_histories(one).episode_returns().equal(open_histories(other).episode_returns())


def test_what_was_learned_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "decisionrl.recording"):
        histories(**TINY, out=tmp_path)
    assert "14 tasks, 4 histories of 4 episodes each; mean return" in caplog.text
    assert "1120 of 1120 steps" in caplog.text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"env": "hidden_reach", "env_options": {}},
            "source = 'ppo' with env = 'hidden_reach'; valid with this env: no",
        ),
        ({"env_options": {"sizes": 3}}, "env_options = {'sizes': 3}: .*; valid: options of darkroom"),
        ({"env_options": {"size": 1}}, "size = 1; valid: a whole number >= 2"),
        ({"source_options": {"rate": 1}}, "source_options = {'rate': 1}: .*; valid: options of ppo"),
        ({"source_options": {"clip": 2}}, r"clip = 2; valid: in \[0, 1\]"),
        ({"source_options": {"streams": 2}}, "source_options = {'streams': 2}: .*; valid: options of ppo"),
        ({"steps": 21}, "steps = 21; valid: whole episodes of 5 steps"),
        ({"streams": 0}, "streams = 0; valid: a whole number >= 1"),
        ({"noise": 2.0}, r"noise = 2.0; valid: in \[0, 1\]"),
        ({"rates": []}, "rates is empty; valid: one learning rate or more"),
        ({"rates": [0.1, -1.0]}, "learning_rate .*; valid: finite and above 0"),
        ({"tasks_per_shard": 0}, "tasks_per_shard = 0; valid: a whole number >= 1"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_written(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        histories(**TINY | changes, out=tmp_path)
    assert not list(tmp_path.iterdir())


def test_unknown_names_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="unknown env 'darkrom'; did you mean 'darkroom'"):
        histories(env="darkrom", out=tmp_path)
    with pytest.raises(UnknownNameError, match="unknown source 'pp0'; did you mean 'ppo'"):
        histories(source="pp0", out=tmp_path)


def test_other_settings_do_not_go_on_where_these_were(tmp_path: Path) -> None:
    histories(**TINY, out=tmp_path)
    with pytest.raises(DatasetError, match="has rates = None, not"):
        histories(**TINY, rates=[0.1], out=tmp_path)
