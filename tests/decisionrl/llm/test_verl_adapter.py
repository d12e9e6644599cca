"""The adapter for verl, against stand-ins with the signatures of its registries."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from decisionrl.experience.trajectories import Trajectories
from decisionrl.llm.methods import METHODS, method
from decisionrl.objectives.aggregation import AGGREGATIONS, aggregation
from decisionrl.objectives.terms import Terms
from decisionrl.policies.evaluation import Evaluation
from decisionrl.recipes import metadata, recipe

MODULE = "decisionrl.llm.verl"
ROOT = Path(__file__).parents[3]


@dataclass
class Registries:
    """What verl's core_algos keeps, and the adapter."""

    advantages: dict[str, Any] = field(default_factory=dict)
    losses: dict[str, Any] = field(default_factory=dict)
    adapter: Any = None


@dataclass
class Actor:
    """What is read of verl's configuration of the actor."""

    global_batch_info: dict[str, Any] = field(default_factory=dict)


def agg_loss(
    loss_mat: Tensor,
    loss_mask: Tensor,
    loss_agg_mode: str,
    dp_size: int = 1,
    batch_num_tokens: int | None = None,
    global_batch_size: int | None = None,
    loss_scale_factor: int | None = None,
) -> Tensor:
    """Sums over the mask, divided by the numbers of the global batch."""
    kept = loss_mat * loss_mask
    length = loss_mask.sum(1)
    sequences = int((length > 0).sum()) if global_batch_size is None else global_batch_size
    if loss_agg_mode == "token-mean":
        tokens = int(loss_mask.sum()) if batch_num_tokens is None else batch_num_tokens
        return kept.sum() / tokens * dp_size
    if loss_agg_mode == "seq-mean-token-mean":
        return (kept.sum(1) / length.clamp(min=1)).sum() / sequences * dp_size
    if loss_agg_mode == "seq-mean-token-sum":
        return kept.sum() / sequences * dp_size
    assert loss_agg_mode == "seq-mean-token-sum-norm"
    return kept.sum() / sequences * dp_size / (loss_scale_factor or loss_mask.shape[1])


@pytest.fixture
def verl(monkeypatch: pytest.MonkeyPatch) -> Iterator[Registries]:
    registries = Registries()

    def register_adv_est(name: str) -> Any:
        def decorator(function: Any) -> Any:
            if name in registries.advantages and registries.advantages[name] != function:
                raise ValueError(f"Adv estimator {name} has already been registered")
            registries.advantages[name] = function
            return function

        return decorator

    def register_policy_loss(name: str) -> Any:
        def decorator(function: Any) -> Any:
            registries.losses[name] = function
            return function

        return decorator

    for name in ("verl", "verl.trainer", "verl.trainer.ppo", "verl.trainer.ppo.core_algos"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    vars(sys.modules["verl.trainer.ppo.core_algos"]).update(
        register_adv_est=register_adv_est, register_policy_loss=register_policy_loss, agg_loss=agg_loss
    )
    monkeypatch.delitem(sys.modules, MODULE, raising=False)
    registries.adapter = importlib.import_module(MODULE)
    yield registries
    sys.modules.pop(MODULE, None)


def scored(outcomes: list[float], lengths: list[int], columns: int = 4) -> tuple[Tensor, Tensor]:
    """Rewards at the last token, and the mask as the integers that verl has."""
    length = torch.tensor(lengths)[:, None]
    place = torch.arange(columns)
    return torch.where(place == length - 1, torch.tensor(outcomes)[:, None], 0.0), (place < length).long()


def rows(advantage: Tensor) -> list[float]:
    return advantage[:, 0].tolist()


def test_everything_that_verl_can_run_is_registered_at_import(verl: Registries) -> None:
    advantages = {"grpo", "rloo", "dapo", "gspo", "sapo", "bapo", "hapo", "riskpo"}
    losses = {"grpo", "rloo", "dapo", "gspo", "sapo", "bapo", "dcpo", "riskpo"}
    assert verl.advantages.keys() == {f"decisionrl_{each}" for each in advantages}
    assert verl.losses.keys() == {f"decisionrl_{each}" for each in losses}
    assert METHODS.keys() - advantages - losses == {"gtpo"}


def test_registering_again_changes_nothing(verl: Registries) -> None:
    before = dict(verl.advantages)
    verl.adapter.register()
    assert verl.advantages == before


def test_the_package_declares_the_plugin() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["verl.plugins"] == {"decisionrl": MODULE}


def test_without_verl_the_error_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "verl", None)
    monkeypatch.delitem(sys.modules, MODULE, raising=False)
    with pytest.raises(ImportError, match="verl is not installed"):
        importlib.import_module(MODULE)


def test_published_advantages(verl: Registries) -> None:
    prompts = np.array(["a", "b", "b", "a", "a", "b", "b", "a"], dtype=object)
    rewards, mask = scored([1, 1, 0, 0, 0, 0, 0, 1], [4, 2, 3, 1, 4, 4, 2, 3])
    found, returns = verl.advantages["decisionrl_grpo"](
        token_level_rewards=rewards, response_mask=mask, config=None, index=prompts
    )
    a, b = 0.866024, (1.499997, -0.5)
    expected = torch.tensor([a, b[0], b[1], -a, -a, b[1], b[1], a])
    torch.testing.assert_close(found, expected[:, None] * mask, rtol=0, atol=2e-6)
    assert torch.equal(found, returns)


def test_published_advantages_with_other_settings(verl: Registries) -> None:
    rewards, mask = scored([1, 0, 0, 1], [4, 4, 4, 4])
    one = np.zeros(4, dtype=object)
    verl.adapter.register(dataclasses.replace(method("grpo", eps=1e-4), name="grpo_trl"))
    of_trl, _ = verl.advantages["decisionrl_grpo_trl"](rewards, mask, index=one)
    assert rows(of_trl) == pytest.approx([0.865875, -0.865875, -0.865875, 0.865875], abs=2e-6)
    hapo, _ = verl.advantages["decisionrl_hapo"](*scored([1, 0, 0, 0], [4, 4, 4, 4]), index=one)
    assert rows(hapo) == pytest.approx([1.732047, -0.577349, -0.577349, -0.577349], abs=2e-6)
    hapo, _ = verl.advantages["decisionrl_hapo"](rewards, mask, index=one)
    assert rows(hapo) == pytest.approx([1, -1, -1, 1], abs=3e-6)
    rloo, _ = verl.advantages["decisionrl_rloo"](rewards, mask, index=one)
    assert rows(rloo) == pytest.approx([2 / 3, -2 / 3, -2 / 3, 2 / 3])


def test_a_reward_behind_the_own_tokens_counts(verl: Registries) -> None:
    rewards, mask = scored([1, 0, 0, 1], [4, 4, 4, 4])
    mask[:, 2:] = 0
    found, _ = verl.advantages["decisionrl_grpo"](rewards, mask, index=np.zeros(4))
    assert rows(found) == pytest.approx([0.866024, -0.866024, -0.866024, 0.866024], abs=2e-6)
    assert (found[:, 2:] == 0).all()


def test_a_group_without_a_difference_has_no_advantages(verl: Registries) -> None:
    rewards, mask = scored([1, 1, 1, 0], [4, 2, 3, 1])
    for name in ("grpo", "dapo"):
        found, _ = verl.advantages[f"decisionrl_{name}"](rewards, mask, index=np.array([0, 0, 1, 1]))
        assert rows(found) == pytest.approx([0, 0, 0.5**0.5, -(0.5**0.5)], abs=2e-6)


def test_errors_of_advantages(verl: Registries) -> None:
    rewards, mask = scored([1, 0], [4, 4])
    estimate = verl.advantages["decisionrl_grpo"]
    with pytest.raises(ValueError, match="index is None; valid for grpo"):
        estimate(rewards, mask)
    with pytest.raises(ValueError, match=r"each of the 2 prompts has one answer; valid for grpo.*rollout\.n of 2"):
        estimate(rewards, mask, index=np.array(["a", "b"]))
    with pytest.raises(ValueError, match="gtpo needs entropy, extras, tokens, which verl does not give"):
        verl.adapter.register(method("gtpo"))
    with pytest.raises(ValueError, match="already been registered"):
        verl.adapter.register(method("grpo", scale="none"))


def minibatch(seed: int = 0) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(seed)
    mask = scored([0] * 6, [1, 5, 3, 4, 2, 5], columns=5)[1].bool()
    old = torch.randn(6, 5, generator=random) - 2
    return {
        "old_log_prob": old,
        "log_prob": (old + 0.6 * torch.randn(6, 5, generator=random)).requires_grad_(),
        "advantages": torch.randn(6, 5, generator=random),
        "response_mask": mask,
    }


def vanilla(batch: dict[str, Tensor], low: float, high: float, dual: float) -> list[tuple[int, int, Tensor]]:
    """verl's loss "vanilla" in plain loops: PPO's clip with a dual clip, for every token of the mask."""
    losses = []
    for i, j in batch["response_mask"].nonzero().tolist():
        ratio = (batch["log_prob"][i, j] - batch["old_log_prob"][i, j]).exp()
        advantage = batch["advantages"][i, j]
        loss = torch.max(-ratio * advantage, -ratio.clamp(1 - low, 1 + high) * advantage)
        if advantage < 0:
            loss = torch.min(loss, -dual * advantage)
        losses.append((i, j, loss))
    return losses


@pytest.mark.parametrize("mode", ["token-mean", "seq-mean-token-mean", "seq-mean-token-sum"])
def test_the_dual_clip_of_verl(mode: str, verl: Registries) -> None:
    batch = minibatch()
    verl.adapter.register(dataclasses.replace(method("grpo", clip_low=0.1, clip_high=0.3, dual=1.5), name="dual"))
    loss, metrics = verl.losses["decisionrl_dual"](**batch, loss_agg_mode=mode, config=Actor())
    tokens = vanilla(batch, 0.1, 0.3, 1.5)
    length = batch["response_mask"].sum(1).tolist()
    divisor = {
        "token-mean": [sum(length)] * 6,
        "seq-mean-token-mean": [6 * each for each in length],
        "seq-mean-token-sum": [6] * 6,
    }[mode]
    expected = sum((each / divisor[i] for i, _, each in tokens), torch.tensor(0.0))
    torch.testing.assert_close(loss, expected)
    own, plain = (torch.autograd.grad(each, batch["log_prob"], retain_graph=True)[0] for each in (loss, expected))
    torch.testing.assert_close(own, plain)
    assert (own[~batch["response_mask"]] == 0).all()
    assert {"actor/policy_loss", "actor/clip_fraction", "actor/approx_kl"} <= metrics.keys()
    assert metrics["actor/policy_loss"] == pytest.approx(expected.item())


@pytest.mark.parametrize("name", ["grpo", "rloo", "dapo", "gspo", "sapo", "bapo", "dcpo", "riskpo"])
def test_a_loss_is_its_surrogate_aggregated_by_verl(name: str, verl: Registries) -> None:
    """With verl's mode the same as the library's the loss is the objective's own."""
    batch = minibatch()
    modes = {function: mode for mode, function in AGGREGATIONS.items()}
    mode = modes[method(name).objective.aggregate]
    answers = 6 if mode == "only-token-mean" else 1
    loss, _ = verl.losses[f"decisionrl_{name}"](
        **batch, loss_agg_mode="seq-mean-token-mean" if mode == "only-token-mean" else mode, config=Actor()
    )
    matrix = terms_of(name, batch)
    expected = aggregation(mode)(matrix, batch["response_mask"]) / answers
    torch.testing.assert_close(loss, expected)
    own, plain = (torch.autograd.grad(each, batch["log_prob"], retain_graph=True)[0] for each in (loss, expected))
    torch.testing.assert_close(own, plain)


def terms_of(name: str, batch: dict[str, Tensor]) -> Tensor:
    """The surrogate's loss of every token, asked directly."""
    mask = batch["response_mask"]
    own = Trajectories(
        observation=torch.zeros(6, 5),
        action=torch.zeros(6, 5),
        reward=torch.zeros(6, 5),
        mask=mask,
        log_prob=batch["old_log_prob"],
        terminated=~mask,
        truncated=~mask,
    )
    return method(name).objective.surrogate(Terms(Evaluation(batch["log_prob"]), own, batch["advantages"], mask))


def test_micro_batches_and_processes_add_up(verl: Registries) -> None:
    batch = minibatch()
    loss = verl.losses["decisionrl_sapo"]
    for mode in ("token-mean", "seq-mean-token-mean", "seq-mean-token-sum-norm"):
        whole, _ = loss(**batch, loss_agg_mode=mode, config=Actor({"loss_scale_factor": 7}))
        numbers = {
            "dp_size": 2,
            "batch_num_tokens": int(batch["response_mask"].sum()),
            "global_batch_size": 6,
            "loss_scale_factor": 7,
        }
        halves = [{key: each[part] for key, each in batch.items()} for part in (slice(0, 2), slice(2, 6))]
        parts = [loss(**half, loss_agg_mode=mode, config=Actor(numbers))[0] for half in halves]
        torch.testing.assert_close((parts[0] + parts[1]) / 2, whole)


def test_weights_of_the_rollout_correction(verl: Registries) -> None:
    batch, weight = minibatch(), torch.rand(6, 5, generator=torch.Generator().manual_seed(1))
    loss = verl.losses["decisionrl_rloo"]
    weighted, _ = loss(**batch, config=Actor(), rollout_is_weights=weight)
    plain, _ = loss(**{**batch, "advantages": batch["advantages"] * weight}, config=Actor())
    torch.testing.assert_close(weighted, plain)


@pytest.mark.parametrize("name", METHODS)
def test_methods_have_the_defaults_of_their_recipes(name: str) -> None:
    of_recipe = {key: each.default for key, each in inspect.signature(recipe(name)).parameters.items()}
    own = {key: each.default for key, each in inspect.signature(METHODS[name]).parameters.items()}
    shared = own.keys() & of_recipe.keys() - {"seed"}
    if name == "gspo":  # whose recipe has bounds for control
        shared -= {"clip_low", "clip_high"}
    if name == "riskpo":  # whose presets for text have it
        shared -= {"bundle"}
    assert {key: own[key] for key in shared} == {key: of_recipe[key] for key in shared}


@pytest.mark.parametrize("name", METHODS)
def test_the_page_has_every_method(name: str) -> None:
    page = (ROOT / "docs" / "llm_adapters.md").read_text()
    source, aggregate = metadata(name)["arxiv"], method(name).objective.aggregate
    (line,) = re.findall(
        rf"^\| `{name}` \(\[{source}\]\(https://arxiv.org/abs/{source}\)\) \|.*\|$", page, re.MULTILINE
    )
    (mode,) = (each for each, function in AGGREGATIONS.items() if function is aggregate)
    assert f"| `{mode}` |" in line
