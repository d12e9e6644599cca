"""Files of segments and pairs, and the labels and files of others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor

from decisionrl.experience.preference_formats import (
    from_signed,
    from_two_column,
    human_pairs,
    load_cpl_pairs,
    load_cpl_segments,
    load_pairs,
    load_segments,
    save_pairs,
    save_segments,
    to_signed,
    to_two_column,
)
from decisionrl.experience.preferences import PreferencePairs, Segments, sample_segments
from decisionrl.experience.store import DatasetError, EpisodeStore, store_episodes


def store(lengths: tuple[int, ...] = (5, 3, 7)) -> EpisodeStore:
    rng = np.random.default_rng(len(lengths))
    return store_episodes(
        [
            {
                "observation": rng.normal(size=(steps + 1, 2)).astype(np.float32),
                "action": rng.uniform(-1, 1, (steps, 1)).astype(np.float32),
                "reward": rng.normal(size=steps).astype(np.float32),
                "terminated": np.zeros(steps, bool),
                "truncated": np.arange(steps) == steps - 1,
            }
            for steps in lengths
        ],
        observation_space=spaces.Box(-np.inf, np.inf, (2,)),
        action_space=spaces.Box(-1, 1, (1,)),
    )


def segments(count: int = 6) -> Segments:
    return sample_segments(store(), count, 3, generator=torch.Generator().manual_seed(0))


def rewritten(path: Path, **changes: Any) -> Path:
    """The npz file with other arrays; None removes one."""
    with np.load(path) as file:
        arrays = {**file, **changes}
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    return path


def test_segments_come_back_with_the_score_asked_for(tmp_path: Path) -> None:
    own = segments()
    regret, kinder = torch.randn(6, dtype=torch.float64), torch.randn(6)
    save_segments(tmp_path / "segments.npz", own, {"regret": regret, "return": kinder})
    for name, score in (("regret", regret), ("return", kinder)):
        back = load_segments(tmp_path / "segments.npz", own.episodes, score=name)
        assert torch.equal(back.episode, own.episode)
        assert torch.equal(back.start, own.start)
        assert back.length == 3
        assert back.score is not None
        assert back.score.dtype == score.dtype
        assert torch.equal(back.score, score)
    assert load_segments(tmp_path / "segments.npz", own.episodes).score is None
    assert [each.name for each in tmp_path.iterdir()] == ["segments.npz"]


def test_segments_files_that_do_not_fit(tmp_path: Path) -> None:
    own, path = segments(), tmp_path / "segments.npz"
    with pytest.raises(DatasetError, match="score: valid are 6 finite numbers"):
        save_segments(path, own, {"regret": torch.zeros(5)})
    assert not path.exists()
    save_segments(path, own, {})
    with pytest.raises(DatasetError, match="score = 'regret'; valid: none, as it has no score"):
        load_segments(path, own.episodes, score="regret")
    save_segments(path, own, {"return": torch.zeros(6), "regret": torch.zeros(6)})
    with pytest.raises(DatasetError, match="score = 'regert'; valid: regret, return"):
        load_segments(path, own.episodes, score="regert")
    with pytest.raises(DatasetError, match="made for data of 3 episodes; these have 2"):
        load_segments(path, store((5, 10)))
    with pytest.raises(DatasetError, match="made for data of 15 steps; these have 14"):
        load_segments(path, store((5, 3, 6)))
    with pytest.raises(DatasetError, match=r"episode is float64 \(6,\); valid: whole numbers \[n\]"):
        load_segments(rewritten(path, episode=np.zeros(6)), own.episodes)
    with pytest.raises(DatasetError, match="episode is missing; there are episodes, length, "):
        load_segments(rewritten(path, episode=None), own.episodes)


def test_files_that_are_no_arrays(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    with pytest.raises(FileNotFoundError):
        load_segments(path, store())
    path.write_bytes(b"\x80\x04K\x01.")
    with pytest.raises(DatasetError, match="not an npz file"):
        load_segments(path, store())
    ragged = np.empty(2, dtype=object)
    ragged[:] = [[1], [1, 2]]
    np.savez(path, obs=ragged)
    with pytest.raises(
        DatasetError, match=r"obs cannot be read .* valid: an array of numbers, all rows of equal length"
    ):
        load_cpl_pairs(path)


def test_pairs_come_back(tmp_path: Path) -> None:
    own = segments()
    pairs = PreferencePairs(
        segments=own,
        first=torch.tensor([0, 1, 0, 4]),
        second=torch.tensor([1, 2, 5, 0]),
        label=torch.tensor([0.0, 1.0, 0.5, 0.25], dtype=torch.float64),
    )
    save_pairs(tmp_path / "pairs.npz", pairs)
    back = load_pairs(tmp_path / "pairs.npz", own.episodes)
    assert torch.equal(back.label, pairs.label)
    for name in ("first", "second"):
        for field in ("episode", "start"):
            before = getattr(pairs.segments, field)[getattr(pairs, name)]
            assert torch.equal(getattr(back.segments, field)[getattr(back, name)], before)
    places = list(zip(back.segments.episode.tolist(), back.segments.start.tolist(), strict=True))
    assert len(set(places)) == len(places) <= 5
    everything = torch.arange(4)
    assert torch.equal(back.batch(everything).segments.action, pairs.batch(everything).segments.action)


def test_pairs_files_that_do_not_fit(tmp_path: Path) -> None:
    own, path = segments(), tmp_path / "pairs.npz"
    pairs = PreferencePairs(
        segments=own, first=torch.tensor([0, 1]), second=torch.tensor([2, 3]), label=torch.tensor([0.0, 1.0])
    )
    save_pairs(path, pairs)
    with pytest.raises(DatasetError, match=r"pair 1: label = 2.0; valid: 0 to 1"):
        load_pairs(rewritten(path, label=np.array([1.0, 2.0])), own.episodes)
    save_pairs(path, pairs)
    with pytest.raises(DatasetError, match="steps 6 to 8 of episode 2, which has 7 steps"):
        load_pairs(rewritten(path, episode_2=np.array([2, 2]), start_2=np.array([0, 6])), own.episodes)
    with pytest.raises(DatasetError, match="2 first and 1 second segments; valid: as many"):
        load_pairs(rewritten(path, episode_2=np.array([2]), start_2=np.array([0])), own.episodes)
    save_pairs(path, pairs)
    with pytest.raises(DatasetError, match="label is missing"):
        load_pairs(rewritten(path, label=None), own.episodes)


def test_two_columns_say_first_or_second() -> None:
    label = from_two_column([[1, 0], [0, 1], [0.5, 0.5], [0.25, 0.75]])
    assert label.tolist() == [0, 1, 0.5, 0.75]
    assert torch.equal(from_two_column(to_two_column(label)), label)
    assert to_two_column(torch.tensor([0.0])).tolist() == [[1, 0]]
    assert from_two_column(np.array([[1, 0]])).tolist() == [0]
    with pytest.raises(DatasetError, match=r"labels\[1\] = \[0.0, 0.0\]; valid: two numbers >= 0 with sum 1"):
        from_two_column([[1, 0], [0, 0]])
    with pytest.raises(DatasetError, match=r"labels\[0\] = \[2.0, -1.0\]"):
        from_two_column([[2.0, -1.0]])
    with pytest.raises(DatasetError, match=r"labels have shape \(2,\); valid: \[pairs, 2\]"):
        from_two_column([1, 0])


def test_signed_labels_say_first_second_or_neither() -> None:
    label = from_signed(np.array([0, 1, -1]))
    assert label.tolist() == [0, 1, 0.5]
    assert to_signed(label).tolist() == [0, 1, -1]
    with pytest.raises(DatasetError, match=r"labels\[2\] = 2.0; valid: 0, 1, or -1 for a tie"):
        from_signed([0, 1, 2])
    with pytest.raises(DatasetError, match=r"labels\[1\] = 0.75; valid: 0, 0.5 or 1"):
        to_signed(torch.tensor([0.5, 0.75]))


def cpl_arrays(count: int = 6, length: int = 4) -> dict[str, np.ndarray[Any, Any]]:
    rng = np.random.default_rng(0)
    return {
        "obs": rng.normal(size=(count, length, 3)),
        "action": rng.uniform(-1, 1, (count, length, 2)),
        "reward": rng.normal(size=(count, length)).astype(np.float32),
        "rl_sum": np.array([1.0, 5.0, 2.0, 3.0, 5.0, 1.0])[:count],
    }


def saved(path: Path, arrays: dict[str, Any]) -> Path:
    np.savez(path, **arrays)
    return path


def single(array: np.ndarray[Any, Any]) -> Tensor:
    return torch.from_numpy(array).float()


def test_cpl_segments_keep_their_steps_and_scores(tmp_path: Path) -> None:
    arrays = cpl_arrays()
    own = load_cpl_segments(saved(tmp_path / "cpl.npz", arrays), score="rl_sum")
    batch = own.rows(torch.arange(6))
    assert isinstance(batch.observation, Tensor)
    assert torch.equal(batch.observation, single(arrays["obs"]))
    assert torch.equal(batch.action, single(arrays["action"]))
    assert torch.equal(batch.reward, single(arrays["reward"]))
    assert batch.mask.all()
    assert batch.truncated.tolist() == [[False, False, False, True]] * 6
    assert not batch.terminated.any()
    assert own.score is not None
    assert own.score.tolist() == arrays["rl_sum"].tolist()
    last = own.episodes.observation_at(torch.arange(6), torch.full((6,), 4))
    assert isinstance(last, Tensor)
    assert torch.equal(last, single(arrays["obs"][:, -1]))


def test_cpl_comparisons_pair_the_halves(tmp_path: Path) -> None:
    pairs = load_cpl_pairs(saved(tmp_path / "cpl.npz", cpl_arrays()), label="rl_sum")
    assert pairs.first.tolist() == [0, 1, 2]
    assert pairs.second.tolist() == [3, 4, 5]
    assert pairs.label.tolist() == [1, 0.5, 0]


def test_cpl_old_pairs_have_labels_of_their_own(tmp_path: Path) -> None:
    arrays = cpl_arrays()
    old: dict[str, Any] = {"label": np.array([0.0, 1.0, 0.25])}
    for name in ("obs", "action", "reward"):
        old |= {f"{name}_1": arrays[name][:3], f"{name}_2": arrays[name][3:]}
    pairs = load_cpl_pairs(saved(tmp_path / "cpl.npz", old))
    assert pairs.label.tolist() == [0, 1, 0.25]
    batch = pairs.batch(torch.tensor([2]))
    assert torch.equal(batch.segments.action[batch.first], single(arrays["action"][2:3]))
    assert torch.equal(batch.segments.action[batch.second], single(arrays["action"][5:6]))
    with pytest.raises(DatasetError, match=r"first are \(3, 4, 3\), of the second \(3, 2, 3\), with 3 la"):
        load_cpl_pairs(saved(tmp_path / "cpl.npz", {**old, "obs_2": arrays["obs"][3:, :2]}))
    with pytest.raises(DatasetError, match=r"pair 1: label = -1.0; valid: 0 to 1"):
        load_cpl_pairs(saved(tmp_path / "cpl.npz", {**old, "label": np.array([0.0, -1.0, 0.0])}))
    broken = arrays["obs"][3:].copy()
    broken[2, 1, 0] = np.inf
    with pytest.raises(DatasetError, match=r"observations of the second\[2, 1, 0\] = inf; valid: finite numbers"):
        load_cpl_pairs(saved(tmp_path / "cpl.npz", {**old, "obs_2": broken}))
    with pytest.raises(DatasetError, match="reward_2 is missing"):
        load_cpl_pairs(saved(tmp_path / "cpl.npz", {k: v for k, v in old.items() if k != "reward_2"}))


def test_cpl_files_that_do_not_fit(tmp_path: Path) -> None:
    arrays = cpl_arrays()

    def load(**changes: Any) -> Segments:
        return load_cpl_segments(saved(tmp_path / "cpl.npz", {**arrays, **changes}), score="rl_sum")

    broken = arrays["obs"].copy()
    broken[2, 1, 0] = np.nan
    with pytest.raises(DatasetError, match=r"observations\[2, 1, 0\] = nan; valid: finite numbers"):
        load(obs=broken)
    with pytest.raises(DatasetError, match=r"actions have shape \(6, 3, 2\); valid: \(6, 4\) first, the same"):
        load(action=arrays["action"][:, :3])
    with pytest.raises(DatasetError, match=r"valid: real numbers in .*, or give action_space"):
        load(action=2 * arrays["action"])
    with pytest.raises(DatasetError, match=r"rewards have shape \(6,\)"):
        load(reward=np.zeros(6))
    with pytest.raises(DatasetError, match="score: valid are 6 finite numbers"):
        load(rl_sum=np.zeros(5))
    with pytest.raises(DatasetError, match="label is missing; there are action, obs, reward, rl_sum"):
        load_cpl_pairs(saved(tmp_path / "cpl.npz", arrays))
    wide = load_cpl_segments(
        saved(tmp_path / "cpl.npz", {**arrays, "action": 2 * arrays["action"]}),
        score="rl_sum",
        action_space=spaces.Box(-2, 2, (2,)),
    )
    assert wide.episodes.action_space == spaces.Box(-2, 2, (2,))


def test_images_stay_bytes(tmp_path: Path) -> None:
    obs = np.random.default_rng(0).integers(0, 256, (6, 4, 3, 2, 2), dtype=np.uint8)
    own = load_cpl_segments(saved(tmp_path / "cpl.npz", {**cpl_arrays(), "obs": obs}), score="rl_sum")
    observation = own.rows(torch.tensor([3])).observation
    assert isinstance(observation, Tensor)
    assert torch.equal(observation, torch.from_numpy(obs[3:4]))
    assert own.episodes.observation_space == spaces.Box(0, 255, (3, 2, 2), np.uint8)


def human_arrays() -> dict[str, Any]:
    arrays = cpl_arrays()
    return {
        "observations": arrays["obs"][:3],
        "actions": arrays["action"][:3],
        "observations_2": arrays["obs"][3:],
        "actions_2": arrays["action"][3:],
        "fixed_timestep_1": np.arange(12).reshape(3, 4),
        "fixed_timestep_2": np.arange(100, 112).reshape(3, 4),
        "labels": np.array([[1, 0], [0, 1], [0.5, 0.5]]),
    }


def test_human_labels() -> None:
    arrays = human_arrays()
    pairs = human_pairs(arrays)
    assert pairs.label.tolist() == [0, 1, 0.5]
    batch = pairs.batch(torch.tensor([1]))
    assert torch.equal(batch.segments.action[batch.first], single(arrays["actions"][1:2]))
    assert torch.equal(batch.segments.action[batch.second], single(arrays["actions_2"][1:2]))
    assert batch.segments.extras["timestep"].tolist() == [[4, 5, 6, 7], [104, 105, 106, 107]]
    assert (batch.segments.reward == 0).all()
    del arrays["fixed_timestep_1"], arrays["fixed_timestep_2"]
    assert human_pairs(arrays).segments.episodes.extras == {}


def test_human_labels_that_do_not_fit() -> None:
    arrays = human_arrays()
    with pytest.raises(DatasetError, match="observations_2 is missing; there are actions, "):
        human_pairs({name: array for name, array in arrays.items() if name != "observations_2"})
    with pytest.raises(DatasetError, match=r"labels\[2\] = \[1.0, 1.0\]"):
        human_pairs({**arrays, "labels": np.array([[1, 0], [0, 1], [1, 1]])})
    with pytest.raises(DatasetError, match="with 2 labels"):
        human_pairs({**arrays, "labels": arrays["labels"][:2]})
    with pytest.raises(DatasetError, match=r"timestep have shape \(3, 4\); valid: \(6, 4\) first"):
        human_pairs({name: array for name, array in arrays.items() if name != "fixed_timestep_2"})
