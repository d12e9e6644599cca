"""What must hold of every method on responses of a language model, whatever the numbers: limits, identities, padding.

Responses are sampled from a small transformer in float64, in groups, with prompts and responses of unequal length; the
environment speaks in some of them.
"""

import copy
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from test_language_values import (
    LINES,
    WIDTH,
    Told,
    at_ratios,
    by_row,
    flat,
    gradient,
    leftward,
    objective,
    own,
    save_model,
    terms,
    text,
    told,
)
from torch import Tensor, nn
from torch.func import functional_call

from decisionrl.experience.trajectories import Trajectories
from decisionrl.objectives.aggregation import seq_mean_token_sum, token_mean
from decisionrl.objectives.heterogeneous import HeterogeneousClip
from decisionrl.objectives.policy_gradient import PolicyGradient
from decisionrl.objectives.regularizers import KLPenalty
from decisionrl.objectives.surrogates import Clip, Reinforce
from decisionrl.objectives.terms import Terms
from decisionrl.pipeline.group_advantages import GroupNormalized
from decisionrl.pipeline.returns import outcomes, whitened, with_advantage
from decisionrl.pipeline.segments import SegmentMonteCarlo
from decisionrl.pipeline.trackers import SingleStream
from decisionrl.policies.language import LanguagePolicy
from decisionrl.policies.language_models import tiny_model
from decisionrl.recipes import ON_ENVIRONMENTS, recipe

pytest.importorskip("transformers")
pytest.importorskip("peft")

GROUPS = {"groups": 2, "group_size": 3}
OWN: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("grpo", "rloo", "gspo", "sapo", "bapo", "capo", "d3s", "hapo", "gtpo", "ares"), GROUPS),
    "dapo": {**GROUPS, "max_rounds": 1},
    **{name: {**GROUPS, "num_starts": 4} for name in ("vade", "dcpo")},
    "xrpo": {"groups": 2, "budget": 7, "base_size": 2, "num_starts": 4},
    "spo": {"episodes": 4, "num_starts": 4},
    **{name: {"episodes": 4} for name in ("reinforce", "remax")},
    "riskpo": {"episodes": 4, "bundle": 1},
    "segment_spo": {"episodes": 4, "interval": 3, "rollouts": 2},
    "ppo": {"num_envs": 4},
    "tppo": {"num_envs": 4, "horizon": 3},
}
CRITIC = ["sapo", "bapo", "dcpo", "capo", "hapo"]
CASES = [(name, {}) for name in ON_ENVIRONMENTS] + [(name, {"base": "critic"}) for name in CRITIC]
NAMES = [" ".join([name, *given.values()]) for name, given in CASES]


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that thinks nothing very unlikely, for float32 has seven digits of a log-probability."""
    return save_model(tmp_path_factory.mktemp("calm"), scale=3.0)


def made(name: str, folder: Path, **given: Any) -> Any:
    return text(name, folder, **{**OWN[name], **given})


@pytest.fixture(scope="module")
def raw(folder: Path) -> Trajectories:
    """12 responses to 3 prompts, with all that any recipe reads; random rewards, so that none are equal."""
    worth = torch.rand(12, generator=rng(), dtype=torch.float64)
    source = text("grpo", folder, task=Told(worth=worth.tolist()), groups=3, group_size=4).source
    source.pipeline = ()
    batch = source.sample()
    reward = torch.zeros_like(batch.log_prob).masked_scatter(batch.terminated, worth)
    assert not batch.mask.all(1).all()
    assert len(set(batch.mask.sum(1).tolist())) > 3
    assert (~batch.mask & (batch.observation >= 0)).any(), "the environment spoke"
    shape = batch.mask.shape
    numbers = partial(torch.randn, generator=rng(1), dtype=torch.float64)
    extras = {
        "greedy_return": numbers(12)[batch.group],
        "cut": batch.mask & (torch.rand(shape, generator=rng(2)) < 0.4),
        "state_value": numbers(shape),
        "kept": batch.mask & (torch.rand(shape, generator=rng(3)) < 0.7),
        "valued": batch.mask & (torch.rand(shape, generator=rng(4)) < 0.7),
    }
    return batch.replace(
        reward=reward, value=numbers(shape), next_value=numbers(shape), returns=numbers(shape), extras=extras
    )


def moved(experiment: Any, by: float) -> None:
    """Change all weights at random."""
    generator = rng(5)
    with torch.no_grad():
        for parameter in experiment.policy.trainable_parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype), alpha=by)


def first_gradient(experiment: Any, batch: Trajectories, *, by: float = 0.1, loss: Any = None) -> Tensor:
    """Of the first update on these responses, after the policy has moved."""
    for step in copy.deepcopy(experiment.source.pipeline):
        batch = step(batch)
    weights = copy.deepcopy(experiment.policy.state_dict())
    moved(experiment, by)
    found = gradient(experiment, loss or objective(experiment), batch)
    experiment.policy.load_state_dict(weights)
    return found


def close(one: Tensor, other: Tensor, tolerance: float = 1e-6) -> bool:
    """Equal, but for the rounding of norms of Llama's kind, which are float32's."""
    largest = float(other.abs().max())
    assert largest > 1e-6
    return torch.allclose(one, other, rtol=0, atol=tolerance * largest)


def spaced(batch: Trajectories) -> Trajectories:
    """An empty column before each, and two behind them."""
    columns = torch.arange(batch.num_columns) * 2 + 1
    shape, wide = batch.mask.shape, 2 * batch.num_columns + 2

    def apart(each: Tensor) -> Tensor:
        if each.shape != shape:
            return each
        return each.new_zeros(len(each), wide).index_copy(1, columns, each)

    observation = torch.full((len(batch.mask), wide), -1).index_copy(1, columns, batch.observation)  # type: ignore[arg-type]
    return batch.replace(state=None).map(apart).replace(state=batch.state, observation=observation)


@pytest.mark.parametrize(("name", "given"), CASES, ids=NAMES)
def test_neither_padding_nor_order_matters(
    name: str, given: Mapping[str, Any], folder: Path, raw: Trajectories
) -> None:
    """After the policy has moved away from the one that wrote the responses, so that clips are active."""
    experiment = made(name, folder, **given)
    expected = first_gradient(experiment, raw)
    assert close(first_gradient(experiment, leftward(raw)), expected)
    assert close(first_gradient(experiment, spaced(raw)), expected)
    order = torch.randperm(12, generator=rng(6))
    assert close(first_gradient(experiment, raw.rows(order)), expected)


ALREADY = ("reinforce", "rloo", "remax", "gtpo")


@pytest.mark.parametrize("name", [name for name in ON_ENVIRONMENTS if name not in ALREADY])
def test_every_surrogate_begins_as_reinforce(name: str, folder: Path, raw: Trajectories) -> None:
    """With the same advantages, masks and mean; HAPO without its redistribution, which looks at entropies at once."""
    experiment = made(name, folder, **({"beta": 0.0} if name == "hapo" else {}))
    plain = replace(objective(experiment), surrogate=Reinforce())
    expected = first_gradient(experiment, raw, by=0.0, loss=plain)
    assert close(first_gradient(experiment, raw, by=0.0), expected)
    assert not close(first_gradient(experiment, raw), first_gradient(experiment, raw, loss=plain))


RATIOS = [
    *((name, {}) for name in ON_ENVIRONMENTS),
    ("segment_spo", {"form": "tree", "branching": [2, 2], "segment": 2}),
]


@pytest.mark.parametrize(("name", "given"), RATIOS, ids=[" ".join([name, *map(str, given)]) for name, given in RATIOS])
def test_ratios_are_1_at_the_first_update(name: str, given: Mapping[str, Any], calm: Path) -> None:
    """In float32, of adapters, with checkpointing, padded on either side, from the second batch on.

    Within 1e-6 for the batch; other sizes of matrices round otherwise, so within 1e-5 for minibatches.
    """
    experiment: Any = recipe(name)(
        env=Told(worth=[0.0, 1.0] * 100),
        model=str(calm),
        lora_rank=2,
        gradient_checkpointing=True,
        **{**OWN[name], **given},
    )
    policy = experiment.policy
    with torch.no_grad():
        for label, parameter in policy.named_parameters():
            if "lora_B" in label:
                parameter.normal_(std=0.05, generator=rng(2))
    experiment.source.sample()
    batch = experiment.source.sample()
    assert batch.log_prob.dtype == torch.float32
    for rows, tolerance in ((slice(None), 1e-6), (slice(0, None, 2), 1e-5), (slice(1, None, 2), 1e-5)):
        for part in (batch.rows(rows), leftward(batch.rows(rows))):
            now = policy.evaluate(part).log_prob
            assert now.requires_grad
            trained = part.extras["kept"] if name == "tppo" else part.mask
            assert ((now - part.log_prob)[trained].exp() - 1).abs().max() <= tolerance


SAME = {"low_start": 0.8, "low_end": 0.8, "high_start": 1.2, "high_end": 1.2}
ALL = {f"{part}_{end}": 1.0 for part in ("group_rows", "rows", "steps") for end in ("first", "last")}
INFINITE = {"delta_fisher": math.inf, "delta_hessian": math.inf}
TOKENS = {"aggregate": "token-mean"}


@pytest.mark.parametrize(
    ("name", "limit", "apart", "otherwise"),
    [
        ("bapo", SAME, {}, {}),
        ("capo", INFINITE, {"delta_fisher": 1e-6, "learning_rate": 0.01}, {}),
        ("d3s", ALL, {}, {}),
        ("vade", {}, None, {}),
        ("xrpo", {"kappa": 0.0, "success": 0.4}, {"success": 0.4}, {}),
        ("xrpo", {"novelty": 0.0, "success": 0.4}, None, {}),
        ("xrpo", {"kappa": 0.0, "success": 0.4, "shown_in_loss": False}, {"success": 0.4}, {}),
        ("dapo", {"clip_high": 0.2}, {"clip_high": 3.0}, TOKENS),
        ("ares", {"success": 0.0, "dual_clip": None}, None, {**TOKENS, "clip_high": 0.3}),
    ],
)
def test_limit_is_grpo(
    name: str,
    limit: Mapping[str, Any],
    apart: Mapping[str, Any] | None,
    otherwise: Mapping[str, Any],
    folder: Path,
    raw: Trajectories,
) -> None:
    expected = first_gradient(made("grpo", folder, **otherwise), raw)
    assert close(first_gradient(made(name, folder, **limit), raw), expected)
    if apart is not None:
        assert not close(first_gradient(made(name, folder, **apart), raw), expected)


def test_limits_on_policy(folder: Path, raw: Trajectories) -> None:
    """Where no ratio has left 1, and groups have four responses."""

    def of(name: str, **given: Any) -> Tensor:
        return first_gradient(made(name, folder, **given), raw, by=0.0)

    assert close(of("rloo"), 4 / 3 * of("grpo", scale="none", aggregate="seq-mean-token-sum"))
    assert close(of("gspo"), of("grpo"))
    assert close(of("sapo", tau_positive=3.0, tau_negative=0.2), of("grpo"))
    assert close(of("dcpo"), 12 * of("grpo"), 1e-5), "the sum over responses, at the first visit, without epsilon"
    reward = outcomes(raw.reward, raw.mask)
    experiment = made("spo", folder, initial_value=0.0)
    experiment.source.pipeline = (
        lambda batch: with_advantage(batch, whitened(reward, torch.ones(12, dtype=torch.bool))[:, None]),
    )
    plain = PolicyGradient(surrogate=Reinforce(), aggregate=token_mean)
    assert close(of("spo", initial_value=0.0), first_gradient(experiment, raw, by=0.0, loss=plain))
    experiment.source.pipeline = (lambda batch: with_advantage(batch, reward[:, None]),)
    plain = PolicyGradient(surrogate=Reinforce(), aggregate=seq_mean_token_sum)
    greedy = {**raw.extras, "greedy_return": torch.zeros(12).double()}
    without = first_gradient(made("remax", folder), raw.replace(extras=greedy), by=0.0)
    assert close(without, first_gradient(experiment, raw, by=0.0, loss=plain))


def test_hapo_without_its_parts_is_grpo(folder: Path) -> None:
    """alpha = beta = 0 and equal lengths; its advantages are sqrt(G / (G - 1)) times as large, but for epsilon."""
    given = {"groups": 1, "group_size": 3}
    hapo = text("hapo", folder, alpha=0.0, beta=0.0, **given)
    batch = told(hapo, ["bcd.", "mde.", "dde."], [1.0, 0.0, 0.25])
    assert batch.mask.sum(1).tolist() == [4] * 3
    grpo = text("grpo", folder, clip_high=0.28, aggregate="token-mean", **given)
    expected = math.sqrt(3 / 2) * first_gradient(grpo, batch)
    assert close(first_gradient(hapo, batch), expected, 1e-5)
    assert not close(first_gradient(text("hapo", folder, **given), batch), expected, 1e-2)


def test_hapo_of_equal_entropies_is_a_plain_clip(folder: Path) -> None:
    table = torch.randn(1, WIDTH, generator=rng(), dtype=torch.float64).expand(WIDTH, WIDTH)
    experiment = text("hapo", folder, table=table, groups=2, group_size=4)
    batch = told(experiment, LINES, [1.0, 0.0, 0.25, 1.0, 0.5, 0.125, 0.0, 0.0])
    batch = at_ratios(experiment, batch, torch.linspace(0.5, 2, int(batch.mask.sum())).tolist())
    plain = replace(objective(experiment), surrogate=Clip(low=0.2, high=0.28, dual=10.0))
    assert not any(flat(own(objective(experiment).surrogate.signal(terms(experiment, batch)), batch)))
    assert close(gradient(experiment, objective(experiment), batch), gradient(experiment, plain, batch))


def test_hapo_stays_within_its_ranges(folder: Path, raw: Trajectories) -> None:
    experiment = made("hapo", folder)
    batch = GroupNormalized()(raw)
    moved(experiment, 0.1)
    seen, surrogate = terms(experiment, batch), objective(experiment).surrogate
    assert isinstance(surrogate, HeterogeneousClip)
    signal = torch.tensor(flat(own(surrogate.signal(seen), batch)), dtype=torch.float64)
    assert (signal.min(), signal.max()) == (-1, 1)
    assert float((signal > 0).double().mean()) == pytest.approx(0.2, abs=1 / len(signal))
    full = surrogate.signal(seen)
    low, high = surrogate._bounds(full)
    advantage = surrogate._redistributed(seen, full, low, high)
    neutral = changes = 0
    for i, t in batch.mask.nonzero().tolist():
        h, r = full[i, t].item(), seen.ratio[i, t].item()
        bounds = 1 - 0.2 * (1 - min(h, 0)), 1 + 0.28 * (1 + max(h, 0))
        assert (low[i, t].item(), high[i, t].item()) == pytest.approx(bounds)
        inside = (1 + bounds[0]) / 2 < r < (1 + bounds[1]) / 2
        factor = 1 + h if (h > 0 and not inside) or (h <= 0 and inside) else 1.0
        assert advantage[i, t].item() == pytest.approx(factor * seen.advantage[i, t].item())
        neutral, changes = neutral + inside, changes + (factor != 1)
    assert 0 < neutral < len(signal)
    assert changes


def test_xrpo_sharpens_unlikely_successes(folder: Path, raw: Trajectories) -> None:
    experiment = made("xrpo", folder, success=0.4)
    plain = GroupNormalized()(raw)
    batch = raw
    for step in experiment.source.pipeline[:2]:
        batch = step(batch)
    before, after = by_row(plain.advantage, plain), by_row(batch.advantage, batch)
    likelihood = [sum(row) / len(row) for row in own(raw.log_prob, raw)]
    reward, group = outcomes(raw.reward, raw.mask).tolist(), raw.group.tolist()  # type: ignore[union-attr]
    sharpened = 0
    for i in range(12):
        peers = [likelihood[j] for j in range(12) if group[j] == group[i]]
        eta = math.exp(likelihood[i] - sum(peers) / len(peers))
        bonus = min(max(2.5 * (1 - eta), 0), 0.5 * before[i]) if reward[i] >= 0.4 and before[i] > 0 else 0
        assert after[i] == pytest.approx(before[i] + bonus)
        sharpened += bonus > 0
    assert 0 < sharpened < sum(each >= 0.4 for each in reward)


def test_tppo_with_wide_windows_is_ppo(folder: Path) -> None:
    """All responses end in the window: generalized advantages, whitened, and returns to learn values from."""
    lines, worth = ["bcd.", "b.", "ceeee.", "."], [1.0, 0.0, 0.25, 0.5]
    advantages = []
    for name, given in (("tppo", {"horizon": 10}), ("ppo", {})):
        experiment = text(name, folder, task=Told(prompts=("cba",)), num_envs=4, gamma=0.9, gae_lambda=0.8, **given)
        nn.init.normal_(experiment.policy.critic.weight, generator=rng(5))
        batch = told(experiment, lines, worth) if name == "ppo" else windows(experiment, lines, worth)
        advantages.append(torch.tensor(flat(own(batch.advantage, batch))))
    torch.testing.assert_close(advantages[0], whitened(advantages[1], torch.ones(13, dtype=torch.bool)))


def windows(experiment: Any, lines: Sequence[str], worth: Sequence[float]) -> Trajectories:
    """The windows alone, with advantages of the recipe's own pipeline."""
    pipeline, experiment.source.pipeline = experiment.source.pipeline, ()
    batch = told(experiment, lines, worth)
    batch = batch.rows(batch.extras["kept"].any(1))
    for step in pipeline:
        batch = step(batch)
    return batch


def test_segments_of_a_response_telescope(folder: Path) -> None:
    """Cuts at every third of the unlikely tokens; fresh responses go on from there, after what the environment said."""
    task = Told(worth=torch.rand(200, generator=rng()).tolist())
    experiment = text("segment_spo", folder, task=task, episodes=4, interval=3, rollouts=2, threshold=1.5)
    experiment.source.pipeline = (SegmentMonteCarlo(threshold=1.5, whiten=False),)
    batch = experiment.source.sample()
    outcome, value = outcomes(batch.reward, batch.mask), batch.extras["state_value"]
    several = 0
    for i in range(4):
        cuts = batch.extras["cut"][i].nonzero()[:, 0].tolist()
        assert cuts == batch.mask[i].nonzero()[::3, 0].tolist()
        assert float(batch.advantage[i, cuts].sum()) == pytest.approx(float(outcome[i] - value[i, 0]), abs=1e-6)
        several += len(cuts) > 1
    assert several
    experiment.source._values = replace(experiment.source._values, interval=100)
    batch = experiment.source.sample()
    expected = outcomes(batch.reward, batch.mask) - batch.extras["state_value"][:, 0]
    assert by_row(batch.advantage, batch) == pytest.approx(expected.tolist(), abs=1e-6)


def test_trees_of_tokens(folder: Path) -> None:
    """Advantages of siblings sum to 0; of depth 1 they are the rewards less their mean."""
    task = Told(worth=torch.rand(200, generator=rng()).tolist())
    given = {"form": "tree", "episodes": 2, "task": task}
    experiment = text("segment_spo", folder, branching=[2, 3], segment=2, **given)
    trained, experiment.source.pipeline = experiment.source.pipeline, experiment.source.pipeline[:1]
    batch = experiment.source.sample()
    advantage, parent = by_row(batch.advantage, batch), batch.extras["parent"].tolist()
    siblings = {
        key: [a for a, p, g in zip(advantage, parent, batch.group.tolist(), strict=True) if (p, g) == key]
        for key in set(zip(parent, batch.group.tolist(), strict=True))
    }
    assert len(siblings) > 2
    for each in siblings.values():
        assert sum(each) == pytest.approx(0, abs=1e-6)
        assert any(each)
    whole = trained[1](batch.replace(advantage=batch.advantage * (batch.group == 0)[:, None]))
    kept = whole.extras["kept"]
    assert kept.any()
    assert not kept[batch.group != 0].any(), "what is worth as much as its siblings teaches nothing"
    assert float(whole.advantage[kept].mean()) == pytest.approx(0, abs=1e-6)
    assert float(whole.advantage[kept].std()) == pytest.approx(1, abs=1e-5)
    experiment = text("segment_spo", folder, branching=[4], **given)
    experiment.source.pipeline = experiment.source.pipeline[:1]
    flat_tree = experiment.source.sample()
    expected = GroupNormalized(scale="none")(flat_tree).advantage
    torch.testing.assert_close(flat_tree.advantage, expected)


def test_spo_s_trackers_in_the_limit(folder: Path) -> None:
    """rho = 1 and no prior: the mean of all rewards; rho = 0: the last one. Advantages have mean 0 and deviation 1."""
    experiment = text("spo", folder, num_starts=4, episodes=4)
    mean, last = SingleStream(rho_min=1.0, rho_max=1.0, prior=0.0), SingleStream(rho_min=0.0, rho_max=0.0, prior=0.0)
    seen: dict[int, list[float]] = {}
    for worth in ([1.0, 0, 0.5, 1], [0.25, 0, 1, 0], [0.0, 1, 1, 0.75]):
        batch = told(experiment, ["bcd.", "b.", "mfg.", "."], worth)
        advantage = torch.tensor(by_row(batch.advantage, batch))
        assert float(advantage.mean()) == pytest.approx(0, abs=1e-6)
        assert float(advantage.std()) == pytest.approx(1, abs=1e-6)
        for start, reward in zip(batch.start_id.tolist(), worth, strict=True):  # type: ignore[union-attr]
            seen.setdefault(start, []).append(reward)
        for tracker in (mean, last):
            tracker(batch)
    ids = torch.arange(4)
    assert mean.value(ids).tolist() == pytest.approx([sum(seen[i]) / 3 for i in range(4)])
    assert last.value(ids).tolist() == pytest.approx([seen[i][-1] for i in range(4)])


def test_gtpo_without_conflicts_and_entropy_is_dr_grpo(folder: Path) -> None:
    """No two responses share a first or a last token; they end by their length."""
    given = {"groups": 1, "group_size": 4, "max_steps": 3}
    gtpo = text("gtpo", folder, entropy_weight=0.0, entropy_threshold=math.inf, **given)
    batch = told(gtpo, ["bcd", "d.", "mf", "ace"], [1.0, 0.0, 0.25, 0.5])
    assert batch.mask.sum(1).tolist() == [3, 2, 2, 3]
    assert (batch.extras["weight"] == 1).all()
    expected = first_gradient(text("grpo", folder, scale="none", **given), batch, by=0.0)
    assert close(first_gradient(gtpo, batch, by=0.0), expected)
    conflicting = told(gtpo, ["bcd", "b.", "mf", "ace"], [1.0, 0.0, 0.25, 0.5])
    assert not (conflicting.extras["weight"] == 1).all()


@pytest.mark.parametrize("size", [1, 4])
def test_shared_prompts_give_grpo_s_loss(size: int, folder: Path, raw: Trajectories) -> None:
    """In float64 value and gradient are those of repeated prompts; GPT-2's norms do not round to float32.

    One response a prompt, or four; probabilities and advantages are those of the batch.
    """
    model: Any = tiny_model(WIDTH, width=16, heads=2, context=32, family="gpt2", generator=rng(), dtype=torch.float64)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(10)
    loss = objective(made("grpo", folder, entropy_coefficient=0.1))
    batch = leftward(GroupNormalized()(raw))
    batch = batch.rows(torch.tensor([0, 5, 10])) if size == 1 else batch
    values, gradients = [], []
    for shared in (False, True):
        policy = LanguagePolicy(copy.deepcopy(model), share_prompts=shared)
        total = loss(policy, batch).value
        values.append(total.detach())
        parts = torch.autograd.grad(total, policy.trainable_parameters())
        gradients.append(torch.cat([each.flatten() for each in parts]))
    assert gradients[0].abs().max() > 1e-2
    torch.testing.assert_close(*values, rtol=0, atol=1e-10)
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-10)


def test_rewards_may_all_be_shifted(folder: Path) -> None:
    worth = [1.0, 0.0, 0.25, 1.0, 0.5, 0.125, 0.0, 0.0]
    grouped = {"groups": 2, "group_size": 4}
    for name, given in (
        *((name, grouped) for name in ("grpo", "rloo", "hapo", "dapo", "gtpo", "d3s")),
        ("dcpo", {**grouped, "num_starts": 2}),
        ("xrpo", {"groups": 2, "base_size": 4, "budget": 8, "num_starts": 2, "success": -1.0}),
        ("riskpo", {"episodes": 8, "bundle": 1}),
    ):
        first, second = (
            told(text(name, folder, **given), LINES, [each + shift for each in worth]) for shift in (0.0, 3.0)
        )
        torch.testing.assert_close(first.advantage, second.advantage)
        assert first.advantage.abs().max() > 0.1  # type: ignore[union-attr]


def test_expectations_of_kl_estimates(folder: Path) -> None:
    """Over all tokens after a prompt: k1 and k3 estimate KL, and k2's gradient estimates KL's."""
    experiment = text("grpo", folder, groups=1, group_size=WIDTH, kl_coefficient=1.0)
    batch = told(experiment, ["b"] * WIDTH)
    batch = batch.replace(action=torch.arange(WIDTH)[:, None])
    with torch.no_grad():
        reference = experiment.policy.evaluate(batch).log_prob
        for parameter in experiment.policy.parameters():
            parameter.mul_(0.9)
    now = experiment.policy.evaluate(batch).log_prob
    kl = (now.exp() * (now - reference)).sum()
    assert kl > 1e-3
    batch = batch.replace(extras={"reference_log_prob": reference})
    whole = Terms(experiment.policy.evaluate(batch), batch, batch.reward, batch.mask)
    for estimator in ("k1", "k3"):
        found = KLPenalty(coefficient=1.0, estimator=estimator)(whole)
        torch.testing.assert_close((now.exp() * found).sum(), kl)
    weights = experiment.policy.trainable_parameters()
    straight = (now.detach().exp() * KLPenalty(coefficient=1.0, straight_through=True)(whole)).sum()
    found, expected = (
        torch.cat([each.flatten() for each in torch.autograd.grad(total, weights)]) for total in (straight, kl)
    )
    assert close(found, expected)


@pytest.mark.parametrize("left", [False, True])
def test_capo_predicts_by_derivatives_in_the_last_layer(folder: Path, left: bool) -> None:
    """Of A pi / pi_old along the gradient, by derivatives of the transformer's own logits."""
    experiment = text("capo", folder, groups=1, group_size=2)
    batch = told(experiment, ["bm.", "d."], [1.0, 0.0], left=left)
    (harmless,) = objective(experiment).filters
    seen, unit = terms(experiment, batch), replace(harmless, learning_rate=1.0)
    hessian, fisher = unit.predictions(seen)
    _, expected_fisher = replace(unit, expected_fisher=True).predictions(seen)
    model, weight = experiment.policy.model, experiment.policy.head.weight.detach()

    def log_softmax(tokens: Tensor, weight: Tensor) -> Tensor:
        asked = {"input_ids": tokens[None]}
        return functional_call(model, {"lm_head.weight": weight}, kwargs=asked).logits[0, -1].log_softmax(0)  # type: ignore[no-any-return]

    for row, t in batch.mask.nonzero().tolist():
        held = torch.cat([batch.state[row], batch.action[row, :t].where(batch.observation[row, :t] >= 0, -1)])  # type: ignore[index]
        before, token, advantage = held[held >= 0], batch.action[row, t], batch.advantage[row, t]  # type: ignore[index]
        at = weight.clone().requires_grad_()
        (slope,) = torch.autograd.grad(advantage * log_softmax(before, at)[token], at)
        step = torch.zeros((), dtype=torch.float64, requires_grad=True)
        along = log_softmax(before, weight + step * slope)
        gain = advantage * (along[token] - along[token].detach()).exp()
        (first,) = torch.autograd.grad(gain, step, create_graph=True)
        (second,) = torch.autograd.grad(first, step, retain_graph=True)
        assert hessian[row, t].item() == pytest.approx((first + second / 2).item(), rel=1e-6)
        rates = torch.stack([torch.autograd.grad(each, step, retain_graph=True)[0] for each in along])
        assert fisher[row, t].item() == pytest.approx(rates[token].square().item() / 2, rel=1e-6)
        mean = (along.detach().exp() * rates.square()).sum()
        assert expected_fisher[row, t].item() == pytest.approx(mean.item() / 2, rel=1e-6)


def test_capo_s_bounds(folder: Path, raw: Trajectories) -> None:
    """m_F grows with the squares of rate and A, m_H with the rate and the square of A; without either all is kept."""
    experiment = made("capo", folder)
    (harmless,) = objective(experiment).filters
    batch = GroupNormalized()(raw)
    seen, doubled = terms(experiment, batch), terms(experiment, with_advantage(batch, 2 * batch.advantage))  # type: ignore[operator]
    small = replace(harmless, learning_rate=1e-6)
    hessian, fisher = (each[batch.mask] for each in small.predictions(seen))
    assert (fisher >= 0).all()
    assert (hessian > 0).all()
    faster, larger = replace(small, learning_rate=2e-6).predictions(seen), small.predictions(doubled)
    for (changed_hessian, changed_fisher), factor in ((faster, 2), (larger, 4)):
        torch.testing.assert_close(changed_fisher[batch.mask], 4 * fisher)
        torch.testing.assert_close(changed_hessian[batch.mask], factor * hessian, rtol=1e-3, atol=0)
    kept = [
        int((replace(harmless, learning_rate=0.01, delta_fisher=bound)(seen) & batch.mask).sum())
        for bound in (1e-12, 1e-4, 1e-2, math.inf)
    ]
    assert kept == sorted(kept)
    assert kept[0] < kept[-1]
    strict = {"delta_fisher": 1e-300, "delta_hessian": 1e-300}
    assert replace(harmless, learning_rate=0.0, **strict)(seen)[batch.mask].all()
    nothing = terms(experiment, with_advantage(batch, torch.zeros(12, 1).double()))
    assert replace(harmless, learning_rate=1.0, **strict)(nothing)[batch.mask].all()


@pytest.mark.parametrize("left", [False, True])
def test_d3s_chooses_what_varies_most(folder: Path, left: bool) -> None:
    """Against all subsets; then the tokens with the largest |A| H, the environment's never."""
    worth = [3.0, 0.2, 1.1, 1.0, 0.5, 0.5, 0.5, 0.5]
    entropy = [[0.1 * (row + 1) * (t + 1) for t in range(n)] for row, n in enumerate([4, 2, 4, 7, 2, 2, 4, 3])]
    given = {"groups": 2, "group_size": 4, "log_probs": "sampled"}
    everything = told(text("grpo", folder, scale="none", **given), LINES, worth, entropy=entropy)
    advantage = by_row(everything.advantage, everything)
    experiment = text("d3s", folder, group_rows_first=0.5, rows_first=0.25, steps_first=0.5, **given)
    experiment.source.pipeline = (GroupNormalized(scale="none"), *experiment.source.pipeline[1:])
    chosen = told(experiment, LINES, worth, entropy=entropy, left=left)

    def spread(rows: Sequence[float]) -> float:
        return float(torch.tensor(rows).var(unbiased=False))

    best = max(itertools.combinations(advantage[:4], 2), key=spread)
    assert sorted(by_row(chosen.advantage, chosen)) == pytest.approx(sorted(best))
    assert spread(best) > spread(advantage)
    score = [
        abs(a) * h
        for a, rows in zip(by_row(chosen.advantage, chosen), own(chosen.entropy, chosen), strict=True)
        for h in rows
    ]
    bound = sorted(score)[-round(0.5 * len(score))]
    assert own(chosen.extras["kept"], chosen) == split([each >= bound for each in score], chosen)
    assert not (chosen.extras["kept"] & ~chosen.mask).any()


def split(values: Sequence[Any], batch: Trajectories) -> list[list[Any]]:
    """As ``own`` gives them."""
    waiting = iter(values)
    return [[next(waiting) for _ in range(number)] for number in batch.mask.sum(1).tolist()]
