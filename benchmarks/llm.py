"""The suite of language models: every policy-gradient recipe on tasks whose answers can be checked.

Case names are task/recipe: ``modular-addition/grpo``. A case begins with a small transformer that has imitated right
answers until 30 % of its own were right (the same one for all recipes of a seed), and trains it until it has sampled
a given number of tokens: what it spends on greedy baselines, branches or trees counts. The rows:

- ``pass_1``, ``pass_8``: of the trained model, on all prompts of the task, 8 responses to each. The interval is over
  prompts.
- ``mean_reward``: of the same responses.
- ``tokens_to_90``: sampled until the share of right answers in the training batches, averaged over the last 100
  responses, was first 0.9; no row if it never was.
- ``warm_start``: pass@1 before the training.
- ``entropy``, ``clip_fraction``, ``gradient_norm``: means over the last tenth of the updates, where the recipe reports
  them.
- ``wall_seconds``, ``cpu_seconds``, ``steps_per_second`` (tokens a second) of the training, on one thread.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from decisionrl.benchmarks.control_training import WALL_TIME, Record, one_thread, train
from decisionrl.benchmarks.suite import Case, CaseContext, CaseResult, Measurement
from decisionrl.envs.text import make_task
from decisionrl.evaluation.language import PassEvaluator, pass_at_k, sampled
from decisionrl.evaluation.results import config_hash
from decisionrl.evaluation.series import Series
from decisionrl.evaluation.statistics import bootstrap_mean
from decisionrl.experiment import Experiment
from decisionrl.llm.warm_start import warm_started
from decisionrl.policies.language import LanguagePolicy
from decisionrl.recipes import ON_ENVIRONMENTS, recipe
from decisionrl.recipes.presets import preset

EVALUATION_SEED = 20_261_123
SAMPLES = 8
PROMPTS = 512
"""At most so many are measured on; of endless tasks, so many."""

REACHED = 0.9
SHARE_LABEL = "mean reward in training"
WATCHED = ("entropy", "clip_fraction", "gradient_norm")


@dataclass(frozen=True, kw_only=True)
class LanguageCase:
    """Train ``recipe`` on the task from the seed's warm start.

    options: of the task.
    """

    task: str
    recipe: str
    options: Mapping[str, Any] = field(default_factory=dict)
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, context: CaseContext) -> CaseResult:
        with one_thread():
            experiment = recipe(self.recipe)(
                env=self.task,
                env_options=dict(self.options),
                model=str(self._model(context)),
                seed=context.seed,
                device=context.device,
                **self.arguments,
            )
            before = replace(measured(experiment)[0], metric="warm_start")
            record = train(experiment, experiment.config["steps"], context.progress, keep=WATCHED)
            rows = [
                *measured(experiment),
                before,
                *_watched(record),
                *record.costs(),
            ]
        reached = record.steps_to(REACHED)
        if reached is not None:
            rows.append(Measurement("tokens_to_90", reached))
        curve, over_time = record.curves(SHARE_LABEL, reference=1.0)
        return CaseResult(rows, Series(curve=curve, curves={WALL_TIME: over_time}))

    def _model(self, context: CaseContext) -> Path:
        name = f"{self.task.rpartition('/')[2]}-{config_hash({'options': dict(self.options)})}-{context.seed}"
        folder = context.directory.parent.parent / "data"
        folder.mkdir(parents=True, exist_ok=True)
        return self._warm_started(folder / name, context.seed)

    def _warm_started(self, directory: Path, seed: int) -> Path:
        return warm_started(make_task(self.task, **self.options), directory, seed=seed)


@dataclass(frozen=True, kw_only=True)
class AfterExamples(LanguageCase):
    """From a warm start in which up to ``examples`` solved prompts stand in front of those that are imitated."""

    examples: int = 2

    def _warm_started(self, directory: Path, seed: int) -> Path:
        name = f"{directory.name}-examples{self.examples}"
        task = make_task(self.task, **self.options)
        return warm_started(task, directory.with_name(name), seed=seed, examples=self.examples)


def measured(experiment: Experiment) -> list[Measurement]:
    """pass@1, pass@8 and the mean reward of sampled responses."""
    policy, evaluator = experiment.policy, experiment.evaluate
    assert isinstance(policy, LanguagePolicy)
    assert isinstance(evaluator, PassEvaluator)
    world = evaluator.make_world()
    prompts = PROMPTS if world.num_starts is None else min(PROMPTS, world.num_starts)
    reward = sampled(policy, world, prompts=prompts, samples=SAMPLES, seed=EVALUATION_SEED).outcome
    reward = reward.view(prompts, SAMPLES).cpu()
    correct = (reward >= evaluator.success).sum(1)
    values = {
        "pass_1": pass_at_k(correct, SAMPLES, 1),
        f"pass_{SAMPLES}": pass_at_k(correct, SAMPLES, SAMPLES),
        "mean_reward": reward.double().mean(1),
    }
    best = {"mean_reward": world.task.best_reward}
    return [
        Measurement(
            name,
            bootstrap_mean(each.numpy(), rng=np.random.default_rng(EVALUATION_SEED)),
            best.get(name, 1.0),
            "bound",
            better="higher",
        )
        for name, each in values.items()
    ]


def _watched(record: Record) -> list[Measurement]:
    """Means over the last tenth of the updates."""
    late = {name: values[-max(1, len(values) // 10) :] for name, values in record.kept.items() if values}
    return [Measurement(name, float(np.mean(values))) for name, values in late.items()]


# ---------------------------------------------------------------------------------------------- the cases

Arguments = Mapping[str, Any]

TASKS: Mapping[str, tuple[Arguments, Arguments]] = {
    "modular-addition": ({}, {}),
    "countdown": ({}, {"steps": 250_000}),
    "key-token-chain": ({}, {"steps": 200_000}),
    "sorting": ({}, {"steps": 250_000}),
    "mod-chain": ({"max_length": 3, "rulebook": False}, {"steps": 300_000}),
}
"""Task -> its options, and arguments of all recipes. Budgets in tokens are small where GRPO learns fast."""

SHOWN: Mapping[str, tuple[str, Arguments]] = {"xrpo_shown": ("xrpo", {"shown": 2})}
"""Method -> recipe and arguments, on modular addition: XRPO with examples that the model cannot read."""

KEY_TOKEN: Mapping[str, tuple[str, Arguments]] = {
    "tppo_short": ("tppo", {"horizon": 8}),
    "gtpo_unfiltered": ("gtpo", {"entropy_threshold": 2.0}),
}
"""The same on the key-token chain: T-PPO with windows shorter than responses, which takes an untrained critic at its
word; GTPO without its filter, whose threshold is the entropy of this task's free bits."""

AFTER_EXAMPLES: Mapping[str, tuple[str, Arguments]] = {
    "grpo": ("grpo", {}),
    "xrpo": ("xrpo", {}),
    **SHOWN,
    "xrpo_shown_sampling": ("xrpo", {"shown": 2, "shown_in_loss": False}),
}
"""The same, from models that know prompts with examples in front."""


def cases(profile: str, data: Path | None) -> list[Case]:
    """All cases of a profile, in the order of the report; there is no use for ``data``."""
    if profile == "quick":
        return [_case("modular-addition", name, {"modulus": 11}, {"steps": 40_000}) for name in ("grpo", "rloo")]
    return [
        *(_case(task, name, *of_task) for task, of_task in TASKS.items() for name in ON_ENVIRONMENTS),
        *_variants("modular-addition", SHOWN),
        *_variants("key-token-chain", KEY_TOKEN),
        *_variants("modular-addition", AFTER_EXAMPLES, kind=AfterExamples, suffix="-examples"),
    ]


def _case(task: str, name: str, options: Arguments, arguments: Arguments) -> Case:
    return Case(task, name, LanguageCase(**_parts(task, name, options, arguments)))


def _variants(
    task: str,
    variants: Mapping[str, tuple[str, Arguments]],
    *,
    kind: type[LanguageCase] = LanguageCase,
    suffix: str = "",
) -> Iterator[Case]:
    options, of_task = TASKS[task]
    for method, (name, arguments) in variants.items():
        yield Case(task + suffix, method, kind(**_parts(task, name, options, {**of_task, **arguments})))


def _parts(task: str, name: str, options: Arguments, arguments: Arguments) -> dict[str, Any]:
    """Of a case, with its preset spelled out, so that results are made anew when that changes."""
    env = f"text/{task}"
    return {
        "task": env,
        "recipe": name,
        "options": options,
        "arguments": {**preset(name, {"env": env, "env_options": options}), **arguments},
    }
