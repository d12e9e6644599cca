"""The command line on learning histories: train, cut and go on, measure, and what cannot be asked for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from decisionrl.cli import _default_directory
from decisionrl.experience.data import HISTORIES
from decisionrl.learner import GradientLearner

ROOM: dict[str, Any] = {"env_options": {"size": 4, "horizon": 4}, "streams": 4, "steps": 32, "noise": 0.25}

OPTIONS = ("context_episodes=2", "batch=4", "warmup=2", "evaluation_episodes=5")
SMALL = ["--data", "lab/tiny-cli", *(word for option in OPTIONS for word in ("--set", option))]


@pytest.fixture(autouse=True)
def _lab(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(HISTORIES, "lab/tiny-cli", ROOM)  # type: ignore[misc]


@pytest.mark.parametrize("name", ["ad", "dpt", "dicp"])
def test_a_run_is_measured_in_unseen_tasks(run: Any, name: str) -> None:
    lhf = ["--set", "filter=lhf", "--set", "stability_weight=0.5", "--set", "alpha=0.25"]
    status, out, err = run("train", name, *SMALL, *lhf, "--steps", "4", "--seed", "3")
    assert status == 0, err
    directory = Path(f"runs/{name}-tiny-cli-seed3")
    told = json.loads((directory / "evaluation.json").read_text())
    assert f"mean return {told['mean_return']:.5g}  95 % interval" in out
    assert "(5 episodes)" in out
    assert f"exact reference {told['reference']:.5g}  gap {100 * told['gap']:.3f} %" in out
    config = json.loads((directory / "config.json").read_text())
    wanted = {"sizes": "cpu", "steps": 4, "filter": "lhf", "alpha": 0.25, "every": 2, "family": None, "seed": 3}
    assert {key: config[key] for key in wanted} == wanted

    status, again, err = run("evaluate", str(directory), "--json")
    assert status == 0, err
    assert json.loads(again) == told
    assert run("evaluate", str(directory), "--episodes", "2")[1].startswith("mean return")


def test_histories_that_are_made_here_are_learned_from(run: Any) -> None:
    made = [word for key, value in ROOM.items() if key != "steps" for word in ("--set", f"{key}={json.dumps(value)}")]
    status, out, err = run("make-dataset", "histories", "--env", "darkroom", "--steps", "32", *made)
    assert status == 0, err
    directory = out.split()[0]
    arguments = ["--steps", "4", "--set", "evaluation_episodes=2", "--set", "batch=2"]
    status, out, err = run("train", "ad", "--data", directory, *arguments)
    assert status == 0, err
    assert "mean return" in out


@pytest.mark.parametrize("killed_at", [2, 9])
def test_a_run_goes_on_where_it_was(run: Any, monkeypatch: pytest.MonkeyPatch, killed_at: int) -> None:
    arguments = [*SMALL, "--steps", "12", "--checkpoint-every", "1", "--set", "filter=lhf"]
    assert run("train", "ad", *arguments, "--out", "whole")[0] == 0
    update, updates = GradientLearner.update, 0

    def killed(self: GradientLearner, batch: Any) -> Any:
        nonlocal updates
        updates += 1
        if updates == killed_at:
            raise ConnectionAbortedError
        return update(self, batch)

    monkeypatch.setattr(GradientLearner, "update", killed)
    with pytest.raises(ConnectionAbortedError):
        run("train", "ad", *arguments, "--out", "cut")
    assert run("train", "ad", "--resume", "cut")[0] == 0
    for name in ("final.safetensors", "evaluation.json"):
        assert Path("cut", name).read_bytes() == Path("whole", name).read_bytes()


def test_of_one_unseen_task_there_is_no_interval(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(HISTORIES, "lab/tiny-nine", {**ROOM, "env_options": {"size": 3, "horizon": 4}})  # type: ignore[misc]
    status, out, err = run("train", "ad", *SMALL, "--data", "lab/tiny-nine", "--steps", "2")
    assert status == 0, err
    told = json.loads(Path("runs/ad-tiny-nine-seed0/evaluation.json").read_text())
    assert (told["tasks"], told["contexts"], told["low"]) == (1, 64, None)
    assert f"mean return {told['mean_return']:.5g}  (5 episodes; of one task there is no interval)" in out


def test_catalogues_have_them(run: Any) -> None:
    recipes, data, suites = (run("list", kind)[1] for kind in ("recipes", "datasets", "suites"))
    for title in ("Algorithm distillation (arXiv 2210.14215)", "Decision-pretrained transformer (arXiv 2306.14892)"):
        assert title in recipes
    assert "dicp " in recipes
    assert "lab/darkroom-permuted" in data
    (line,) = (line for line in data.splitlines() if "lab/darkroom-noise" in line)
    assert line.split(maxsplit=1)[1] == "Learning histories of ppo in darkroom, 30 % of them at random."
    assert "make-dataset histories" in data
    assert "icrl" in suites


WRONG: dict[str, tuple[list[str], list[str]]] = {
    "no such lab": (["ad", "--data", "lab/darkrom"], ["did you mean 'lab/darkroom'"]),
    "a lab of episodes": (["ad", "--data", "lab/point"], ["unknown data 'lab/point'", "lab/darkroom-noise"]),
    "no directory": (["ad", "--data", "nowhere"], ["nowhere has no manifest.json", "a directory of learning"]),
    "a window that is too long": (
        ["ad", *SMALL, "--set", "every=9"],
        ["episodes = 2, every = 9: a window spans 10 episodes", "valid: at most 8"],
    ),
    "no such filter": (["ad", *SMALL, "--set", "filter=best"], ["filter = 'best'", "valid: none, lhf"]),
    "no such sizes": (["ad", *SMALL, "--set", "sizes=small"], ["sizes = 'small'", "valid: paper, light, cpu"]),
    "no such positions": (["ad", *SMALL, "--set", "positions=first"], ["positions = 'first'", "valid: all, last"]),
    "no such target": (["dicp", *SMALL, "--set", "target=best"], ["target = 'best'", "valid: action, label"]),
    "a model of all histories where some are left out": (
        ["dicp", *SMALL, "--set", "filter=lhf", "--set", "filter_model=false"],
        ["filter_mode = 'resample'", "valid: filter = 'lhf', filter_mode = 'weight'"],
    ),
    "a weight below 0": (["dicp", *SMALL, "--set", "model_weight=-1"], ["model_weight = -1", "at least 0"]),
    "no such family": (["ad", *SMALL, "--set", "family=maze"], ["family = 'maze'", "valid: darkroom, "]),
    "another family": (["ad", *SMALL, "--set", "family=darkroom"], ["valid for darkroom: tasks below 81", "of 20"]),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_request_says_why_and_leaves_nothing_behind(run: Any, wrong: str) -> None:
    arguments, words = WRONG[wrong]
    status, out, err = run("train", *arguments)
    assert (status, out) == (2, ""), err
    for each in words:
        assert each in err
    assert "Traceback" not in err
    assert len(err.strip().splitlines()) == 1
    assert not Path("runs").exists()


def test_arguments_of_another_kind(run: Any) -> None:
    for arguments, message in (
        (["--set", "family=3"], "family = 3 is no argument of recipe ad; valid: TaskFamily or str or none"),
        (["--set", "alpha=all"], "alpha = 'all' is no argument of recipe ad; valid: float or none"),
        (["--set", "beams=3"], "unknown argument of recipe ad 'beams'"),
        (["--set", "stability=1"], "did you mean 'stability_weight'?"),
        (["--env", "darkroom"], "recipe ad takes no --env"),
    ):
        status, out, err = run("train", "ad", *SMALL, *arguments)
        assert (status, out) == (2, "")
        assert message in err


def test_runs_are_named_after_the_whole_directory_of_their_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("darkroom-ppo-noise0.3-train-seed0").mkdir()
    named = [
        _default_directory({"recipe": "ad", "data": data}) for data in ("darkroom-ppo-noise0.3-train-seed0", "a.npz")
    ]
    assert named == [Path("runs/ad-darkroom-ppo-noise0.3-train-seed0-seed0"), Path("runs/ad-a-seed0")]
