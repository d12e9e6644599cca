"""How well the previous action predicts the present one, in demonstrations and in what a policy plays."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from decisionrl.experience.episodes import Played
from decisionrl.experience.store import EpisodeStore
from decisionrl.policies.action_normalizer import LinearNormalizer
from decisionrl.policies.mlp import mlp
from decisionrl.seeding import generator

# The judge of the released code of arXiv 2505.09561.
HELD_OUT = 0.1
HIDDEN = 64
LEARNING_RATE = 1e-3
BATCH = 256
EPOCHS = 20
PATIENCE = 5

UPDATES_PER_EPOCH = 500
"""At least; an epoch of fewer than ``BATCH`` times as many pairs goes through them several times."""

HSIC_PAIRS = 1000
"""At most; the statistic's memory grows with their square."""


@dataclass(frozen=True, kw_only=True)
class Predictability:
    """What the previous action says of the present one (arXiv 2505.09561).

    Attributes:
        expert_error, policy_error: :func:`action_error` of the demonstrations and of the policy's episodes.
        expert_hsic, policy_hsic: :func:`hsic` of previous and present actions, 0 for independent ones.
    """

    expert_error: float
    policy_error: float
    expert_hsic: float
    policy_hsic: float

    @property
    def ratio(self) -> float:
        """``expert_error / policy_error``: 1 for actions as predictable as the expert's, above 1 for a policy that
        copies its last action, below 1 for one that makes too little of it; infinite without an error."""
        return self.expert_error / self.policy_error if self.policy_error else math.inf


def action_predictability(
    expert: EpisodeStore,
    played: EpisodeStore | Played,
    *,
    dimensions: Sequence[int] | None = None,
    seed: int = 0,
) -> Predictability:
    """How predictable the actions of a policy's episodes are from those before them, compared with the expert's.

    Both are in the units in which the expert's actions fill [-1, 1], and both have a judge of the same seed, so that
    demonstrations compared with themselves have a ratio of exactly 1. What a judge learns depends on how many pairs it
    sees, so have about as many episodes of the policy as of the expert. Only a tenth of them is measured: the ratio of
    two sets of equally made demonstrations of ten steps each has a standard deviation of about 0.1 with 100 episodes in
    each set, 0.05 with 400.

    Args:
        expert: the demonstrations.
        played: the policy's episodes, such as ``play`` returns them.
        dimensions, seed: see :func:`action_error`.

    Raises:
        ValueError: the actions of the two differ in size, or see :func:`action_error`.
    """
    (demonstrated, expert_length), (acted, played_length) = _actions(expert), _actions(played)
    if demonstrated.shape[1] != acted.shape[1]:
        raise ValueError(
            f"played: actions have {acted.shape[1]} dimensions; valid: {demonstrated.shape[1]}, as the expert's have"
        )
    normalizer = LinearNormalizer((demonstrated.shape[1],)).to(demonstrated)
    normalizer.fit(demonstrated)
    of_expert = _pairs("expert", normalizer(demonstrated), expert_length, dimensions)
    of_policy = _pairs("played", normalizer(acted.to(demonstrated)), played_length, dimensions)
    return Predictability(
        expert_error=_judged(of_expert, seed),
        policy_error=_judged(of_policy, seed),
        expert_hsic=_sampled_hsic(of_expert, seed),
        policy_hsic=_sampled_hsic(of_policy, seed),
    )


def action_error(
    actions: Float[Tensor, "steps Da"],
    length: Int[Tensor, " episodes"],
    *,
    normalizer: LinearNormalizer,
    dimensions: Sequence[int] | None = None,
    seed: int = 0,
) -> float:
    """``mean (judge(a_{t-1}) - a_t)^2`` over dimensions and the steps of held-out episodes, in normalized units.

    The judge is a perceptron of 64 hidden rectified units, trained by Adam on the other episodes: 20 epochs in batches
    of 256, a learning rate of 1e-3 that halves when the training error has stopped falling for more than 5 epochs.
    Held out are the first tenth of the episodes, at least one (arXiv 2505.09561, released code). Two departures: the
    released code takes one pair of each of its windows of 32 steps, this takes all consecutive pairs of an episode,
    however short; and an epoch has at least 500 updates, without which a few thousand pairs leave the judge far from
    the best prediction.

    It runs on the CPU and in float32 whatever the actions are; nothing is faster for so small a network.

    Args:
        actions: of all episodes under each other.
        length: steps of every episode.
        normalizer: fitted to the demonstrations, whoever has acted.
        dimensions: of the action, such as those of a position; by default all.
        seed: of the judge's weights and batches.

    Raises:
        ValueError: dimensions that the actions do not have, actions that are not finite, lengths that are not theirs,
            or no pair of actions among the held-out episodes or the others.
    """
    return _judged(_pairs("actions", normalizer(actions), length, dimensions), seed)


def hsic(x: Float[Tensor, "n x"], y: Float[Tensor, "n y"]) -> float:
    """``trace(K H L H) / (n - 1)^2``, the Hilbert-Schmidt independence criterion (Gretton et al. 2005).

    H = I - 1/n centers the kernel matrices ``K_ij = exp(-||x_i - x_j||^2 / (2 sigma^2))`` and L, of y; sigma is the
    median of the distances that are not zero. Independent x and y have about 0, up to a bias of order 1/n, and so has a
    constant. The released code of arXiv 2505.09561 gives it the same actions twice, which measures how spread out they
    are; between previous and present actions it is the dependence in time.

    Raises:
        ValueError: x and y differ in length, or have fewer than two rows.
    """
    if len(x) != len(y) or len(x) < 2:
        raise ValueError(f"x has {len(x)} rows, y has {len(y)}; valid: equally many, at least two")
    return float((_centered(_kernel(x)) * _kernel(y)).sum() / (len(x) - 1) ** 2)


@dataclass(frozen=True, kw_only=True)
class _Pairs:
    """Consecutive actions, normalized; ``held_out`` are those of the first episodes."""

    previous: Float[Tensor, "pairs Da"]
    present: Float[Tensor, "pairs Da"]
    held_out: Tensor


def _actions(episodes: EpisodeStore | Played) -> tuple[Float[Tensor, "steps Da"], Int[Tensor, " episodes"]]:
    if isinstance(episodes, EpisodeStore):
        return episodes.action.reshape(episodes.num_steps, -1), episodes.length
    actions = episodes.action[episodes.mask]
    return actions.reshape(len(actions), -1), episodes.mask.sum(1)


def _pairs(name: str, normalized: Tensor, length: Tensor, dimensions: Sequence[int] | None) -> _Pairs:
    steps, size = normalized.shape
    if int(length.sum()) != steps:
        raise ValueError(f"length: {int(length.sum())} steps in all; valid: {steps}, the rows of {name}")
    if not normalized.isfinite().all():
        raise ValueError(f"{name}: actions are not finite; valid: finite numbers")
    if dimensions is not None:
        if not dimensions or not all(0 <= each < size for each in dimensions):
            raise ValueError(f"dimensions = {dimensions}; valid: some of 0 to {size - 1}, or None")
        normalized = normalized[:, list(dimensions)]
    normalized, length = normalized.detach().cpu().float(), length.cpu()
    episode = torch.arange(len(length)).repeat_interleave(length)
    within = episode[1:] == episode[:-1]
    held_out = episode[1:][within] < max(1, int(HELD_OUT * len(length)))
    if not held_out.any() or held_out.all():
        raise ValueError(
            f"{name}: {int(held_out.sum())} pairs of consecutive actions among the first tenth of {len(length)} "
            f"episodes, {int((~held_out).sum())} among the others; valid: at least one each"
        )
    return _Pairs(previous=normalized[:-1][within], present=normalized[1:][within], held_out=held_out)


def _judged(pairs: _Pairs, seed: int) -> float:
    """The held-out error of a judge that is trained on the other pairs."""
    previous, present = pairs.previous[~pairs.held_out], pairs.present[~pairs.held_out]
    rng = generator(seed, "judge")
    judge = _judge(previous.shape[1], rng)
    optimizer = torch.optim.Adam(judge.parameters(), lr=LEARNING_RATE, fused=True)
    schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=PATIENCE)
    count = len(previous)
    passes = math.ceil(UPDATES_PER_EPOCH * BATCH / count)
    with torch.enable_grad():
        for _ in range(EPOCHS):
            losses = []
            order = torch.cat([torch.randperm(count, generator=rng) for _ in range(passes)])
            batches = (torch.split(actions[order], BATCH) for actions in (previous, present))
            for before, now in zip(*batches, strict=True):
                loss = nn.functional.mse_loss(judge(before), now)
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                losses.append(loss.detach())
            schedule.step(float(torch.stack(losses).mean()))
    with torch.no_grad():
        return float(nn.functional.mse_loss(judge(pairs.previous[pairs.held_out]), pairs.present[pairs.held_out]))


def _judge(size: int, rng: torch.Generator) -> nn.Module:
    """Untrained, with torch's usual weights, but drawn from the generator."""
    with torch.random.fork_rng(devices=[]):
        judge = mlp(size, [HIDDEN], size, activation=nn.ReLU).float()
    for layer in judge:
        if isinstance(layer, nn.Linear):
            bound = layer.in_features**-0.5
            for parameter in layer.parameters():
                nn.init.uniform_(parameter, -bound, bound, generator=rng)
    return judge


def _sampled_hsic(pairs: _Pairs, seed: int) -> float:
    rows = torch.randperm(len(pairs.previous), generator=generator(seed, "hsic"))[:HSIC_PAIRS]
    return hsic(pairs.previous[rows], pairs.present[rows])


def _kernel(values: Float[Tensor, "n size"]) -> Float[Tensor, "n n"]:
    distance = torch.cdist(values, values, compute_mode="donot_use_mm_for_euclid_dist")
    apart = distance[distance > 0]
    width = apart.median() if len(apart) else 1.0
    return torch.exp(-(distance**2) / (2 * width**2))


def _centered(kernel: Float[Tensor, "n n"]) -> Float[Tensor, "n n"]:
    return kernel - kernel.mean(0) - kernel.mean(1, keepdim=True) + kernel.mean()
