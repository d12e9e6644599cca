"""What the recipes on linear MDPs share: the instances, exact evaluation, and how the parts become an Experiment."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property, partial
from typing import Any, TypedDict

import numpy as np
import torch
from torch import Tensor

from decisionrl.envs.linear_mdp import instances
from decisionrl.envs.linear_mdp.model import LinearMDP
from decisionrl.evaluation.results import relative_gap
from decisionrl.evaluation.statistics import bootstrap_mean
from decisionrl.experience.linear_mdp import OfflineEpisodes, OnlineEpisodes, Tabulated, collect
from decisionrl.experience.source import Source
from decisionrl.experiment import Experiment
from decisionrl.names import pick
from decisionrl.policies.tabular import TabularPolicy
from decisionrl.robust.ambiguity import Ambiguity, Ball, Divergence, Penalty
from decisionrl.robust.dynamic_programming import evaluate, optimal
from decisionrl.robust.learners import LeastSquaresLearner, VarianceWeights
from decisionrl.robust.operators import Unseen
from decisionrl.robust.planning import Bonus, BonusKind, Improvement
from decisionrl.robust.reference import Reference
from decisionrl.robust.regression import CountedLeastSquares, Problem, RecursiveLeastSquares
from decisionrl.seeding import generator

# ------------------------------------------------------------------------------------------------- instances


@dataclass(frozen=True, kw_only=True, eq=False)
class Instance:
    """A linear MDP and how it is learned.

    Attributes:
        mdp: the world, for sampling and exact evaluation; of batch () or [runs].
        radius: the radius of the uncertain factors unless another is asked for.
        uncertain: which factors of ``mdp`` are uncertain, 1 or 0, broadcasting to [H, d].
        features: those that methods learn with, if they are not the MDP's own; all of their factors are uncertain.
        caps: upper bounds of V_0, ..., V_H, if not (H - h) max_reward.
        behavior: the policy that collects datasets, [H, S, A]; uniform by default.
        perturbed: levels [n] -> the worlds that far from this one, of batch [n] or [runs, n].
    """

    mdp: LinearMDP
    radius: float
    uncertain: Tensor
    features: Tensor | None = None
    caps: Tensor | None = None
    behavior: Tensor | None = None
    perturbed: Callable[[Tensor], LinearMDP] | None = None

    def problem(self, *, learn_rewards: bool) -> Problem:
        """What methods are told."""
        own = Problem.of(self.mdp, learn_rewards=learn_rewards)
        return Problem(
            features=own.features if self.features is None else self.features,
            rewards=own.rewards,
            caps=own.caps if self.caps is None else self.caps,
            fail_state=own.fail_state,
            learn_rewards=learn_rewards,
        )

    @property
    def uncertain_learned(self) -> Tensor:
        """Which factors of the features that methods learn with are uncertain."""
        return self.uncertain if self.features is None else torch.ones_like(self.uncertain[:1, :1])

    def to(self, device: torch.device | str) -> Instance:
        """The same on another device."""

        def placed(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.to(device)

        return replace(
            self,
            mdp=self.mdp.to(device),
            uncertain=self.uncertain.to(device),
            features=placed(self.features),
            caps=placed(self.caps),
            behavior=placed(self.behavior),
        )


def five_state(seeds: Sequence[int], *, delta: float = 0.3, xi_norm: float = 0.3, p: float = 0.001) -> Instance:
    """The simulated MDP; uncertain is what leads to its goal from the first stage, with radius 0.5.

    Perturbed, that factor fails with the probability of the level.
    """
    build = partial(instances.five_state, delta=delta, xi_norm=xi_norm, p=p)
    return Instance(
        mdp=build(),
        radius=0.5,
        uncertain=instances.five_state_radius(1.0),
        perturbed=lambda levels: build(perturbation=levels),
    )


def one_hot(seeds: Sequence[int], *, instance_seed: int = 147) -> Instance:
    """A random tabular MDP with 6 states; about half of the (s, a) are uncertain, with radius 0.6."""
    mdp, radius = instances.random_tabular(instance_seed)
    return Instance(mdp=mdp, radius=0.6, uncertain=(radius > 0).double())


def random_linear(seeds: Sequence[int], *, instance_seed: int = 155) -> Instance:
    """A random linear MDP with dense features; the first two factors are uncertain, with radius 0.7."""
    mdp, radius = instances.random_linear(instance_seed)
    return Instance(mdp=mdp, radius=0.7, uncertain=(radius > 0).double())


def american_put(
    seeds: Sequence[int],
    *,
    horizon: int = 10,
    num_features: int = 20,
    up_probability: float = 0.5,
    start_price: float | None = None,
    strike: float = 100.0,
) -> Instance:
    """The put option, learned with hat functions of the price; the way of the price is uncertain, with radius 0.5.

    start_price: None draws one for each run, uniform in [95, 105]. Datasets hold and never exercise. Perturbed, the
    price goes up with the probability of the level.
    """
    if start_price is None:
        uniform = torch.stack([torch.rand((), dtype=torch.float64, generator=generator(s, "price")) for s in seeds])
        start = 95 + 10 * uniform
    else:
        start = torch.tensor([start_price], dtype=torch.float64)
    build = partial(instances.american_put, horizon=horizon, strike=strike)
    mdp = build(up_probability=up_probability, start_price=start)
    hold = torch.zeros(horizon, mdp.num_states, 2, dtype=torch.float64)
    hold[..., 0] = 1
    return Instance(
        mdp=mdp,
        radius=0.5,
        uncertain=torch.ones(1, 1, dtype=torch.float64),
        features=instances.put_features(num_features, horizon=horizon, start_price=start),
        caps=torch.tensor([strike] * horizon + [0.0], dtype=torch.float64),
        behavior=hold,
        perturbed=lambda levels: build(up_probability=levels, start_price=start.unsqueeze(-1)),
    )


def frozen_lake(seeds: Sequence[int], *, map_name: str = "4x4", horizon: int = 30) -> Instance:
    """Slippery FrozenLake; every (s, a) is uncertain, with radius 0.01."""
    mdp = instances.frozen_lake(map_name=map_name, horizon=horizon)
    return Instance(mdp=mdp, radius=0.01, uncertain=torch.ones(1, 1, dtype=torch.float64))


INSTANCES: Mapping[str, Callable[..., Instance]] = {
    "five-state": five_state,
    "one-hot": one_hot,
    "random-linear": random_linear,
    "american-put": american_put,
    "frozen-lake": frozen_lake,
}
"""Name -> function of the seeds of the runs, and options, that builds an instance."""


# -------------------------------------------------------------------------------------------- the recipes' parts


class LinearOptions(TypedDict, total=False):
    """The arguments that every recipe on linear MDPs takes; see :class:`LinearWorld` for what they mean."""

    instance: str
    instance_options: dict[str, Any]
    radius: float | None
    runs: int
    steps: int
    seed: int
    device: str


@dataclass(frozen=True, kw_only=True)
class LinearWorld:
    """A linear MDP, and how many runs learn in it side by side.

    Attributes:
        instance: a name of ``INSTANCES``.
        instance_options: arguments of its function.
        radius: of its uncertain factors; None is the instance's own. Also what robust values are evaluated with.
        runs: independent runs, each with a random stream of its own, computed together.
        steps: episodes of each run, online; the size of each run's dataset, offline.
    """

    instance: str = "five-state"
    instance_options: Mapping[str, Any] = field(default_factory=dict)
    radius: float | None = None
    runs: int = 1
    steps: int = 100
    seed: int = 0
    device: str = "cpu"

    def __post_init__(self) -> None:
        for name in ("runs", "steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)}; valid: a whole number >= 1")

    @cached_property
    def seeds(self) -> range:
        """One for each run; runs of other ``seed`` have others."""
        return range(self.seed * self.runs, (self.seed + 1) * self.runs)

    @cached_property
    def built(self) -> Instance:
        """The instance, on the device."""
        build = pick("instance", self.instance, INSTANCES)
        try:
            made = build(self.seeds, **self.instance_options)
        except TypeError as error:
            raise ValueError(f"instance_options of {self.instance!r}: {error}") from None
        return made.to(self.device)

    @property
    def level(self) -> float:
        """The radius of the uncertain factors."""
        return self.built.radius if self.radius is None else self.radius

    def policy(self) -> TabularPolicy:
        """A uniform table for every run."""
        mdp = self.built.mdp
        return TabularPolicy((self.runs, mdp.horizon, mdp.num_states, mdp.num_actions), device=self.device)

    def ball(self, divergence: Divergence, *, unseen: Unseen = "zero") -> Ball:
        """Around the factors that are learned."""
        return Ball(radius=self.level * self.built.uncertain_learned, divergence=divergence, unseen=unseen)

    def exact_ball(self) -> Ball:
        """Around the factors of the MDP itself, in total variation."""
        return Ball(radius=self.level * self.built.uncertain)

    def online(
        self,
        recipe: str,
        *,
        ridge: float,
        bonus: BonusKind,
        beta: float,
        ambiguity: Ambiguity | None,
        improvement: Improvement,
        learn_rewards: bool = False,
        rare_switching: bool = False,
        reference: Reference | None = None,
        metadata: Mapping[str, Any],
        options: Mapping[str, Any],
    ) -> Experiment:
        """A method that explores, as an Experiment."""
        policy = self.policy()
        problem = self.built.problem(learn_rewards=learn_rewards)
        learner = LeastSquaresLearner(
            policy,
            RecursiveLeastSquares(problem, runs=self.runs, ridge=ridge),
            bonus=Bonus(kind=bonus, beta=beta),
            ambiguity=ambiguity,
            improvement=improvement,
            rare_switching=rare_switching,
        )
        source = OnlineEpisodes(self.built.mdp, policy, seeds=self.seeds)
        return self._experiment(recipe, policy, source, learner, ambiguity, reference, metadata, options)

    def offline(
        self,
        recipe: str,
        *,
        part: int | None,
        ridge: float,
        bonus: BonusKind,
        beta: float,
        ambiguity: Ambiguity | None,
        improvement: Improvement,
        learn_rewards: bool = False,
        variance: VarianceWeights | None = None,
        metadata: Mapping[str, Any],
        options: Mapping[str, Any],
    ) -> Experiment:
        """A pessimistic method on a dataset of the instance's behavior policy, as an Experiment."""
        policy = self.policy()
        instance = self.built
        behavior = policy.table[0].clone() if instance.behavior is None else instance.behavior
        learner = LeastSquaresLearner(
            policy,
            CountedLeastSquares(instance.problem(learn_rewards=learn_rewards), runs=self.runs, ridge=ridge),
            bonus=Bonus(kind=bonus, beta=beta, pessimistic=True),
            ambiguity=ambiguity,
            improvement=improvement,
            variance=variance,
        )
        dataset = collect(instance.mdp, behavior, episodes=self.steps, seeds=self.seeds)
        source = OfflineEpisodes(dataset, part=part)
        return self._experiment(recipe, policy, source, learner, ambiguity, None, metadata, options)

    def _experiment(
        self,
        recipe: str,
        policy: TabularPolicy,
        source: Source,
        learner: LeastSquaresLearner,
        ambiguity: Ambiguity | None,
        reference: Reference | None,
        metadata: Mapping[str, Any],
        options: Mapping[str, Any],
    ) -> Experiment:
        config = {each.name: getattr(self, each.name) for each in fields(self) if each.name != "device"}
        return Experiment(
            policy=policy,
            source=source,
            learner=learner,
            config={"recipe": recipe, **config, **options},
            metadata=metadata,
            evaluate=ExactEvaluator(
                mdp=self.built.mdp,
                ambiguity=None if ambiguity is None else self._exact(ambiguity),
                ball=self.exact_ball(),
                reference=reference,
            ),
        )

    def _exact(self, ambiguity: Ambiguity) -> Ambiguity:
        """The same around the factors of the MDP itself."""
        if self.built.features is None:
            return ambiguity
        if isinstance(ambiguity, Penalty):
            return Penalty(weight=float(torch.as_tensor(ambiguity.weight).max()), divergence=ambiguity.divergence)
        return Ball(radius=self.level * self.built.uncertain, divergence=ambiguity.divergence)


# ------------------------------------------------------------------------------------------------ evaluation


@dataclass(frozen=True, kw_only=True, eq=False)
class ExactEvaluator:
    """Values of a tabular policy by dynamic programming; no episode is played.

    Attributes:
        mdp: the world.
        ambiguity: what the method is robust to; None for nominal methods.
        ball: what ``robust_value`` is the worst case over.
        reference: the regularizer of the method, if it has one.
    """

    mdp: LinearMDP
    ambiguity: Ambiguity | None
    ball: Ball
    reference: Reference | None = None

    def __call__(
        self, policy: Tabulated, *, episodes: int | None = None, seed: int = 1, long: bool = True
    ) -> dict[str, Any]:
        """Exact values, averaged over runs, as plain numbers.

        ``mean_return`` is the worst case that the method is robust to, with the 95 % bootstrap interval over runs in
        ``low`` and ``high``; ``optimum`` the largest there is, which is also the ``reference`` of ``gap`` unless it is
        0; ``regret`` the difference. ``nominal_value`` and ``robust_value``, over the instance's total variation ball,
        mean the same for every method. ``regularized_regret``, of methods with a reference policy, counts the price of
        leaving it. ``episodes`` is 0: none is played.
        """
        table = policy.probabilities()
        own = evaluate(self.mdp, table, self.ambiguity).start
        best = optimal(self.mdp, self.ambiguity).start
        estimate = bootstrap_mean(own.cpu().numpy(), rng=np.random.default_rng(seed))
        result: dict[str, Any] = {
            "mean_return": estimate.value,
            "low": estimate.value if estimate.low is None else estimate.low,
            "high": estimate.value if estimate.high is None else estimate.high,
            "episodes": 0,
            "optimum": float(best.mean()),
            "regret": float((best - own).mean()),
            "nominal_value": float(evaluate(self.mdp, table).start.mean()),
            "robust_value": float(evaluate(self.mdp, table, self.ball).start.mean()),
        }
        gap = relative_gap(estimate.value, result["optimum"], better="higher")
        if gap is not None:
            result |= {"reference": result["optimum"], "reference_kind": "exact", "gap": gap}
        if self.reference is not None:
            regularized = evaluate(self.mdp, table, self.ambiguity, reference=self.reference).start
            optimum = optimal(self.mdp, self.ambiguity, reference=self.reference).start
            result["regularized_regret"] = float((optimum - regularized).mean())
        return result
