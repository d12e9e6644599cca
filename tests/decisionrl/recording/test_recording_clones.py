"""Clones: what is recorded is what was played, and the parts it is made with."""

from __future__ import annotations

from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch

import decisionrl.recording.clones as recording
from decisionrl.envs.robotics.metaworld import MetaWorldEnv, scripted_expert
from decisionrl.experience.minari import load_minari
from decisionrl.experience.preference_formats import load_segments
from decisionrl.experience.teachers import labels_from_scores
from decisionrl.names import UnknownNameError
from decisionrl.recording.clones import AFTER_SUCCESS, DISCOUNT, MAX_STEPS, Clones, clones, record_clones

pytest.importorskip("metaworld")

LEAST = 41


def recorded(**settings: int) -> Clones:
    small = {"demonstrations": 2, "success": 1.0, "episodes": 4, "segments": 12, "segment_length": LEAST - 1}
    fits = {"value_episodes": 2, "cloning_steps": 200, "value_steps": 10}
    return record_clones(**{**small, **fits, **settings})


@pytest.fixture(scope="module")
def data() -> Clones:
    return recorded()


def test_recorded_episodes_are_those_of_the_environment(data: Clones) -> None:
    env, store = MetaWorldEnv("plate-slide"), data.episodes
    row = 0
    for number, seed in enumerate(recording._seeds(0, "episodes", 4)):
        seen = [env.reset(seed=seed)[0]]
        for _ in range(int(store.length[number])):
            observation, reward, _, _, info = env.step(store.action[row].numpy())
            seen.append(observation)
            assert float(store.reward[row]) == np.float32(reward)
            assert bool(store.extras["success"][row]) == info["success"]
            row += 1
        first = int(store.first[number]) + number
        np.testing.assert_array_equal(store.observation[first : first + len(seen)], seen)
    assert (store.action.abs() <= 1).all()


def test_episodes_end_a_while_after_their_success(data: Clones) -> None:
    store = data.episodes
    assert not store.terminated.any()
    ends = store.first + store.length - 1
    assert store.truncated.nonzero().flatten().tolist() == ends.tolist()
    solved = 0
    for number in range(4):
        success = store.extras["success"][store.episode == number].nonzero().flatten()
        length = int(store.length[number])
        wanted = max(LEAST, int(success[0]) + 1 + AFTER_SUCCESS) if len(success) else MAX_STEPS
        assert length == min(wanted, MAX_STEPS)
        solved += bool(len(success))
    assert store.info["success_rate"] == solved / 4


def test_the_expert_is_asked_in_every_state(data: Clones) -> None:
    expert, store = scripted_expert("plate-slide"), data.episodes
    seen = store.observations_before()
    assert isinstance(seen, torch.Tensor)
    wanted = np.stack([expert(row) for row in seen.numpy()])
    np.testing.assert_array_equal(store.extras["expert_action"], wanted)


def test_teachers_score_every_segment(data: Clones) -> None:
    assert set(data.scores) == {"regret", "return", "distance"}
    assert (data.segments.length, len(data.segments)) == (LEAST - 1, 12)
    for i in range(12):
        batch = data.segments.rows(torch.tensor([i]))
        distance = -(batch.action - batch.extras["expert_action"]).square().sum()
        assert float(data.scores["distance"][i]) == pytest.approx(float(distance), rel=1e-5)
        assert float(data.scores["return"][i]) == pytest.approx(float(batch.reward.sum()), rel=1e-5)
    assert data.scores["regret"].isfinite().all()
    assert not torch.equal(data.scores["regret"], data.scores["return"])


def test_info_says_how_the_data_was_made(data: Clones) -> None:
    info = data.episodes.info
    assert info["env"] == "decisionrl/PlateSlide-v0"
    assert {
        "seed": 0,
        "demonstrations": 2,
        "success": 1.0,
        "shown": 2,
        "noise": 0.3,
        "cloning_steps": 200,
    }.items() <= info.items()
    assert gymnasium.spec(info["env"]).kwargs == {"task": "plate-slide"}


def test_a_seed_determines_everything(data: Clones) -> None:
    again, other = recorded(), recorded(seed=1)
    torch.testing.assert_close(again.episodes.action, data.episodes.action, rtol=0, atol=0)
    for name, score in data.scores.items():
        torch.testing.assert_close(again.scores[name], score, rtol=0, atol=0)
    assert not torch.equal(other.episodes.observation[0], data.episodes.observation[0])


def test_playing_side_by_side_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(copies: int) -> list[dict[str, torch.Tensor]]:
        monkeypatch.setattr(recording, "COPIES", copies)
        return recording._play(
            "button-press", [3, 1, 2], lambda seen, expert, episode, step: expert, least=[5, 70, 5], max_steps=72
        )

    for one, several in zip(run(1), run(2), strict=True):
        assert one.keys() == several.keys()
        for name in one:
            torch.testing.assert_close(one[name], several[name], rtol=0, atol=0)


def test_choices_are_asked_for_the_right_step_of_the_right_episode() -> None:
    asked: dict[int, list[int]] = {0: [], 1: [], 2: []}

    def choose(seen: torch.Tensor, expert: torch.Tensor, episode: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
        for number, at in zip(episode.tolist(), step.tolist(), strict=True):
            asked[number].append(at)
        return 3 + episode[:, None].expand(-1, 4).float()

    played = recording._play("plate-slide", [0, 1, 2], choose, least=[1, 1, 1], max_steps=6)
    assert asked == {number: list(range(6)) for number in range(3)}
    assert all((each["action"] == 1).all() for each in played)  # clipped to the box


def test_returns_go_on_with_the_last_reward() -> None:
    reward = torch.rand(9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    endless = reward.tolist() + [float(reward[-1])] * 5000
    for t, found in enumerate(recording._discounted_returns(reward).tolist()):
        assert found == pytest.approx(sum(DISCOUNT**i * each for i, each in enumerate(endless[t:])), rel=1e-9)


def test_regression_fits_and_leaves_the_global_generator_alone() -> None:
    random = torch.Generator().manual_seed(0)
    inputs = 5 + 3 * torch.randn(400, 2, generator=random)
    targets = 100 + torch.stack([inputs[:, 0] - inputs[:, 1], inputs[:, 0].abs()], 1) * 20
    before = torch.get_rng_state()
    fits = [
        recording._regression(inputs, targets, steps=600, generator=torch.Generator().manual_seed(seed))
        for seed in (1, 1, 2)
    ]
    assert torch.equal(torch.get_rng_state(), before)
    error = (fits[0](inputs) - targets).square().mean(0) / targets.var(0)
    assert (error < 0.01).all()
    assert torch.equal(fits[0](inputs), fits[1](inputs))
    assert not torch.equal(fits[0](inputs), fits[2](inputs))


def test_files(tmp_path: Path) -> None:
    pytest.importorskip("minari")
    pytest.importorskip("h5py")
    small = {"demonstrations": 1, "episodes": 2, "segments": 5, "segment_length": 6, "value_episodes": 2}
    [directory] = clones(env="drawer-open", **small, cloning_steps=20, value_steps=20, out=tmp_path)
    assert directory == tmp_path / "drawer-open-clones-seed0"
    store = load_minari(directory)
    assert store.info["env"] == "decisionrl/DrawerOpen-v0"
    assert store.extras["success"].dtype == torch.bool
    for score in ("regret", "return", "distance"):
        segments = load_segments(directory / "segments.npz", store, score=score)
        assert (len(segments), segments.length) == (5, 6)


def test_settings_are_checked() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'plate-slide'"):
        record_clones(env="plate-slid")
    with pytest.raises(ValueError, match="episodes = 0; valid: a whole number >= 1"):
        record_clones(episodes=0)
    with pytest.raises(ValueError, match="segment_length = 250; valid: less than 250"):
        record_clones(segment_length=250)


@pytest.mark.slow
def test_clones_of_few_demonstrations_are_half_good_and_teachers_differ() -> None:
    data = record_clones(episodes=100, value_episodes=100)
    assert 0.3 < data.episodes.info["success_rate"] < 0.9
    first, second = torch.randint(1500, (2, 4000), generator=torch.Generator().manual_seed(0))
    label = {name: labels_from_scores(score[first], score[second]) for name, score in data.scores.items()}
    for name in ("return", "distance"):
        assert 0.55 < float((label[name] == label["regret"]).float().mean()) < 0.9
