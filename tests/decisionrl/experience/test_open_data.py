"""Data by name: labs, flat files, Minari datasets, and names that stand for nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from decisionrl.experience.d4rl import save_d4rl
from decisionrl.experience.data import open_data, open_score_names, open_segments
from decisionrl.experience.minari import ROOT, save_minari
from decisionrl.experience.preference_formats import save_segments
from decisionrl.experience.preferences import sample_segments
from decisionrl.experience.store import DatasetError, EpisodeStore
from decisionrl.names import UnknownNameError
from decisionrl.recording.demonstrations import record_demonstrations
from decisionrl.recording.labs import Lab, point_lab

LABS = ("lab/gridworld", "lab/point", "lab/two-modes")
DEMONSTRATIONS = {
    "lab/return-side": "decisionrl/ReturnSide-v0",
    "lab/count-visits": "decisionrl/CountVisits-v0",
}


@pytest.fixture(autouse=True)
def minari_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "minari"
    folder.mkdir()
    monkeypatch.setenv(ROOT, str(folder))
    return folder


def small() -> Lab:
    return point_lab(episodes=4, segments=8)


def same(a: EpisodeStore, b: EpisodeStore) -> bool:
    return all(torch.equal(getattr(a, name), getattr(b, name)) for name in ("observation", "action", "reward"))


@pytest.mark.parametrize("name", LABS)
def test_labs_have_episodes_and_segments(name: str) -> None:
    segments = open_segments(name, score="return")
    assert segments.episodes is open_data(name)
    assert segments.score is not None
    assert torch.allclose(segments.rows(torch.arange(len(segments))).reward.double().sum(1), segments.score)
    assert open_segments(name).score is None
    with pytest.raises(DatasetError, match=r"score = 'regert'; valid: .*return"):
        open_segments(name, score="regert")


@pytest.mark.parametrize(("name", "env"), DEMONSTRATIONS.items())
def test_labs_of_demonstrations_have_episodes_that_nobody_compared(name: str, env: str) -> None:
    episodes = open_data(name)
    assert episodes is open_data(name)
    assert same(episodes, record_demonstrations(env=env))
    assert episodes.info["env"] == env
    for opened in (open_segments, open_score_names):
        with pytest.raises(
            DatasetError, match=f"{name} has no segments; valid: a lab with teachers or a Minari dataset"
        ):
            opened(name)


@pytest.mark.parametrize("suffix", ["npz", "hdf5", "h5"])
def test_flat_files(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"point.{suffix}"
    save_d4rl(small().episodes, path)
    assert same(open_data(path), small().episodes)
    assert same(open_data(str(path)), small().episodes)
    with pytest.raises(
        DatasetError, match="has no segments; valid: a lab with teachers or a Minari dataset, or load_segments"
    ):
        open_segments(path, score="regret")


def test_other_files(tmp_path: Path) -> None:
    (tmp_path / "point.pkl").touch()
    with pytest.raises(DatasetError, match=r"suffix = '.pkl'; valid: .hdf5, .h5, .npz"):
        open_data(tmp_path / "point.pkl")


def test_directories_and_ids_of_minari(tmp_path: Path, minari_folder: Path) -> None:
    lab = small()
    for name, directory in (
        (tmp_path / "mine", tmp_path / "mine"),
        ("toys/point-v0", minari_folder / "toys" / "point-v0"),
    ):
        save_minari(lab.episodes, directory, name="toys/point-v0")
        assert same(open_data(name), lab.episodes)
        with pytest.raises(DatasetError, match=r"has no segments; valid: a file .*segments.npz, written by save_seg"):
            open_segments(name, score="regret")
        save_segments(directory / "segments.npz", lab.segments, lab.scores)
        opened = open_segments(name, score="regret")
        assert opened.score is not None
        assert torch.equal(opened.score, lab.scores["regret"])
        everything = torch.arange(len(opened))
        assert torch.equal(opened.rows(everything).action, lab.segments.rows(everything).action)
        with pytest.raises(DatasetError, match="score = 'dist'; valid: distance, regret, return"):
            open_segments(name, score="dist")


def test_names_that_stand_for_nothing(minari_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_minari(small().episodes, minari_folder / "toys" / "point-v0", name="toys/point-v0")
    with pytest.raises(UnknownNameError, match=r"unknown data 'lab/girdworld'; did you mean 'lab/gridworld'\?"):
        open_data("lab/girdworld")
    with pytest.raises(UnknownNameError, match=r"did you mean 'toys/point-v0'\? Known: .*lab/two-modes, toys/point-v0"):
        open_segments("toys/piont-v0")
    with pytest.raises(UnknownNameError, match=r"; a directory with data/metadata.json; an .hdf5, .h5 or .npz file"):
        open_data(minari_folder / "missing")
    monkeypatch.setenv(ROOT, str(minari_folder / "missing"))
    with pytest.raises(
        UnknownNameError,
        match="Known: lab/count-visits, lab/gridworld, lab/point, lab/push-t, lab/return-side, lab/two-modes;",
    ):
        open_data("toys/point-v0")


def test_segments_of_other_episodes_are_refused(tmp_path: Path) -> None:
    save_minari(small().episodes, tmp_path / "mine")
    other = point_lab(episodes=5).episodes
    save_segments(tmp_path / "mine" / "segments.npz", sample_segments(other, 3, 2), {})
    with pytest.raises(DatasetError, match="made for data of 5 episodes; these have 4"):
        open_segments(tmp_path / "mine")
