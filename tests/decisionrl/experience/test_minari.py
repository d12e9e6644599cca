"""Minari datasets: what is written is what is read back, by us and by Minari itself; what is refused."""

from __future__ import annotations

import json
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import gymnasium
import minari
import numpy as np
import pytest
import torch
from gymnasium import spaces

from decisionrl.experience.minari import Layout, load_minari, save_minari
from decisionrl.experience.store import DatasetError, EpisodeStore, store_episodes

VECTOR = spaces.Box(-np.inf, np.inf, (3,), np.float64)
IMAGE = spaces.Box(0, 255, (32, 32, 3), np.uint8)
NESTED = spaces.Dict(position=spaces.Box(-9, 9, (3,), np.float32), room=spaces.Discrete(5), camera=IMAGE)
FORCE = spaces.Box(-1, 1, (2,), np.float32)
OBSERVATION_SPACES = {"vector": VECTOR, "image": IMAGE, "dict": NESTED}
ACTION_SPACES = {"box": FORCE, "discrete": spaces.Discrete(4), "multidiscrete": spaces.MultiDiscrete([3, 2])}
LENGTHS = (3, 1, 5)
INFO = {"env": "Pendulum-v1", "random_score": -1200.5, "expert_score": -150.0, "sizes": [64, 64], "kind": None}

layouts = pytest.mark.parametrize("layout", ["hdf5", "arrow"])


def sampled(space: spaces.Space[Any], rows: int) -> Any:
    if isinstance(space, spaces.Dict):
        return {key: sampled(each, rows) for key, each in space.spaces.items()}
    return np.stack([np.asarray(space.sample()) for _ in range(rows)])


def made(observation_space: spaces.Space[Any] = VECTOR, action_space: spaces.Space[Any] = FORCE) -> EpisodeStore:
    rng = np.random.default_rng(0)
    for space in (observation_space, action_space):
        space.seed(3)
    episodes = [
        {
            "observation": sampled(observation_space, length + 1),
            "action": sampled(action_space, length),
            "reward": rng.standard_normal(length).astype(np.float32),
            "terminated": (np.arange(length) == length - 1) & (number != 1),
            "truncated": (np.arange(length) == length - 1) & (number == 1),
            "success": np.arange(length) % 2 == 1,
            "goal": rng.standard_normal((length, 2)).astype(np.float32),
            "phase": np.arange(length),
        }
        for number, length in enumerate(LENGTHS)
    ]
    return store_episodes(episodes, observation_space=observation_space, action_space=action_space, info=INFO)


def assert_equal(one: Any, other: Any) -> None:
    if isinstance(one, dict):
        assert set(one) == set(other)
        for key, each in one.items():
            assert_equal(each, other[key])
    else:
        assert one.dtype == other.dtype
        assert torch.equal(one, other)


@layouts
@pytest.mark.parametrize("action_space", ACTION_SPACES.values(), ids=ACTION_SPACES)
@pytest.mark.parametrize("observation_space", OBSERVATION_SPACES.values(), ids=OBSERVATION_SPACES)
def test_a_store_comes_back_as_it_was(
    tmp_path: Path, layout: Layout, observation_space: spaces.Space[Any], action_space: spaces.Space[Any]
) -> None:
    store = made(observation_space, action_space)
    directory = save_minari(store, tmp_path / "toy-medium", layout=layout)
    assert directory == tmp_path / "toy-medium"
    found = load_minari(directory, observation_space=observation_space, action_space=action_space)
    for name in ("observation", "action", "reward", "terminated", "truncated", "length", "extras"):
        assert_equal(getattr(store, name), getattr(found, name))
    assert found.length.tolist() == list(LENGTHS)
    assert found.info == INFO
    assert (found.observation_space, found.action_space) == (observation_space, action_space)
    assert [path.name for path in tmp_path.iterdir()] == ["toy-medium"]  # nothing temporary is left


@layouts
def test_minari_finds_it_under_its_id_and_reads_the_same(
    tmp_path: Path, layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = made(NESTED, spaces.Discrete(4))
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    save_minari(
        store,
        tmp_path / "toys/dict-v3",
        layout=layout,
        name="toys/dict-v3",
        env_spec=gymnasium.spec("CartPole-v1"),
        algorithm_name="SAC",
        author="somebody",
    )
    dataset = minari.load_dataset("toys/dict-v3", download=False)
    assert (dataset.total_episodes, dataset.total_steps) == (len(LENGTHS), sum(LENGTHS))
    assert dataset.storage.metadata["algorithm_name"] == "SAC"
    assert dataset.storage.metadata["author"] == {"somebody"}
    assert dataset.recover_environment().spec.id == "CartPole-v1"
    returns = store.returns.numpy()
    np.testing.assert_allclose(
        minari.get_normalized_score(dataset, returns), [store.normalized_score(each) / 100 for each in returns]
    )
    for number, episode in enumerate(dataset.iterate_episodes()):
        single = store.select(torch.tensor([number]))
        assert isinstance(single.observation, dict)
        for key, tensor in single.observation.items():
            np.testing.assert_array_equal(episode.observations[key], tensor.numpy())
            assert len(episode.observations[key]) == LENGTHS[number] + 1
        np.testing.assert_array_equal(episode.actions, single.action.numpy())
        np.testing.assert_array_equal(episode.rewards, single.reward.numpy())
        np.testing.assert_array_equal(episode.terminations, single.terminated.numpy())
        np.testing.assert_array_equal(episode.truncations, single.truncated.numpy())
        np.testing.assert_array_equal(episode.infos["goal"], np.pad(single.extras["goal"].numpy(), ((1, 0), (0, 0))))
    found = load_minari("toys/dict-v3")
    assert_equal(found.observation, store.observation)
    assert found.info == INFO


def test_the_id_is_by_default_the_name_of_the_directory(tmp_path: Path) -> None:
    for name, expected in (("toy-medium", "toy-medium-v0"), ("toy-v2", "toy-v2")):
        directory = save_minari(made(), tmp_path / name)
        assert json.loads((directory / "data/metadata.json").read_text())["dataset_id"] == expected


@layouts
def test_a_relative_directory(tmp_path: Path, layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert save_minari(made(), "data/toy", layout=layout) == Path("data/toy")
    assert load_minari("data/toy").length.tolist() == list(LENGTHS)


def test_the_folder_of_minari_is_what_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MINARI_DATASETS_PATH", raising=False)
    save_minari(made(), tmp_path / "one")
    assert "MINARI_DATASETS_PATH" not in os.environ
    monkeypatch.setenv("MINARI_DATASETS_PATH", "elsewhere")
    save_minari(made(), tmp_path / "two")
    assert os.environ["MINARI_DATASETS_PATH"] == "elsewhere"


@layouts
def test_a_dataset_that_minari_wrote(tmp_path: Path, layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rewards of 64 bits, infos of which only the numbers of every step can be kept, scores of the environment."""
    from minari.data_collector import EpisodeBuffer

    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    observations = np.arange(8, dtype=np.float64).reshape(4, 2) / 3
    buffer = EpisodeBuffer(
        observations=observations,
        actions=np.array([0, 2, 1]),
        rewards=np.array([0.1, 0.2, 0.3]),
        terminations=np.array([False, False, True]),
        truncations=np.array([False, False, False]),
        infos={"place": np.arange(8.0).reshape(4, 2), "note": ["a", "b", "c", "d"]},
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        minari.create_dataset_from_buffers(
            "toy-v0",
            [buffer],
            env="CartPole-v1",
            observation_space=spaces.Box(-9, 9, (2,), np.float64),
            action_space=spaces.Discrete(3),
            ref_min_score=1.0,
            ref_max_score=3.0,
            data_format=layout,
        )
    store = load_minari("toy-v0")
    assert isinstance(store.observation, torch.Tensor)
    assert_equal(store.observation, torch.tensor(observations, dtype=torch.float32))
    assert_equal(store.action, torch.tensor([0, 2, 1]))
    assert_equal(store.reward, torch.tensor([0.1, 0.2, 0.3]))
    assert list(store.extras) == ["place"]
    assert_equal(store.extras["place"], torch.arange(2.0, 8.0).view(3, 2))
    assert store.info == {"dataset_id": "toy-v0", "env": "CartPole-v1", "random_score": 1.0, "expert_score": 3.0}
    assert store.normalized_score(2.0) == 50


def test_other_spaces_than_the_policys_are_refused(tmp_path: Path) -> None:
    directory = save_minari(made(), tmp_path / "toy")
    other = spaces.Box(-1, 1, (4,), np.float32)
    with pytest.raises(DatasetError, match=r"toy: action_space is Box\(-1.0, 1.0, \(2,\).* valid: Box\(.*\(4,\)"):
        load_minari(directory, observation_space=VECTOR, action_space=other)
    with pytest.raises(DatasetError, match=r"observation_space is Box\(-inf, inf, \(3,\).* valid: Box\(.*\(4,\)"):
        load_minari(directory, observation_space=other)


def test_no_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    for unknown in ("none-v0", str(tmp_path), "no-version", "no id"):
        with pytest.raises(DatasetError, match=r"no Minari dataset: .*valid: a directory with data/metadata.json"):
            load_minari(unknown)


def test_steps_that_the_metadata_counts_but_the_data_lack(tmp_path: Path) -> None:
    directory = save_minari(made(), tmp_path / "toy")
    path = directory / "data/metadata.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"total_steps": 10}))
    with pytest.raises(DatasetError, match="has 9 steps; valid: 10, as its metadata says"):
        load_minari(directory)


def test_what_cannot_be_written_leaves_nothing_behind(tmp_path: Path) -> None:
    store = made()
    with pytest.raises(ValueError, match="name = 'a b'; valid"):
        save_minari(store, tmp_path / "toy", name="a b")
    with pytest.raises(ValueError, match="name = 'toy'; valid"):
        save_minari(store, tmp_path / "toy", name="toy")
    with pytest.raises(ValueError, match="layout = 'csv'; valid: 'hdf5', 'arrow'"):
        save_minari(store, tmp_path / "toy", layout="csv")  # type: ignore[arg-type]
    for value in (float("nan"), {1, 2}):
        strange = store_episodes(
            [
                {
                    "observation": [[0.0], [1.0]],
                    "action": [0],
                    "reward": [1.0],
                    "terminated": [True],
                    "truncated": [False],
                }
            ],
            observation_space=spaces.Box(0, 1, (1,)),
            action_space=spaces.Discrete(2),
            info={"strange": value},
        )
        with pytest.raises(DatasetError, match=r"info = .*valid: finite numbers"):
            save_minari(strange, tmp_path / "toy")
    assert not list(tmp_path.iterdir())


def test_a_directory_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy/thesis.tex").write_text("")
    with pytest.raises(FileExistsError, match="is there already"):
        save_minari(made(), tmp_path / "toy")
    assert (tmp_path / "toy/thesis.tex").exists()


@pytest.mark.parametrize("package", ["minari", "h5py"])
def test_a_missing_package_is_named_with_its_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    for use in (lambda: save_minari(made(), tmp_path / "toy"), lambda: load_minari(tmp_path)):
        with pytest.raises(ImportError, match=rf"{package}.*pip install 'decisionrl\[offline\]'"):
            use()
