"""The recipes on linear MDPs: what they reach, how they resume, and what they refuse."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from decisionrl.callbacks import Checkpoint
from decisionrl.cli import cli
from decisionrl.envs.linear_mdp import five_state
from decisionrl.experiment import Experiment
from decisionrl.names import UnknownNameError
from decisionrl.recipes import metadata, recipe
from decisionrl.recipes.linear_mdp import INSTANCES
from decisionrl.robust.ambiguity import RadiusError
from decisionrl.robust.dynamic_programming import evaluate, optimal
from decisionrl.robust.reference import ReferencePolicyError
from decisionrl.trainer import Trainer

ONLINE = ["dr_rpo", "dr_lsvi_ucb", "lsvi_ucb"]
OFFLINE = ["pevi", "drpvi", "va_drpvi", "r2pvi"]
NAMES = ONLINE + OFFLINE

VARIANTS: list[tuple[str, dict[str, Any]]] = [
    *[(name, {}) for name in NAMES],
    ("dr_rpo", {"eta": None, "alpha": 1.0}),
    ("dr_rpo", {"alpha": 1.0, "order": "evaluate_old", "transitions": "regularized", "divergence": "chi2"}),
    ("dr_rpo", {"transitions": "regularized", "divergence": "kl", "weight": 2.0, "rare_switching": True}),
    ("dr_lsvi_ucb", {"rare_switching": True, "divergence": "kl", "ties": "first"}),
    *[(name, {"divergence": d}) for name in ("drpvi", "va_drpvi", "r2pvi") for d in ("kl", "chi2")],
]
variants = pytest.mark.parametrize(
    ("name", "arguments"), VARIANTS, ids=[" ".join([n, *map(str, a.values())]) for n, a in VARIANTS]
)


def trained(name: str, steps: int, **arguments: Any) -> Experiment:
    experiment = recipe(name)(steps=steps, **arguments)
    Trainer(experiment).fit(steps)
    return experiment


def measured(experiment: Experiment) -> dict[str, Any]:
    assert experiment.evaluate is not None
    return experiment.evaluate(experiment.policy)


@variants
def test_the_config_says_it_all(name: str, arguments: dict[str, Any]) -> None:
    experiment = recipe(name)(steps=6, runs=2, seed=3, **arguments)
    config = json.loads(json.dumps(experiment.config))
    assert config.pop("recipe") == name
    again = recipe(name)(**config)
    assert json.loads(json.dumps(again.config)) == json.loads(json.dumps(experiment.config))
    for each in (experiment, again):
        Trainer(each).fit(6)
    assert torch.equal(again.policy.probabilities(), experiment.policy.probabilities())  # type: ignore[operator]


@variants
def test_a_resumed_run_is_bit_identical(name: str, arguments: dict[str, Any], tmp_path: Path) -> None:
    options = {"steps": 12, "runs": 2, **arguments, **({"part": 3} if name in OFFLINE else {})}
    whole = Trainer(recipe(name)(**options))
    whole.fit(12)
    for resume, steps in ((False, 6), (True, 12)):
        trainer = Trainer(recipe(name)(**options), callbacks=[Checkpoint(every=3)], out=tmp_path, resume=resume)
        trainer.fit(steps)
    assert trainer.step == whole.step == 12
    for key, value in whole.policy.state_dict().items():
        assert torch.equal(trainer.policy.state_dict()[key], value)
    assert all(torch.equal(trainer.metrics[key], value) for key, value in whole.metrics.items())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("instance", INSTANCES)
def test_every_recipe_on_every_instance(name: str, instance: str) -> None:
    options = {"frozen-lake": {"horizon": 6}, "american-put": {"horizon": 4}}.get(instance, {})
    found = measured(trained(name, 4, instance=instance, instance_options=options, runs=2))
    assert found["low"] <= found["mean_return"] <= found["high"]
    assert found["regret"] >= -1e-9
    assert found["robust_value"] <= found["nominal_value"] + 1e-12
    assert found["optimum"] - found["mean_return"] == pytest.approx(found["regret"])


@pytest.mark.parametrize("name", NAMES)
def test_metadata(name: str) -> None:
    about = metadata(name)
    assert about.keys() == {"title", "arxiv", "changes", "limit", "kinds"}
    assert all(about.values())
    assert recipe(name)(steps=1).metadata == about
    assert about["kinds"] == "linear MDPs"


# ------------------------------------------------------------------------------------------------ what they reach


def test_the_robust_method_finds_the_robust_policy_and_the_nominal_one_does_not() -> None:
    robust = trained("dr_lsvi_ucb", 300, runs=10)
    nominal = trained("lsvi_ucb", 300, runs=10)
    assert measured(robust)["regret"] < 0.02
    assert measured(robust)["reference"] == pytest.approx(1.43832, abs=1e-5)
    assert 1.43832 - measured(nominal)["robust_value"] > 0.2
    perturbation = torch.linspace(0, 1, 21, dtype=torch.float64)
    targets = five_state(xi_norm=0.3, perturbation=perturbation)
    curves = [
        evaluate(targets, each.policy.probabilities().unsqueeze(1)).start.mean(0)  # type: ignore[operator]
        for each in (robust, nominal)
    ]
    better = curves[0] > curves[1]
    assert better[perturbation > 0.3].all()
    assert not better[perturbation < 0.25].any()


def test_policy_optimization_nears_its_own_optimum() -> None:
    for arguments in ({"eta": 20.0}, {"eta": 20.0, "alpha": 1.0}, {"eta": None, "alpha": 1.0}):
        experiment = trained("dr_rpo", 400, runs=5, **arguments)
        assert measured(experiment)["regularized_regret"] < 0.03


def test_eta_trades_nominal_for_worst_case_values() -> None:
    found = [measured(trained("dr_rpo", 300, runs=5, eta=eta)) for eta in (20.0, 100.0)]
    assert found[0]["nominal_value"] > found[1]["nominal_value"]
    assert found[0]["mean_return"] < found[1]["mean_return"]


def test_infinite_eta_and_alpha_are_the_greedy_method() -> None:
    first = trained("dr_rpo", 30, eta=None, alpha=None)
    second = trained("dr_lsvi_ucb", 30)
    assert torch.equal(first.policy.probabilities(), second.policy.probabilities())  # type: ignore[operator]


def test_radius_zero_is_lsvi_ucb() -> None:
    first = trained("dr_lsvi_ucb", 30, radius=0.0, instance="one-hot", bonus="full")
    second = trained("lsvi_ucb", 30, instance="one-hot", known_rewards=True)
    torch.testing.assert_close(first.policy.probabilities(), second.policy.probabilities())  # type: ignore[operator]


def test_offline_methods_near_their_optimum_with_data() -> None:
    for name, bound in (("pevi", 0.02), ("drpvi", 0.1), ("va_drpvi", 0.1), ("r2pvi", 0.05)):
        small, large = (measured(trained(name, n, instance="one-hot", runs=5))["regret"] for n in (30, 3000))
        assert large < bound
        assert large < small


def test_unit_variances_make_the_variance_aware_method_the_plain_one() -> None:
    """On the five states no next value has a variance above 1."""
    aware = trained("va_drpvi", 50, weighted_ridge=0.3)
    plain = trained("drpvi", 50, ridge=0.3)
    assert torch.equal(aware.policy.probabilities(), plain.policy.probabilities())  # type: ignore[operator]


def test_the_put_option_is_never_worth_more_than_its_lattice_allows() -> None:
    for name in NAMES:
        found = trained(name, 50, instance="american-put", runs=4)
        world = found.evaluate.mdp  # type: ignore[union-attr]
        own = evaluate(world, found.policy.probabilities()).start  # type: ignore[operator]
        assert own.shape == (4,)
        assert (own <= optimal(world).start + 1e-9).all()


def test_parts_end_with_the_policy_of_the_whole_dataset() -> None:
    for name in OFFLINE:
        parts, whole = trained(name, 20, part=5), trained(name, 20)
        assert torch.equal(parts.policy.probabilities(), whole.policy.probabilities())  # type: ignore[operator]


# ------------------------------------------------------------------------------------------------------ requests


@pytest.mark.parametrize(
    ("name", "arguments", "kind", "message"),
    [
        ("dr_lsvi_ucb", {"instance": "five-sate"}, UnknownNameError, "did you mean 'five-state'"),
        ("dr_lsvi_ucb", {"instance_options": {"xi": 1}}, ValueError, "instance_options of 'five-state': .*'xi'"),
        ("dr_lsvi_ucb", {"instance_options": {"xi_norm": 0.5}}, ValueError, "xi_norm = 0.5"),
        ("dr_lsvi_ucb", {"radius": 1.5}, RadiusError, r"radius\[0, 3\] = 1.5; valid: in \[0, 1\]"),
        ("dr_rpo", {"reference": [0.0] + [1 / 15] * 15}, ReferencePolicyError, "valid: positive probabilities"),
        ("dr_rpo", {"reference": [0.5, 0.5]}, ValueError, "valid: a probability for each of the 16 actions"),
        ("dr_rpo", {"eta": -1.0}, ValueError, "eta = -1.0"),
        ("dr_rpo", {"alpha": 0.0}, ValueError, "alpha = 0.0"),
        ("dr_rpo", {"transitions": "free"}, ValueError, "transitions = 'free'; valid: constrained, regularized"),
        ("dr_rpo", {"transitions": "regularized", "weight": 0.0}, RadiusError, "weight = 0"),
        ("lsvi_ucb", {"runs": 0}, ValueError, "runs = 0"),
        ("pevi", {"steps": 0}, ValueError, "steps = 0"),
        ("r2pvi", {"divergence": "l2"}, ValueError, "divergence = 'l2'"),
    ],
)
def test_refusals(name: str, arguments: dict[str, Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        recipe(name)(**arguments)


def test_an_option_that_nobody_exercises_has_no_gap(tmp_path: Path) -> None:
    """Above the strike and against the worst prices it is worth nothing."""
    words = ["train", "dr_lsvi_ucb", "--set", "instance=american-put", "--set", "radius=1.0", "--steps", "5"]
    options = ["--set", 'instance_options={"start_price": 101, "horizon": 4}', "--out", str(tmp_path / "run")]
    result = CliRunner().invoke(cli, [*words, *options])
    assert result.exit_code == 0, result.output
    found = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert found["optimum"] == found["mean_return"] == 0
    assert "gap" not in found


def test_the_command_line(tmp_path: Path) -> None:
    out = tmp_path / "run"
    words = ["train", "dr_rpo", "--set", "instance=five-state", "--set", "runs=2", "--steps", "30", "--out", str(out)]
    result = CliRunner().invoke(cli, words)
    assert result.exit_code == 0, result.output
    assert "mean return" in result.output
    assert json.loads((out / "evaluation.json").read_text())["reference_kind"] == "exact"
    again = CliRunner().invoke(cli, ["evaluate", str(out), "--json"])
    assert again.exit_code == 0, again.output
    assert json.loads(again.output) == json.loads((out / "evaluation.json").read_text())
