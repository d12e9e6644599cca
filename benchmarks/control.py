"""The control suite: the policy-gradient recipes on known environments, with exact answers where there are any.

Case names are environment/recipe: ``cartpole/ppo``. ``sb3_ppo`` is Stable-Baselines3's PPO with the hyperparameters of
our own, trained in the same way on one thread and evaluated by the same code on the same episodes. The rows:

- ``mean_return``: of the trained policy's deterministic actions, over episodes that no training saw. Where the
  environment is a table it is worked out exactly, and compared with the exact optimum. On ``bandit`` it is ``value``
  instead, of the policy as it samples; on ``inventory_...`` it is ``cost``, measured as the inventory suite does.
- ``return_of_training``: mean of the last 100 training episodes. ``steps_to_threshold``: the first step at which that
  was as large as the return from which the environment counts as solved. ``threshold_reached``: 1 if it ever was,
  else 0.
- ``wall_seconds``, ``cpu_seconds``, ``steps_per_second`` of the training alone.
- ``gradient_cosine`` on ``bandit``: between the mean of many gradient estimates and the exact gradient.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from decisionrl.benchmarks.control_peer import PEER, peer, peer_policy, train_peer
from decisionrl.benchmarks.control_training import RETURN_LABEL, WALL_TIME, Record, one_thread, train
from decisionrl.benchmarks.inventory_control import InventoryCase
from decisionrl.benchmarks.suite import Case, CaseContext, CaseResult, Measurement
from decisionrl.benchmarks.tabular import TabularModel
from decisionrl.envs.bandit import PromptBandit
from decisionrl.evaluation.series import Series
from decisionrl.evaluation.statistics import Estimate
from decisionrl.experience.trajectories import Trajectories
from decisionrl.experiment import Experiment
from decisionrl.minibatches import MinibatchLearner
from decisionrl.recipes import ON_ENVIRONMENTS, recipe
from decisionrl.recipes.presets import preset

EVALUATION_SEED = 20_260_201
EPISODES = 20

BANDIT = "decisionrl.envs.bandit:PromptBandit"


@dataclass(frozen=True, kw_only=True)
class ControlCase:
    """Train ``recipe`` (or the peer) on ``env`` for ``steps`` environment steps, and measure the final policy.

    threshold: the mean return from which the environment counts as solved. exact: the environment is a table, and
    returns are worked out instead of sampled.
    """

    recipe: str
    env: str
    steps: int
    arguments: Mapping[str, Any] = field(default_factory=dict)
    threshold: float | None = None
    exact: bool = False
    episodes: int = EPISODES

    def __call__(self, context: CaseContext) -> CaseResult:
        with one_thread():
            experiment = recipe("ppo" if self.recipe == PEER else self.recipe)(
                env=self.env, steps=self.steps, seed=context.seed, device=context.device, **self.arguments
            )
            policy, record = self._trained(experiment, context)
            mean_return, target = self._measured(policy, experiment)
        rows = [mean_return, *self._training_rows(record), *record.costs()]
        curve, over_time = record.curves(RETURN_LABEL, target=self.threshold if target is None else target)
        return CaseResult(rows, Series(curve=curve, curves={WALL_TIME: over_time}))

    def _trained(self, experiment: Experiment, context: CaseContext) -> tuple[nn.Module, Record]:
        if self.recipe == PEER:
            model = peer(experiment.config, device=context.device)
            record = train_peer(model, self.steps, context.progress)
            return peer_policy(model), record
        return experiment.policy, train(experiment, self.steps, context.progress)

    def _measured(self, policy: nn.Module, experiment: Experiment) -> tuple[Measurement, float | None]:
        """The main row, and the optimum where it is known."""
        if self.exact:
            model = TabularModel.of(self.env)
            optimum = model.optimal_return()
            own = model.expected_return(_greedy(policy, *model.reward.shape).numpy())
            return Measurement("mean_return", own, optimum, "exact", better="higher"), optimum
        assert experiment.evaluate is not None
        found = experiment.evaluate(policy, episodes=self.episodes, seed=EVALUATION_SEED)
        estimate = Estimate(found["mean_return"], found["low"], found["high"], found["episodes"])
        return Measurement("mean_return", estimate, better="higher"), None

    def _training_rows(self, record: Record) -> list[Measurement]:
        if not record.at:
            return []  # no episode ended
        rows = [Measurement("return_of_training", record.last, better="higher")]
        if self.threshold is None:
            return rows
        reached = record.steps_to(self.threshold)
        rows.append(Measurement("threshold_reached", float(reached is not None), better="higher"))
        return rows if reached is None else [*rows, Measurement("steps_to_threshold", reached)]


@dataclass(frozen=True, kw_only=True)
class BanditCase:
    """Train ``recipe`` on the prompt bandit, whose value is known exactly at every moment.

    gradient_batches: how many gradient estimates of the untrained policy are averaged and compared with the exact
    gradient, for recipes whose estimate is meant to be unbiased; 0 leaves it out.
    """

    recipe: str
    steps: int
    arguments: Mapping[str, Any] = field(default_factory=dict)
    gradient_batches: int = 0

    def __call__(self, context: CaseContext) -> CaseResult:
        bandit = PromptBandit()
        optimum = bandit.optimal_value

        def value(policy: nn.Module) -> float:
            return float(bandit.value(probabilities(policy, *bandit.success.shape)))

        with one_thread():
            rows = []
            if self.gradient_batches:
                cosine = gradient_cosine(self._experiment(context), bandit, batches=self.gradient_batches)
                rows = [Measurement("gradient_cosine", cosine, 1.0, "exact", better="higher")]
            experiment = self._experiment(context)
            record = train(experiment, self.steps, context.progress, points=BANDIT_POINTS, measure=value)
            greedy = float(bandit.value(_greedy(experiment.policy, *bandit.success.shape)))
        rows = [
            Measurement("value", record.last, optimum, "exact", better="higher"),
            Measurement("greedy_value", greedy, optimum, "exact", better="higher"),
            *rows,
            *record.costs(),
        ]
        curve, over_time = record.curves("value", reference=optimum)
        return CaseResult(rows, Series(curve=curve, curves={WALL_TIME: over_time}))

    def _experiment(self, context: CaseContext) -> Experiment:
        return recipe(self.recipe)(
            env=BANDIT, steps=self.steps, seed=context.seed, device=context.device, **self.arguments
        )


BANDIT_POINTS = 40


def probabilities(policy: nn.Module, states: int, actions: int) -> Tensor:
    """[states, actions] of a policy on numbered states and actions; differentiable in its weights."""
    device = next(policy.parameters()).device
    ones = torch.ones(states * actions, 1, device=device)
    every = Trajectories(
        observation=torch.arange(states, device=device).repeat_interleave(actions)[:, None],
        action=torch.arange(actions, device=device).repeat(states)[:, None],
        reward=ones,
        mask=ones.bool(),
        log_prob=ones,
        terminated=ones.bool(),
        truncated=~ones.bool(),
    )
    log_prob: Tensor = policy.evaluate(every).log_prob  # type: ignore[operator]
    return log_prob.view(states, actions).exp()


def gradient_cosine(experiment: Experiment, bandit: PromptBandit, *, batches: int) -> float:
    """Between the mean over batches of a recipe's gradient estimates and the exact gradient, at the current weights."""
    learner, policy = experiment.learner, experiment.policy
    assert isinstance(learner, MinibatchLearner)
    for group in learner.optimizer.param_groups:
        group["lr"] = 0.0  # every estimate is of the same policy
    parameters = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    value = bandit.value(probabilities(policy, *bandit.success.shape))
    exact = torch.autograd.grad(-value, parameters)
    mean = [torch.zeros_like(parameter) for parameter in parameters]
    for _ in range(batches):
        learner.update(experiment.source.sample())
        for total, parameter in zip(mean, parameters, strict=True):
            assert parameter.grad is not None
            total += parameter.grad / batches
    estimated, truth = (torch.cat([each.flatten() for each in gradient]).double() for gradient in (mean, exact))
    return float(torch.nn.functional.cosine_similarity(estimated, truth, 0))


@torch.no_grad()
def _greedy(policy: nn.Module, states: int, actions: int) -> Tensor:
    """[states, actions] the policy's deterministic actions, as probabilities."""
    device = next(policy.parameters()).device
    action, _ = policy.act(torch.arange(states, device=device))  # type: ignore[operator]
    return torch.nn.functional.one_hot(action, actions).double().cpu()


# ---------------------------------------------------------------------------------------------- the cases


@dataclass(frozen=True, kw_only=True)
class Environment:
    """Where recipes are compared, for how long they train, and arguments for those that have no preset there."""

    env: str
    steps: int
    threshold: float | None = None
    exact: bool = False
    arguments: Mapping[str, Any] = field(default_factory=dict)


OTHERS = tuple(name for name in ON_ENVIRONMENTS if name != "ppo")
"""Every recipe for control but PPO, which stands beside its peer."""

REST = ("reinforce", "grpo")
"""Those of the quick profile, and of environments where a run takes minutes."""

UNBIASED: Mapping[str, Mapping[str, Any]] = {
    "reinforce": {"baseline": False, "normalize_advantage": False},
    "rloo": {},
    "remax": {},
}
"""Recipes whose gradient estimate has the exact gradient as its mean, and the arguments with which it does."""

FASTER = {"learning_rate": 3e-3}
"""Small networks and short trainings: ten times the default."""

ENVIRONMENTS: Mapping[str, Environment] = {
    "frozen_lake": Environment(env="FrozenLake-v1", steps=100_000, exact=True, arguments=FASTER),
    "cartpole": Environment(env="CartPole-v1", steps=100_000, threshold=475.0),
    "acrobot": Environment(env="Acrobot-v1", steps=200_000, threshold=-100.0, arguments=FASTER),
    "pendulum": Environment(env="Pendulum-v1", steps=300_000, threshold=-250.0, arguments=FASTER),
    "hopper": Environment(env="Hopper-v5", steps=300_000),
    "half_cheetah": Environment(env="HalfCheetah-v5", steps=300_000),
}

ARGUMENTS: Mapping[tuple[str, str], Mapping[str, Any]] = {
    ("bandit", "ppo"): {"horizon": 16, "minibatch": 64, "epochs": 4},
    ("frozen_lake", "ppo"): {"horizon": 128, "minibatch": 256},
}
"""Arguments of a recipe on an environment for which its defaults are not meant. The others have those of the recipe and
of its presets."""

BANDIT_STEPS = 20_000
GRADIENT_BATCHES = 2_000

QUICK_STEPS = {"pendulum": 100_000}
QUICK = {
    "cartpole": ("ppo", PEER, *REST),
    "pendulum": ("ppo", PEER),
    "frozen_lake": ("ppo", *REST),
    "bandit": ("ppo", *REST, "rloo", "remax"),
}
FULL = {
    "cartpole": ("ppo", PEER, *OTHERS),
    "acrobot": ("ppo", PEER, *REST),
    "pendulum": ("ppo", PEER, *REST),
    "hopper": ("ppo", PEER),
    "half_cheetah": ("ppo", PEER),
    "frozen_lake": ("ppo", *OTHERS),
    "bandit": ("ppo", *OTHERS),
}
"""Environment -> recipes, in the order of the report."""

INVENTORY_SETTINGS = ("one_store_lost", "one_store_backlogged", "serial_system")
INVENTORY_PERIODS = 2_000_000
"""Simulated periods that every recipe learns from."""

INVENTORY_RECIPES: Mapping[str, Mapping[str, Any]] = {
    "ppo": {
        "num_envs": 128,
        "horizon": 50,
        "minibatch": 1600,
        "normalize_observations": True,
        "normalize_rewards": True,
        "learning_rate": 1e-3,
        "anneal": True,
        "initial_log_std": -1.0,
    },
    "reinforce": {
        "num_envs": 64,
        "episodes": 64,
        "normalize_observations": True,
        "learning_rate": 3e-3,
        "anneal": True,
        "initial_log_std": -1.0,
    },
    "grpo": {
        "num_envs": 64,
        "normalize_observations": True,
        "learning_rate": 3e-3,
        "anneal": True,
        "initial_log_std": -1.0,
    },
    "hdpo": {"policy": "mlp"},
}


def cases(profile: str, data: Path | None) -> list[Case]:
    """All cases of a profile, in the order of the report; there is no use for ``data``."""
    quick = profile == "quick"
    chosen = []
    for environment, recipes in (QUICK if quick else FULL).items():
        for name in recipes:
            if environment == "bandit":
                chosen.append(Case(environment, name, _bandit_case(name), cost=BANDIT_STEPS))
                continue
            about = ENVIRONMENTS[environment]
            steps = QUICK_STEPS.get(environment, about.steps) if quick else about.steps
            cost = steps * (3.0 if name == PEER else 1.0)
            chosen.append(Case(environment, name, _control_case(environment, about, name, steps), cost=cost))
    if not quick:
        for setting in INVENTORY_SETTINGS:
            for name, arguments in INVENTORY_RECIPES.items():
                run = InventoryCase(recipe=name, setting=setting, periods=INVENTORY_PERIODS, arguments=arguments)
                chosen.append(Case(f"inventory_{setting}", name, run, cost=INVENTORY_PERIODS / 10))
    return chosen


def _control_case(environment: str, about: Environment, name: str, steps: int) -> ControlCase:
    known = preset("ppo" if name == PEER else name, {"env": about.env})
    tuned = {key: value for key, value in known.items() if key != "steps"}
    return ControlCase(
        recipe=name,
        env=about.env,
        steps=steps,
        arguments={**(tuned or about.arguments), **ARGUMENTS.get((environment, name), {})},
        threshold=about.threshold,
        exact=about.exact,
    )


def _bandit_case(name: str) -> BanditCase:
    own = ARGUMENTS.get(("bandit", name), {})
    arguments = {**FASTER, **UNBIASED.get(name, {}), **_success(name), **own}
    return BanditCase(
        recipe=name,
        steps=BANDIT_STEPS,
        arguments=arguments,
        gradient_batches=GRADIENT_BATCHES if name in UNBIASED else 0,
    )


def _success(name: str) -> Mapping[str, Any]:
    """For recipes that tell successes from failures: a reward of 1 is one."""
    return {"success": 0.5} if "success" in inspect.signature(recipe(name)).parameters else {}
