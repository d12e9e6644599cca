"""The command line on recorded data: train, resume, measure, list, and what it says of data that cannot be used."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from decisionrl import cli
from decisionrl.composition import PhasedLearner
from decisionrl.experience.arrays import write_npz
from decisionrl.experience.d4rl import save_d4rl
from decisionrl.experience.data import DEMONSTRATIONS, HISTORIES, LABS, open_data, open_segments
from decisionrl.experience.minari import save_minari
from decisionrl.experience.preference_formats import save_pairs, save_segments
from decisionrl.experience.preferences import PreferencePairs
from decisionrl.recipes import ON_DEMONSTRATIONS, ON_RECORDED_DATA
from decisionrl.recording import MAKERS

SMALL = ("--set", "hidden=[8]", "--set", "batch=4", "--set", "cloning_steps=5", "--set", "warmup=2")


def test_a_run_without_anything_but_a_name(run: Any) -> None:
    status, out, err = run("train", "cpl", "--steps", "40", *SMALL)
    assert status == 0, err
    assert "normalized score" in out
    assert "eval/normalized_score" in err
    directory = Path("runs/cpl-point-seed0")
    config = json.loads((directory / "config.json").read_text())
    assert (config["data"], config["env"], config["hidden"]) == ("lab/point", "decisionrl/PointReach-v0", [8])
    assert (directory / "learning_curve.png").stat().st_size > 1000
    told = json.loads((directory / "evaluation.json").read_text())
    assert f"mean return {told['mean_return']:.5g}" in out
    assert f"normalized score {told['normalized_score']:.1f}" in out

    status, out, err = run("evaluate", str(directory), "--episodes", "3", "--json")
    assert status == 0, err
    measured = json.loads(out)
    assert measured["episodes"] == 3
    assert measured["score_low"] <= measured["normalized_score"] <= measured["score_high"]
    assert run("evaluate", str(directory), "--episodes", "3")[1].startswith("mean return")


def test_a_success_rate_is_called_one(capsys: pytest.CaptureFixture[str]) -> None:
    cli._print_result({"mean_return": 0.5, "success_rate": 0.5, "low": 0.25, "high": 0.75, "episodes": 8})
    assert capsys.readouterr().out == "success rate 0.5  95 % interval 0.25 to 0.75  (8 episodes)\n"


@pytest.mark.parametrize("killed_at", [3, 6, 13])
def test_a_run_goes_on_where_it_was(run: Any, monkeypatch: pytest.MonkeyPatch, killed_at: int) -> None:
    """Also when it is cut in the pre-training, or right where that ends."""
    arguments = ("--data", "lab/gridworld", "--steps", "16", *SMALL, "--set", "dropout=0.5", "--checkpoint-every", "1")
    assert run("train", "cpl_kl", *arguments, "--out", "whole")[0] == 0
    update, updates = PhasedLearner.update, 0

    def killed(self: PhasedLearner, batch: Any) -> Any:
        nonlocal updates
        updates += 1
        if updates == killed_at:
            raise ConnectionAbortedError
        return update(self, batch)

    monkeypatch.setattr(PhasedLearner, "update", killed)
    with pytest.raises(ConnectionAbortedError):
        run("train", "cpl_kl", *arguments, "--out", "cut")
    assert run("train", "cpl_kl", "--resume", "cut")[0] == 0
    assert Path("cut/final.safetensors").read_bytes() == Path("whole/final.safetensors").read_bytes()


def test_the_lists_know_recipes_and_data(run: Any) -> None:
    _, out, _ = run("list", "recipes")
    lines = {line.split()[0]: line for line in out.splitlines()}
    assert all("recorded" in lines[name] for name in (*ON_RECORDED_DATA, *ON_DEMONSTRATIONS))
    content = json.loads(run("list", "datasets", "--json")[1])["datasets"]
    assert [*content] == [*LABS, *DEMONSTRATIONS, *HISTORIES, *(f"make-dataset {name}" for name in MAKERS)]
    assert all(content.values())
    assert all(env in content[name] for name, env in DEMONSTRATIONS.items())
    assert "--data any Minari dataset" in run("list", "datasets")[1]


# ------------------------------------------------------------------------------------------ what cannot be used


def changed(path: str, **changes: Any) -> None:
    """The lab's episodes in a flat file in the form of D4RL, some columns of which are others."""
    save_d4rl(open_data("lab/point"), path)
    with np.load(path) as file:
        arrays = dict(file)
    write_npz(path, {**arrays, **changes})


def observations_with_nan() -> np.ndarray[Any, Any]:
    seen = open_data("lab/point").observations_before()
    assert isinstance(seen, torch.Tensor)
    array = seen.numpy().copy()
    array[7, 2] = np.nan
    return array


def labels(path: str, **changes: Any) -> None:
    """Three comparisons of the lab's segments, some columns of which are others."""
    row = torch.arange(3)
    pairs = PreferencePairs(
        segments=open_segments("lab/point"), first=row, second=row + 3, label=torch.tensor([1.0, 0.0, 0.5])
    )
    save_pairs(path, pairs)
    with np.load(path) as file:
        arrays = dict(file)
    write_npz(path, {**arrays, **changes})


def ragged(path: str) -> None:
    rows = np.empty(2, object)
    rows[:] = [np.zeros((3, 2)), np.zeros((4, 2))]
    np.savez(path, observations=rows, allow_pickle=True)


def minari_set(name: str, *, scores: bool = True, segments: bool = True, **info: Any) -> None:
    """The lab as a Minari dataset in the folder, with its segments or without."""
    lab = LABS["lab/point"]()
    directory = save_minari(dataclasses.replace(lab.episodes, info=info), name)
    if segments:
        save_segments(directory / "segments.npz", lab.segments, lab.scores if scores else {})


Prepare = Any

WRONG: dict[str, tuple[Prepare, list[str], list[str]]] = {
    "no such data": (None, ["cpl", "--data", "lab/piont"], ["unknown data 'lab/piont'", "did you mean 'lab/point'"]),
    "no such teacher": (
        None,
        ["cpl", "--data", "lab/two-modes", "--set", "teacher=regret"],
        ["score = 'regret'", "valid: good, return"],
    ),
    "no segments": (
        lambda: minari_set("bare-v0", segments=False),
        ["cpl", "--data", "bare-v0"],
        ["bare-v0 has no segments", "valid: a file bare-v0/segments.npz, written by save_segments"],
    ),
    "no scores": (
        lambda: minari_set("bare-v0", scores=False),
        ["cpl", "--data", "bare-v0"],
        ["the segments of bare-v0 have no score", "valid: pairs = a file"],
    ),
    "a file has no segments": (
        lambda: changed("point.npz"),
        ["cpl", "--data", "point.npz"],
        ["point.npz has no segments", "valid: a lab with teachers or a Minari dataset"],
    ),
    "a text": (
        lambda: Path("text.npz").write_text("hello"),
        ["bc", "--data", "text.npz"],
        ["not an npz file", "valid"],
    ),
    "another kind of file": (
        lambda: Path("a.csv").write_text("1,2"),
        ["bc", "--data", "a.csv"],
        ["suffix = '.csv'", "valid: .hdf5, .h5, .npz"],
    ),
    "unequal lengths": (
        lambda: ragged("ragged.npz"),
        ["bc", "--data", "ragged.npz"],
        ["ragged.npz: observations cannot be read", "all rows of equal length"],
    ),
    "not a number": (
        lambda: changed("nan.npz", observations=observations_with_nan()),
        ["bc", "--data", "nan.npz"],
        ["nan.npz: observations[7, 2] = nan", "valid: finite numbers"],
    ),
    "a broken dataset": (
        lambda: (Path("broken/data").mkdir(parents=True), Path("broken/data/metadata.json").write_text("{")),
        ["bc", "--data", "broken"],
        ["broken is no Minari dataset", "valid: a directory with data/metadata.json"],
    ),
    "labels beyond 1": (
        lambda: labels("labels.npz", label=np.array([0.0, 2.0, 1.0])),
        ["cpl", "--set", "pairs=labels.npz"],
        ["pair 1: label = 2.0", "valid: 0 to 1"],
    ),
    "pairs beyond the episode": (
        lambda: labels("labels.npz", start_2=np.array([0, 35, 0])),
        ["cpl", "--set", "pairs=labels.npz"],
        ["steps 35 to 44 of episode", "which has 40 steps"],
    ),
    "pairs of other data": (
        lambda: labels("labels.npz"),
        ["cpl", "--data", "lab/two-modes", "--set", "pairs=labels.npz"],
        ["labels.npz: made for data of 12000 steps; these have 9000"],
    ),
    "no such pairs": (
        None,
        ["cpl", "--set", "pairs=labels.npz"],
        ["pairs = 'labels.npz': there is no such file", "valid: one of save_pairs"],
    ),
    "other spaces": (
        None,
        ["bc", "--env", "Pendulum-v1"],
        ["observation_space of lab/point is Box", "(4,)", "valid: Box", "(3,)", "that of Pendulum-v1"],
    ),
    "an environment of the data that is not there": (
        lambda: minari_set("away-v0", env="Nowhere-v3"),
        ["cpl", "--data", "away-v0"],
        ["away-v0 is from an environment that cannot be made here", "Nowhere", "valid: env", "evaluation = false"],
    ),
    "an environment that is not there": (None, ["bc", "--env", "Pendulun-v1"], ["env = 'Pendulun-v1'", "Pendulum"]),
    "a method that needs more": (
        None,
        ["dpo_control", "--set", "method=kto"],
        ["method = 'kto'", "valid: baseline = zero"],
    ),
    "actions that a method cannot use": (
        None,
        ["dpo_control", "--set", "method=orpo"],
        ["method = 'orpo'", "valid: discrete actions"],
    ),
    "data of another kind": (
        None,
        ["oppo", "--data", "lab/gridworld"],
        ["observation_space of lab/gridworld is Discrete(25)", "a Box"],
    ),
    "words for numbers": (None, ["dpo_control", "--set", "settings.beta=high"], ["settings.beta = 'high'", "a number"]),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_request_says_why_and_leaves_nothing_behind(run: Any, wrong: str) -> None:
    prepare, arguments, words = WRONG[wrong]
    if prepare is not None:
        prepare()
    status, out, err = run("train", *arguments)
    assert (status, out) == (2, ""), err
    for each in words:
        assert each in err
    assert "Traceback" not in err
    assert len(err.strip().splitlines()) == 1
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("pairs=[1]", "pairs = [1] is no argument of recipe cpl; valid: int or str or none"),
        ('hidden=["wide"]', "hidden = ['wide'] is no argument of recipe cpl; valid: list"),
        ("teachr=regret", "unknown argument of recipe cpl 'teachr'; did you mean 'teacher'?"),
    ],
)
def test_arguments_of_another_kind(run: Any, assignment: str, message: str) -> None:
    status, out, err = run("train", "cpl", "--set", assignment)
    assert (status, out) == (2, "")
    assert message in err
    assert "Traceback" not in err


def test_a_package_that_is_not_installed(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    minari_set("bare-v0", segments=False)
    monkeypatch.setitem(sys.modules, "minari", None)
    status, out, err = run("train", "bc", "--data", "bare-v0")
    assert (status, out) == (2, "")
    assert "pip install 'decisionrl[offline]'" in err
    assert len(err.splitlines()) == 1


def test_data_that_is_gone_when_the_policy_is_measured(run: Any) -> None:
    changed("point.npz")
    assert run("train", "bc", "--data", "point.npz", "--steps", "3", "--set", "hidden=[8]", "--out", "mine")[0] == 0
    Path("point.npz").unlink()
    for arguments in (("evaluate", "mine"), ("train", "bc", "--resume", "mine")):
        status, _, err = run(*arguments)
        assert status == 2
        assert "unknown data 'point.npz'" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["clone", "--env", "plate-slide"], "unknown maker 'clone'; did you mean 'clones'?"),
        (["clones", "--env", "plate-slid"], "unknown env 'plate-slid'; did you mean 'plate-slide'?"),
        (["clones", "--env", "plate-slide", "--steps", "9"], "maker clones takes no --steps"),
        (["clones", "--env", "plate-slide", "--set", "episodes=0"], "episodes = 0; valid: a whole number >= 1"),
        (
            ["clones", "--env", "plate-slide", "--set", "segment_length=250"],
            "segment_length = 250; valid: less than 250",
        ),
        (["clones", "--env", "plate-slide", "--out", "sets"], "sets/plate-slide-clones-seed0 is there already; valid"),
        (["sac", "--env", "CartPole-v1"], "env = 'CartPole-v1' has actions in Discrete(2); valid for SAC: a Box"),
        (["sac", "--env", "no_module:Env"], "no_module cannot be imported"),
    ],
)
def test_data_that_cannot_be_made(run: Any, arguments: list[str], message: str) -> None:
    Path("sets/plate-slide-clones-seed0").mkdir(parents=True)
    status, out, err = run("make-dataset", *arguments)
    assert (status, out) == (2, ""), err
    assert message in err
    assert "Traceback" not in err
    assert not Path("data").exists()
