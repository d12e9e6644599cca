"""Stable-Baselines3 as a source of histories: what is recorded, what it depends on, what PPO sees."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from decisionrl.envs.gridworld import TaskWorld, dark_key_to_door, darkroom
from decisionrl.envs.gridworld.gymnasium import TaskEnv
from decisionrl.experience.histories import Transitions, open_histories
from decisionrl.experience.store import DatasetError
from decisionrl.recording.histories import histories
from decisionrl.recording.sb3_sources import ml1_histories, sb3_ppo
from decisionrl.recording.tabular_sources import random_streams, tabular_ppo

sb3 = pytest.importorskip("stable_baselines3")

from stable_baselines3.common.vec_env import DummyVecEnv  # noqa: E402

from decisionrl.recording.sb3_vec_env import EpisodeVecEnv  # noqa: E402

SMALL = darkroom(size=3, horizon=8)

QUICK: dict[str, Any] = {"streams": 4, "episodes": 3, "minibatch": 8, "epochs": 2}
"""Few updates, that move the policy all the same."""

learn = partial(sb3_ppo, SMALL, learning_rate=0.01, **QUICK)


def played(pieces: Iterable[Transitions]) -> Transitions:
    """All episodes one after another."""
    return Transitions(*(torch.cat(each, 2) for each in zip(*pieces, strict=True)))


def same(left: Transitions, right: Transitions) -> bool:
    return all(a.equal(b) for a, b in zip(left, right, strict=True))


# What is recorded


def test_transitions_are_those_of_the_family_as_tabular_sources_give_them() -> None:
    tasks = torch.tensor([4, 8])
    pieces = list(learn(tasks, noise=0.25))
    likes = list(tabular_ppo(SMALL, tasks, streams=4, episodes=3))
    assert len(pieces) == len(likes)
    for piece, like in zip(pieces, likes, strict=True):
        for value, wanted in zip(piece, like, strict=True):
            assert value.shape == wanted.shape
            assert value.dtype == wanted.dtype
        state = SMALL.placed(torch.full((2, 4, 2), 1))
        for step in range(SMALL.horizon):
            assert piece.observation[:, :, step].equal(SMALL.observation(state))
            state, reward = SMALL.step(state, piece.action[:, :, step], tasks[:, None])
            assert piece.reward[:, :, step].equal(reward)
            assert piece.next_observation[:, :, step].equal(SMALL.observation(state))  # the last one is terminal


def test_pieces_do_not_change_once_they_are_given() -> None:
    source = learn(torch.tensor([4]))
    first = next(source)
    kept = Transitions(*(value.clone() for value in first))
    next(source)
    assert same(first, kept)


def test_random_streams_are_those_of_the_tabular_sources() -> None:
    tasks = torch.tensor([2, 7])
    noisy = random_streams(tasks, 8, share=0.5, seed=3)
    options: dict[str, Any] = {"streams": 8, "episodes": 3, "noise": 0.5, "seed": 3}
    own = played(sb3_ppo(SMALL, tasks, minibatch=16, epochs=2, **options))
    tabular = played(tabular_ppo(SMALL, tasks, **options))
    for mine, theirs in zip(own, tabular, strict=True):
        assert mine[noisy].equal(theirs[noisy])
    assert not own.action[~noisy].equal(tabular.action[~noisy])


def test_random_streams_act_uniformly_while_the_others_learn() -> None:
    tasks = torch.tensor([0])
    family = darkroom(size=3, horizon=8, start="random")
    options = {"streams": 16, "noise": 0.5, "minibatch": 32, "epochs": 8, "learning_rate": 3e-3}
    pieces = list(sb3_ppo(family, tasks, episodes=24, **options))  # type: ignore[arg-type]
    noisy = random_streams(tasks, 16, share=0.5)
    late = played(pieces[-12:])
    share = torch.bincount(late.action[noisy].flatten(), minlength=5) / late.action[noisy].numel()
    assert share.sub(0.2).abs().max() < 4 * (0.16 / late.action[noisy].numel()) ** 0.5
    assert late.reward[~noisy].mean() > 3 * late.reward[noisy].mean()
    starts = played(pieces).observation[~noisy][:, :: family.horizon]
    assert len(starts.flatten(0, 1).unique(dim=0)) == 9


# What it depends on


def test_the_seed_decides() -> None:
    one, again, other = (played(learn(torch.tensor([4, 8]), noise=0.25, seed=seed)) for seed in (1, 1, 2))
    assert same(one, again)
    assert not one.action.equal(other.action)


def test_tasks_do_not_influence_each_other() -> None:
    tasks = torch.tensor([8, 0, 5])
    together = played(learn(tasks, noise=0.25))
    for row, task in enumerate(tasks):
        assert same(played(learn(task[None], noise=0.25)), Transitions(*(each[row, None] for each in together)))


def test_global_generators_are_left_alone_and_do_not_matter() -> None:
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002
    wanted = torch.rand(3), np.random.rand(3)  # noqa: NPY002
    first = played(learn(torch.tensor([4])))
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002
    source = learn(torch.tensor([4]))
    got = [next(source)]
    assert torch.rand(3).equal(wanted[0])
    np.testing.assert_array_equal(np.random.rand(3), wanted[1])  # noqa: NPY002
    assert same(played([*got, *source]), first)


# What is learned


def test_ppo_learns() -> None:
    tasks = torch.tensor([0, 5])
    options = {"streams": 8, "episodes": 24, "minibatch": 32, "epochs": 8, "learning_rate": 3e-3}
    pieces = sb3_ppo(SMALL, tasks, **options)  # type: ignore[arg-type]
    returns = torch.stack([each.reward.sum(-1).mean(1) for each in pieces], -1)  # [task, episode]
    assert (returns[:, -6:].mean(1) > returns[:, :6].mean(1) + 2).all()
    assert returns[:, -6:].mean() > 0.8 * SMALL.max_return[tasks].mean()


def test_the_published_settings_are_those_of_the_family(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[dict[str, Any]] = []

    class Noted(sb3.PPO):  # type: ignore[misc, name-defined]
        def __init__(self, *args: Any, **options: Any) -> None:
            given.append(options)
            super().__init__(*args, **options)

    monkeypatch.setattr(sb3, "PPO", Noted)
    for family in (darkroom(), dark_key_to_door()):
        next(sb3_ppo(family, torch.tensor([0]), streams=10, episodes=1))
    same = {"learning_rate": 3e-4, "gamma": 0.99, "device": "cpu"}
    assert given == [
        {"n_steps": 20, "batch_size": 50, "n_epochs": 20, **same},
        {"n_steps": 50, "batch_size": 100, "n_epochs": 10, **same},
    ]


# What PPO sees


def ppo(env: Any) -> Any:
    return sb3.PPO("MlpPolicy", env, n_steps=8, batch_size=8, n_epochs=2, seed=5, device="cpu")


def test_ppo_learns_as_from_single_environments() -> None:
    """The weights are the same, bit for bit, if the ends of the single ones count as those of a time limit."""
    world = TaskWorld(SMALL, num_envs=3, task=7)
    batched = EpisodeVecEnv(world, generator=torch.Generator().manual_seed(0), time_limit=True)
    single = DummyVecEnv([partial(TaskEnv, SMALL, task=7)] * 3)
    models = [ppo(env).learn(72) for env in (batched, single)]
    weights = [torch.nn.utils.parameters_to_vector(model.policy.parameters()) for model in models]
    assert weights[0].equal(weights[1])
    timeless = EpisodeVecEnv(world, generator=torch.Generator().manual_seed(0), time_limit=False)
    other = torch.nn.utils.parameters_to_vector(ppo(timeless).learn(72).policy.parameters())
    assert not other.equal(weights[0])


def test_episodes_end_together_with_their_terminal_observations() -> None:
    world = TaskWorld(SMALL, num_envs=2, task=0)
    env = EpisodeVecEnv(world, generator=torch.Generator().manual_seed(0), time_limit=False)
    assert env.reset().dtype == np.int32
    for _ in range(7):
        _, _, done, infos = env.step(np.array([1, 3]))
        assert (done.tolist(), infos) == ([False, False], [{}, {}])
    observation, reward, done, infos = env.step(np.array([1, 3]))
    assert observation.tolist() == [[1, 1], [1, 1]]  # where the next episode begins
    assert done.tolist() == [True, True]
    assert [info["terminal_observation"].tolist() for info in infos] == [[0, 1], [1, 0]]
    assert [info["TimeLimit.truncated"] for info in infos] == [False, False]
    reward += 100  # as Stable-Baselines3 does
    assert env.episode.reward.sum() == 0
    assert env.episode.next_observation[:, -1].tolist() == [[0, 1], [1, 0]]


# On disk


def test_histories_are_written_and_go_on_after_a_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make = partial(
        histories,
        env_options={"size": 3, "horizon": 4},
        source="sb3_ppo",
        source_options={"minibatch": 4, "epochs": 1},
        streams=4,
        steps=8,
        noise=0.25,
        seed=2,
    )

    class Stop(BaseException):
        pass

    def stopping(self: Any, done: int, steps: int) -> None:
        if done > steps / 2:
            raise Stop

    with monkeypatch.context() as patch:
        patch.setattr("decisionrl.recording.histories._Progress.__call__", stopping)
        with pytest.raises(Stop):
            make(tasks_per_shard=3, out=tmp_path / "cut")
    (cut,) = make(tasks_per_shard=3, out=tmp_path / "cut")
    (whole,) = make(out=tmp_path / "whole")
    assert whole.name == "darkroom-sb3-ppo-noise0.25-train-seed2"
    assert (open_histories(cut).num_tasks, open_histories(whole).num_tasks) == (8, 8)
    every = torch.arange(8)
    one, other = (open_histories(path).windows(every, every % 4, torch.zeros_like(every), 8) for path in (cut, whole))
    assert same(one, other)


def test_the_command_line_records_them(run: Any) -> None:
    options = ("source=sb3_ppo", "streams=4", "steps=8", 'source_options={"minibatch":8,"epochs":1}')
    more = ('env_options={"size":3,"horizon":4}',)
    words = [word for each in (*options, *more) for word in ("--set", each)]
    status, out, err = run("make-dataset", "histories", "--env", "darkroom", "--out", "sets", *words)
    assert status == 0, err
    path = Path("sets/darkroom-sb3-ppo-train-seed0")
    assert out.startswith(f"{path}  8 tasks  4 histories each, of 2 episodes  mean return ")
    assert open_histories(path).info["source"] == "sb3_ppo"


def test_histories_of_ml1(tmp_path: Path) -> None:
    pytest.importorskip("metaworld")
    make = partial(ml1_histories, "reach-v3", streams=2, episodes=2, horizon=5, minibatch=5, epochs=1)
    made = make(instances=2, out=tmp_path)
    path = tmp_path / "ml1-reach-train-seed0"
    assert open_histories(path).max_return.tolist() == [50, 50]
    assert {name: (value.dtype, value.shape[3:]) for name, value in made.blocks[0].items()} == {
        "observation": (np.float32, (11,)),
        "action": (np.float32, (4,)),
        "reward": (np.float32, ()),
        "next_observation": (np.float32, (11,)),
    }
    task = torch.arange(2)
    seen = made.windows(task, torch.tensor([0, 1]), torch.zeros_like(task), 10)
    assert seen.action.abs().max() <= 1
    assert (seen.reward > 0).all()
    assert seen.next_observation[:, :4].equal(seen.observation[:, 1:5])
    assert seen.observation[:, 5].equal(seen.observation[:, 0])  # an instance always starts alike
    assert not seen.next_observation[:, 4].equal(seen.observation[:, 5])
    alone = make(instances=1, out=tmp_path / "other")
    for name, array in alone.blocks[0].items():
        np.testing.assert_array_equal(array, made.blocks[0][name])
    with pytest.raises(DatasetError, match="has histories = 2, not 3"):
        make(instances=2, streams=3, out=tmp_path)


# Arguments


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"streams": 0}, "streams = 0; valid: a whole number >= 1"),
        ({"episodes": 0}, "episodes = 0; valid: a whole number >= 1"),
        ({"noise": 1.0}, "streams = 4 with noise = 1.0 give PPO 0 samples for an update; valid: at least 2"),
        ({"noise": 1.5}, r"noise = 1.5; valid: in \[0, 1\]"),
        ({"learning_rate": 0.0}, "learning_rate = 0.0; valid: finite and above 0"),
        ({"learning_rate": torch.ones(1, 4)}, r"learning_rate has shape \[1, 4\]; valid: a number, as the streams"),
        ({"minibatch": 1}, "minibatch = 1; valid: a whole number >= 2"),
        ({"epochs": 0}, "epochs = 0; valid: a whole number >= 1"),
        ({"discount": 1.1}, r"discount = 1.1; valid: in \[0, 1\]"),
    ],
)
def test_arguments_are_checked_at_once(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sb3_ppo(SMALL, torch.tensor([0]), **QUICK | changes)


def test_tasks_are_checked() -> None:
    with pytest.raises(ValueError, match="tasks are from 0 to 9; valid for darkroom: from 0 to 8"):
        sb3_ppo(SMALL, torch.tensor([0, 9]))


def test_rates_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="learning_rate has shape"):
        histories(source="sb3_ppo", rates=[0.1, 0.2], out=tmp_path)
    with pytest.raises(ValueError, match="instances = 51; valid: from 1 to 50"):
        ml1_histories(instances=51, out=tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_missing_library_is_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "stable_baselines3", None)
    with pytest.raises(ImportError, match=r"pip install 'decisionrl\[sb3\]'"):
        sb3_ppo(SMALL, torch.tensor([0]))


def test_importing_the_sources_does_not_import_the_library() -> None:
    script = "import sys, decisionrl.recording.histories; sys.exit('stable_baselines3' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
