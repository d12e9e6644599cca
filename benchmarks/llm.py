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

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from decisionrl.benchmarks.control_training import Record, one_thread, train
from decisionrl.benchmarks.recorded import recorded
from decisionrl.benchmarks.suite import Case, CaseContext, CaseResult, Measurement
from decisionrl.evaluation.language import pass_at_k, sampled
from decisionrl.evaluation.series import Series
from decisionrl.evaluation.statistics import bootstrap_mean
from decisionrl.experiment import Experiment
from decisionrl.llm.warm_start import warm_started
from decisionrl.llm.world import TextWorld
from decisionrl.policies.language import LanguagePolicy
from decisionrl.recipes import ON_ENVIRONMENTS, recipe

EVALUATION_SEED = 20_261_123
SAMPLES = 8
REACHED = 0.9
SHARE_LABEL = "share of right answers in training"

TASKS: Mapping[str, Mapping[str, Any]] = {
    "modular-addition": {"steps": 400_000},
    "countdown": {"steps": 800_000},
    "sorting": {"steps": 800_000},
    "key-token-chain": {"steps": 400_000},
    "mod-chain": {"steps": 800_000},
}
"""Task -> arguments of every recipe; steps are tokens."""

WATCHED = ("entropy", "clip_fraction", "gradient_norm")


@dataclass(frozen=True, kw_only=True)
class LanguageCase:
    """Train ``recipe`` on the task from the seed's warm start."""

    task: str
    recipe: str
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, context: CaseContext) -> CaseResult:
        with one_thread():
            model = warm_started(
                make_task(self.task), context.directory.parent.parent / "data" / "models", seed=context.seed
            )
            experiment = recipe(self.recipe)(
                env=self.task, model=str(model), seed=context.seed, device=context.device, **self.arguments
            )
            before = self._pass_1(experiment)
            record = train(experiment, experiment.config["steps"], context.progress, keep=WATCHED)
            rows = [
                *self._measured(experiment),
                Measurement("warm_start", before, better="higher"),
                *_watched(record),
                *record.costs(),
            ]
        curve, over_time = record.curves(SHARE_LABEL, reference=1.0)
        return CaseResult(rows, Series(curve=curve, curves={WALL_TIME: over_time}))
