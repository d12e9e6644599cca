"""The command line: what it lists, that a run can be made, measured and resumed, and how it refuses a request."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from decisionrl import cli

"""Exit status, stdout, stderr."""


SETTING = """
unmet_demand = "lost"
[[nodes]]
name = "hub"
holding_cost = 0.5
[[nodes]]
name = "shop"
holding_cost = {holding}
underage_cost = 9.0
[[edges]]
from = "supplier"
to = "hub"
lead_time = 1
[[edges]]
from = "hub"
to = "shop"
lead_time = {lead}
{more}
[demand]
kind = "poisson"
mean = 3.0
"""
CYCLE = '[[edges]]\nfrom = "shop"\nto = "hub"\nlead_time = 1\n'


# --- what there is -----------------------------------------------------------------------------------------------


def test_list_as_json(run: Any) -> None:
    status, out, _ = run("list", "--json")
    assert status == 0
    content = json.loads(out)
    assert list(content) == ["recipes", "envs", "policies", "suites", "datasets"]
    assert "arXiv 2306.11246" in content["recipes"]["hdpo"]
    assert content["envs"]["one_store_lost"]
    assert content["envs"]["text/sorting"] == "Sorting of digits."
    assert {"mlp", "gnn", "base_stock", "just_in_time"} <= content["policies"].keys()
    assert all(content["policies"].values())
    assert "inventory" in content["suites"]
    assert json.loads(run("list", "envs", "--json")[1]) == {"envs": content["envs"]}


def test_list_as_text(run: Any) -> None:
    status, out, _ = run("list")
    assert status == 0
    assert "  one_store_lost " in out


# --- a run -------------------------------------------------------------------------------------------------------


def test_train_evaluate_and_resume(run: Any, tmp_path: Path) -> None:
    """Stopped after the checkpoint of step 2 and resumed, a run has the weights it would have had."""
    sizes = ("--set", "policy=mlp", "--set", "batch=8", "--set", "periods=8")
    request = ("train", "hdpo", "--setting", "one_store_lost", *sizes, "--steps", "3", "--checkpoint-every", "2")
    status, out, _ = run(*request, "--out", "run")
    assert status == 0
    assert "run: run" in out
    assert "exact reference" in out
    config = json.loads((tmp_path / "run/config.json").read_text())
    assert (config["steps"], config["policy"], config["batch"]) == (3, "mlp", 8)

    status, out, _ = run("evaluate", "run", "--episodes", "16", "--json")
    assert status == 0
    result = json.loads(out)
    assert result["episodes"] == 16
    assert result["low"] < result["mean_cost"] < result["high"]
    assert result["reference_kind"] == "exact"
    assert result["gap"] == pytest.approx(result["mean_cost"] / result["reference"] - 1)

    shutil.copytree(tmp_path / "run", tmp_path / "killed")
    for made_later in ("final.safetensors", "evaluation.json", "checkpoints/step-000000000003.safetensors"):
        (tmp_path / "killed" / made_later).unlink()
    assert [path.stem for path in (tmp_path / "killed/checkpoints").iterdir()] == ["step-000000000002"]
    status, _, err = run("train", "hdpo", "--resume", "killed")
    assert status == 0, err
    final = [(tmp_path / name / "final.safetensors").read_bytes() for name in ("run", "killed")]
    assert final[0] == final[1]


def test_a_run_is_not_overwritten(run: Any, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.json").write_text("{}")
    status, _, err = run("train", "hdpo", "--steps", "3", "--out", "run")
    assert status == 2
    assert "run holds a run already" in err
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["config.json"]


# --- requests that cannot be carried out -------------------------------------------------------------------------

WRONG: dict[str, tuple[list[str], str]] = {
    "recipe": (["hdpoo"], "unknown recipe 'hdpoo'; did you mean 'hdpo'?"),
    "setting": (["hdpo", "--setting", "one_store_lst"], "'one_store_lst'; did you mean 'one_store_lost'?"),
    "policy": (["hdpo", "--set", "policy=mpl"], "unknown policy 'mpl'; did you mean 'mlp'?"),
    "key": (["hdpo", "--set", "polcy=mlp"], "'polcy'; did you mean 'policy'?"),
    "no value": (["hdpo", "--set", "policy"], "--set 'policy': valid is KEY=VALUE"),
    "choice": (["hdpo", "--set", "protocol=papr"], "protocol = 'papr'; valid: continuing, windows, finite, paper"),
    "kind of value": (["hdpo", "--set", "periods=abc"], "periods = 'abc' is no argument of recipe hdpo; valid: int or"),
    "count": (["hdpo", "--set", "batch=0"], "batch = 0; valid: a whole number >= 1"),
    "too short": (["hdpo", "--set", "periods=4"], "periods = 4; valid: more than 4, or no order would arrive"),
    "rate": (["hdpo", "--set", "learning_rate=-1"], "learning_rate = -1; valid: a positive number"),
    "field": (["hdpo", "--set", "store.lead=2"], "nodes[0].lead is an unknown key; valid: "),
    "option": (["hdpo", "--set", "policy_options.hiden=2"], "unexpected keyword argument 'hiden'"),
    "does not fit": (["hdpo", "--set", "policy=quantile_nv"], "'quantile_nv' does not fit setting 'one_store_lost'"),
    "option of others": (["hdpo", "--env", "CartPole-v1"], "recipe hdpo takes no --env"),
    "device": (["hdpo", "--device", "abacus"], "--device abacus: cannot be used here"),
    "no file": (["hdpo", "--setting", "none.toml"], "none.toml: no such setting file"),
    "cycle": (["hdpo", "--setting", "cycle.toml"], "the edges form a cycle among the nodes hub, shop"),
    "cost": (["hdpo", "--setting", "cost.toml"], "node 'shop': holding_cost = -1.0; valid is a finite number >= 0"),
    "lead time": (["hdpo", "--setting", "lead.toml"], "edges[1].lead_time = 0; valid is a whole number >= 1"),
    "data": (
        ["hdpo", "--setting", "one_store_real_data_lost_demand", "--data", "nan.npy"],
        "nan.npy: the series hold 1 missing, NaN or infinite values, the first at item 1, store 0, period 2",
    ),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_request_says_why_and_leaves_nothing_behind(run: Any, tmp_path: Path, wrong: str) -> None:
    (tmp_path / "cycle.toml").write_text(SETTING.format(holding=1.0, lead=1, more=CYCLE))
    (tmp_path / "cost.toml").write_text(SETTING.format(holding=-1.0, lead=1, more=""))
    (tmp_path / "lead.toml").write_text(SETTING.format(holding=1.0, lead=0, more=""))
    series = np.ones((4, 1, 200))
    series[1, 0, 2] = np.nan
    np.save(tmp_path / "nan.npy", series)
    before = sorted(tmp_path.iterdir())
    arguments, message = WRONG[wrong]
    status, out, err = run("train", *arguments, "--steps", "3", "--out", "run")
    assert (status, out) == (2, "")
    assert any(message in line for line in err.splitlines()), err
    assert "Traceback" not in err
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["bench", "inventry"], "unknown suite 'inventry'; did you mean 'inventory'?"),
        (["bench", "--only", "one_store_lst/*"], "no case matches 'one_store_lst/*'; did you mean 'one_store_lost"),
        (["bench", "--device", "abacus"], "--device abacus: cannot be used here"),
        (["list", "robots"], "'robots' is not one of 'recipes', 'envs', 'policies', 'suites', 'datasets'"),
        (["evaluate", "nowhere"], "nowhere holds no run"),
        (["report", "nowhere"], "nowhere"),
        (["train", "hdpo", "--resume", "nowhere"], "nowhere holds no run"),
        (["train", "hdpo", "--resume", "nowhere", "--set", "batch=8"], "not with --set"),
        (["train", "hdpo", "--steps", "0"], "'--steps': 0 is not in the range x>=1"),
    ],
)
def test_other_wrong_requests(run: Any, tmp_path: Path, arguments: list[str], message: str) -> None:
    status, out, err = run(*arguments)
    assert (status, out) == (2, "")
    assert any(message in line for line in err.splitlines()), err
    assert not list(tmp_path.iterdir())


def test_a_file_is_no_run_directory(run: Any, tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    status, _, err = run("train", "hdpo", "--steps", "3", "--out", "run")
    assert status == 2
    assert "'run' is a file" in err


def test_a_wrong_request_in_a_process_of_its_own(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "decisionrl.cli", "train", "hdpo", "--set", "policy=mpl", "--out", "run"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 2
    assert done.stderr.startswith("decisionrl: unknown policy 'mpl'; did you mean 'mlp'?")
    assert len(done.stderr.splitlines()) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("value", "hint", "fits"),
    [
        (3, int, True),
        (True, int, False),
        (3, float, True),
        (3.5, int, False),
        ("a", str | Path, True),
        (None, int | None, True),
        ("a", Literal["a", "b"], True),
        (1, Literal["a", "b"] | None, False),
        (True, bool, True),
        ({}, dict[str, int], True),
        ([3, 4], list[int], True),
        ([3, "a"], list[int], False),
    ],
)
def test_values_are_held_against_the_types_of_a_recipe(value: Any, hint: Any, fits: bool) -> None:
    assert cli._fits(value, hint) == fits


def test_a_run_that_diverges_says_where_in_one_line_and_fails(run: Any) -> None:
    status, _, said = run("train", "hdpo", "--steps", "30", "--set", "learning_rate=1e30", "--out", "here")
    assert status == 1
    last = said.strip().splitlines()[-1]
    assert "update 2: loss" in last
    assert "not finite" in last
    assert "Traceback" not in said
