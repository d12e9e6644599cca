"""Demonstrations: what is recorded is what the environment does, and what is written is read back."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
import torch

from decisionrl.experience.minari import load_minari
from decisionrl.names import UnknownNameError
from decisionrl.recording import maker, metadata
from decisionrl.recording.demonstrations import demonstrations, record_demonstrations
from decisionrl.seeding import generator

RETURN, COUNT = "decisionrl/ReturnSide-v0", "decisionrl/CountVisits-v0"
CUE_REACH, PICK = "decisionrl/MWCueReach-v0", "decisionrl/MWPickAndReturn-v0"


@pytest.mark.parametrize(
    ("env", "options"),
    [(RETURN, {}), (RETURN, {"pixels": True, "delay": 2}), (COUNT, {"visits": 3, "oracle": True, "step_length": 0.15})],
)
def test_recorded_episodes_are_those_of_the_environment(env, options):
    store = record_demonstrations(env=env, env_options=options, episodes=12, seed=3)
    seeds = torch.randint(2**31, (12,), generator=generator(3, "demonstrations/starts")).tolist()
    single = gymnasium.make(env, **options)
    row = 0
    for number, seed in enumerate(seeds):
        seen = [single.reset(seed=seed)[0]]
        for t in range(int(store.length[number])):
            observation, reward, terminated, truncated, info = single.step(store.action[row].numpy())
            seen.append(observation)
            assert float(store.reward[row]) == reward
            assert (bool(store.terminated[row]), bool(store.truncated[row])) == (terminated, truncated)
            assert bool(store.extras["success"][row]) == info["success"]
            assert (terminated or truncated) == (t == int(store.length[number]) - 1)
            row += 1
        first = int(store.first[number]) + number
        np.testing.assert_array_equal(store.observation[first : first + len(seen)], seen)
    assert row == store.num_steps
    assert (store.action.abs() <= 1).all()
    assert store.observation_space == single.observation_space


@pytest.mark.parametrize("env", [RETURN, COUNT])
def test_experts_succeed_and_seeds_decide(env):
    store = record_demonstrations(env=env, episodes=1000)
    assert store.returns.mean() >= 0.99
    assert store.info["success_rate"] == store.returns.mean()
    assert store.normalized_score(float(store.returns.mean())) >= 99
    again, other = record_demonstrations(env=env, episodes=20), record_demonstrations(env=env, episodes=20, seed=1)
    same = record_demonstrations(env=env, episodes=20)
    assert torch.equal(again.observation, same.observation)
    assert not torch.equal(again.observation[:10], other.observation[:10])


def test_written_and_read_back(tmp_path):
    pytest.importorskip("minari")
    assert maker("demonstrations") is demonstrations
    assert metadata("demonstrations")["arxiv"] == "2505.09561"
    options = {"visits": 1}
    (directory,) = demonstrations(env=COUNT, env_options=options, episodes=7, seed=4, out=tmp_path)
    assert directory == tmp_path / "count-visits-demonstrations-seed4"
    store, wanted = load_minari(directory), record_demonstrations(env=COUNT, env_options=options, episodes=7, seed=4)
    for name in ("observation", "action", "reward", "terminated", "truncated", "length"):
        assert torch.equal(getattr(store, name), getattr(wanted, name)), name
    assert torch.equal(store.extras["success"], wanted.extras["success"])
    assert store.info == wanted.info
    import minari

    recovered = minari.MinariDataset(directory / "data").recover_environment()
    assert recovered.unwrapped.world.task.visits == 1
    assert gymnasium.spec(COUNT).kwargs == {"task": "count_visits"}
    with pytest.raises(ValueError, match="is there already"):
        demonstrations(env=COUNT, episodes=7, seed=4, out=tmp_path)


@pytest.mark.parametrize(("env", "options"), [(CUE_REACH, {"oracle": True}), (PICK, {"max_steps": 190})])
def test_on_meta_world_only_successes_are_recorded(env, options):
    pytest.importorskip("metaworld")
    store = record_demonstrations(env=env, env_options=options, episodes=4, seed=2)
    assert store.num_episodes == 4
    assert (store.returns == 1).all()
    assert store.info["success_rate"] == 4 / store.info["played"]
    last = store.first + store.length - 1
    assert store.terminated.nonzero().flatten().tolist() == last.tolist()
    assert store.extras["success"].nonzero().flatten().tolist() == last.tolist()
    assert not store.truncated.any()
    assert (store.info["played"] > 4) == (env == PICK)  # which takes some experts more than 190 steps
    again = record_demonstrations(env=env, env_options=options, episodes=3, seed=2)
    assert torch.equal(again.observation, store.select(torch.arange(3)).observation)
    other = record_demonstrations(env=env, env_options=options, episodes=3, seed=3)
    assert not torch.equal(again.observation[0], other.observation[0])


def test_recorded_episodes_on_meta_world_are_those_of_the_environment():
    pytest.importorskip("metaworld")
    store = record_demonstrations(env=CUE_REACH, episodes=2, seed=5)
    assert store.info["played"] == 2
    starts = generator(5, "demonstrations/starts")
    single = gymnasium.make(CUE_REACH)
    for number in range(2):
        seen = [single.reset(seed=int(torch.randint(2**31, (), generator=starts)))[0]]
        steps = store.first[number] + torch.arange(int(store.length[number]))
        seen += [single.step(action.numpy())[0] for action in store.action[steps]]
        first = int(store.first[number]) + number
        np.testing.assert_array_equal(store.observation[first : first + len(seen)], seen)


def test_experts_that_cannot_succeed_are_not_played_forever():
    pytest.importorskip("metaworld")
    with pytest.raises(ValueError, match=r"max_steps.*succeeded in 0 of 11 episodes; valid: options"):
        record_demonstrations(env=CUE_REACH, env_options={"max_steps": 3})


def test_what_is_not_valid(tmp_path):
    with pytest.raises(UnknownNameError, match=r"did you mean 'decisionrl/ReturnSide-v0'"):
        record_demonstrations(env="ReturnSide-v0")
    with pytest.raises(UnknownNameError, match="env"):
        demonstrations(env="Pendulum-v1", out=tmp_path)
    with pytest.raises(ValueError, match="episodes = 0; valid"):
        record_demonstrations(episodes=0)
    with pytest.raises(ValueError, match="delay = -2; valid"):
        record_demonstrations(env_options={"delay": -2})
    for env in ("decisionrl/ReturnSide-v0", CUE_REACH):
        with pytest.raises(ValueError, match=f"unexpected keyword argument 'laps'.*; valid: options of {env}"):
            record_demonstrations(env=env, env_options={"laps": 2})
