"""Sets from a run of SAC on a world where every step's reward is the action: what is recorded, and of whom."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from decisionrl.envs.make import make_world
from decisionrl.experience.minari import load_minari
from decisionrl.experience.store import EpisodeStore
from decisionrl.names import UnknownNameError
from decisionrl.recording import MAKERS, RecordingError, maker, metadata
from decisionrl.recording.sac import KINDS, RecordedEpisodes, sac
from decisionrl.recording.scores import D4RL, ReferenceScores, UniformActions, d4rl_scores, expert_score, random_score

STEPS = 8


class PushRight(gymnasium.Env[Any, Any]):
    """Moves by the action in [-2, 2], which is also the reward; ends left of -5, and is cut after eight steps."""

    observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float64)
    action_space = spaces.Box(-2, 2, (1,), np.float32)
    sign = 1.0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.place, self.time = float(self.np_random.uniform(-1, 1)), 0
        return self._seen(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.place, self.time = self.place + float(action[0]), self.time + 1
        return self._seen(), self.sign * float(action[0]), self.place < -5, self.time == STEPS, {}

    def _seen(self) -> Any:
        return np.array([self.place, self.time])


class Hopeless(PushRight):
    """No action earns anything."""

    sign = 0.0


TINY = {
    "hidden": (16,),
    "batch_size": 32,
    "learning_rate": 3e-3,
    "learning_starts": 64,
    "rollout_steps": 100,
    "evaluate_every": 64,
    "reference_episodes": 200,
}


@pytest.fixture(scope="module", autouse=True)
def _registered() -> Iterator[None]:
    gymnasium.register("PushRight-v3", entry_point=PushRight)  # type: ignore[arg-type]
    gymnasium.register("Hopeless-v0", entry_point=Hopeless)  # type: ignore[arg-type]
    yield
    for name in ("PushRight-v3", "Hopeless-v0"):
        gymnasium.registry.pop(name)


@pytest.fixture(scope="module")
def made(_registered: None, tmp_path_factory: pytest.TempPathFactory) -> dict[str, EpisodeStore]:
    out = tmp_path_factory.mktemp("data")
    directories = sac(env="PushRight-v3", steps=450, out=out, seed=1, **TINY)  # type: ignore[arg-type]
    assert directories == [out / f"pushright-{kind}" for kind in KINDS]
    return {kind: load_minari(directory) for kind, directory in zip(KINDS, directories, strict=True)}


def test_the_recorded_steps_are_those_of_the_world(made: dict[str, EpisodeStore]) -> None:
    """Every observation follows from the one before and the action, and every reward from the action."""
    for store in made.values():
        assert isinstance(store.observation, torch.Tensor)
        for number in range(store.num_episodes):
            single = store.select(torch.tensor([number]))
            assert isinstance(single.observation, torch.Tensor)
            place, time = single.observation.unbind(1)
            steps = int(single.length)
            assert -1 <= place[0] <= 1
            assert time.tolist() == list(range(steps + 1))
            torch.testing.assert_close(place[1:], place[:-1] + single.action[:, 0])
            torch.testing.assert_close(single.reward, single.action[:, 0])
            assert (single.action.abs() <= 2).all()
            assert single.terminated.tolist() == [*[False] * (steps - 1), bool(place[-1] < -5)]
            assert single.truncated.tolist() == [*[False] * (steps - 1), steps == STEPS]


def test_which_episodes_are_in_which_set(made: dict[str, EpisodeStore]) -> None:
    replay, early = made["replay"], made["medium-replay"]
    middle = early.info["policy_steps"]
    assert 450 - STEPS < replay.num_steps <= 450
    assert middle - STEPS < early.num_steps <= middle <= 450
    assert early.action.equal(replay.action[: early.num_steps])
    both = made["medium-expert"]
    assert both.num_episodes == made["medium"].num_episodes + made["expert"].num_episodes
    assert both.action.equal(torch.cat([made["medium"].action, made["expert"].action]))
    for kind in ("medium", "expert"):
        assert 100 <= made[kind].num_steps < 100 + STEPS
        assert made[kind].action.unique().numel() > 50  # random actions, and episodes from different starts
    assert both.info["policy_steps"] == [made["medium"].info["policy_steps"], made["expert"].info["policy_steps"]]


def test_better_sets_come_from_better_policies(made: dict[str, EpisodeStore]) -> None:
    score = {kind: float(store.returns.mean()) for kind, store in made.items()}
    assert score["medium-replay"] < score["expert"]
    assert score["medium"] < score["expert"]
    info = made["expert"].info
    assert info["random_score"] < 3 < score["expert"] < info["expert_score"] + 1
    assert abs(info["random_score"]) < 1.5  # uniform actions: mean 0, less what ends on the left


def test_info_tells_how_a_set_was_made(made: dict[str, EpisodeStore]) -> None:
    info = made["medium"].info
    assert {"env": "PushRight-v3", "algorithm": "SAC", "seed": 1, "training_steps": 450, "kind": "medium"}.items() <= (
        info.items()
    )
    assert info["hidden"] == [16]
    assert {"decisionrl", "gymnasium", "stable-baselines3", "torch", "minari"} <= info["versions"].keys()
    assert all(store.info["expert_score"] == info["expert_score"] for store in made.values())


def test_the_same_seed_makes_the_same_sets_and_keeps_the_global_generators(
    made: dict[str, EpisodeStore], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    state = torch.get_rng_state()
    again = sac(env="PushRight-v3", steps=450, out=tmp_path, seed=1, layout="arrow", **TINY)  # type: ignore[arg-type]
    assert torch.get_rng_state().equal(state)
    for kind, directory in zip(KINDS, again, strict=True):
        assert load_minari(directory).action.equal(made[kind].action)


def test_a_policy_that_learned_nothing_leaves_the_replay(tmp_path: Path) -> None:
    with pytest.raises(RecordingError, match=r"Hopeless-v0: the best return in 130 steps of SAC is 0, that of random"):
        sac(env="Hopeless-v0", steps=130, out=tmp_path, **TINY)  # type: ignore[arg-type]
    assert [path.name for path in tmp_path.iterdir()] == ["hopeless-replay"]


def test_a_run_too_short_for_an_episode(tmp_path: Path) -> None:
    with pytest.raises(RecordingError, match="no episode was finished in 3 steps; valid: more steps"):
        sac(env="PushRight-v3", steps=3, out=tmp_path, **TINY)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"steps": 0}, "steps = 0; valid: a whole number >= 1"),
        ({"medium": 0.0}, r"medium = 0.0; valid: in \(0, 1\]"),
        ({"learning_starts": -1}, "learning_starts = -1; valid: a whole number >= 0"),
        ({"rollout_steps": 0}, "rollout_steps = 0; valid"),
    ],
)
def test_wrong_arguments(tmp_path: Path, wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sac(env="PushRight-v3", out=tmp_path, **wrong)
    assert not list(tmp_path.iterdir())


def test_a_set_that_is_there_is_refused_before_training(tmp_path: Path) -> None:
    (tmp_path / "pushright-medium").mkdir()
    with pytest.raises(ValueError, match="pushright-medium is there already; valid: a folder without it"):
        sac(env="PushRight-v3", out=tmp_path)


@pytest.mark.parametrize("package", ["stable_baselines3", "minari"])
def test_a_missing_package_is_named_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setattr("decisionrl.recording.sac._trained", lambda *_: pytest.fail("it trains"))
    with pytest.raises(ImportError, match=rf"{package}.*pip install 'decisionrl\[offline\]'"):
        sac(env="PushRight-v3", out=tmp_path)


def test_an_unfinished_episode_is_not_recorded() -> None:
    env = RecordedEpisodes(PushRight())
    for steps in (3, STEPS, 2):
        env.reset(seed=0)
        for _ in range(steps):
            env.step(np.array([0.5], np.float32))
    (episode,) = env.finished
    assert len(episode["reward"]) == STEPS
    assert episode["observation"].shape == (STEPS + 1, 2)


# --- scores ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "task"),
    [("Hopper-v5", "hopper"), ("halfcheetah-medium-replay-v2", "halfcheetah"), ("walker2d", "walker2d")],
)
def test_d4rl_constants_are_0_and_100(name: str, task: str) -> None:
    scores = d4rl_scores(name)
    assert scores == D4RL[task]
    assert (scores.normalized(scores.random), scores.normalized(scores.expert)) == (0, 100)


def test_d4rl_score_of_a_return() -> None:
    """3000 on hopper: 100 (3000 + 20.272305) / (3234.3 + 20.272305)."""
    assert d4rl_scores("Hopper-v5").normalized(3000.0) == pytest.approx(92.80090)
    with pytest.raises(UnknownNameError, match=r"unknown task of D4RL 'hoper'; did you mean 'hopper'"):
        d4rl_scores("hoper")
    with pytest.raises(ValueError, match=r"random = expert = 2\.0; valid: two different scores"):
        ReferenceScores(2.0, 2.0)


class TwoRight(UniformActions):
    """Always the greatest action."""

    def act(self, observation: Any, state: Any = None, *, noise: Any = None) -> tuple[torch.Tensor, None]:
        return torch.full((len(observation), 1), 2.0), None


def test_reference_scores_of_a_world() -> None:
    world = make_world(PushRight, num_envs=4)
    assert expert_score(world, TwoRight(world.action_space), episodes=6) == 2 * STEPS
    assert random_score(world, episodes=8, seed=2) == random_score(world, episodes=8, seed=2)
    assert random_score(world, episodes=8, seed=2) != random_score(world, episodes=8, seed=3)
    with pytest.raises(ValueError, match="random actions have no mode"):
        expert_score(world, UniformActions(world.action_space))


def test_uniform_actions_fill_their_range() -> None:
    noise = (torch.arange(1000) + 0.5) / 1000
    box = UniformActions(spaces.Box(np.array([-2, 0], np.float32), np.array([2, 1], np.float32)))
    action, _ = box.act(noise, noise=torch.stack([noise, noise], 1))
    torch.testing.assert_close(action, torch.stack([4 * noise - 2, noise], 1))
    numbers, _ = UniformActions(spaces.Discrete(4, start=-1)).act(noise, noise=noise)
    assert numbers.dtype == torch.int64
    assert numbers.unique(return_counts=True)[1].tolist() == [250] * 4
    assert numbers.unique().tolist() == [-1, 0, 1, 2]
    largest = 1 - torch.finfo(torch.float32).eps / 2
    assert UniformActions(spaces.Discrete(3, start=10)).act(noise, noise=torch.full((1,), largest))[0].tolist() == [12]
    assert box.sample_noise((5, 3), torch.Generator().manual_seed(0)).shape == (5, 3, 2)
    with pytest.raises(ValueError, match="valid: Discrete, or a Box with finite bounds"):
        UniformActions(spaces.Box(-np.inf, np.inf, (2,)))


# --- the table ---------------------------------------------------------------------------------------------------


def test_makers_by_name() -> None:
    assert maker("sac") is sac
    assert metadata("sac")["arxiv"] == "2004.07219"
    assert set(MAKERS) == {"sac", "clones", "demonstrations", "histories"}
    with pytest.raises(UnknownNameError, match="unknown maker 'sacc'; did you mean 'sac'"):
        maker("sacc")
