"""Distilled in-context planning (DICP, arXiv 2502.19009), on filtered learning histories if asked for (2505.15143)."""

from __future__ import annotations

from functools import partial
from typing import Unpack

from decisionrl.envs.gridworld.darkroom import GridFamily
from decisionrl.experience.store import DatasetError
from decisionrl.experiment import Experiment
from decisionrl.objectives.in_context import Positions, Target, check_options, planning_nll
from decisionrl.policies.in_context import PlanningPolicy
from decisionrl.recipes.control import own_options
from decisionrl.recipes.in_context import Histories, InContextOptions, tuned_on_histories
from decisionrl.seeding import generator

METADATA = {
    "title": "Distilled in-context planning",
    "arxiv": "2502.19009",
    "changes": "the transformer also learns a model of the world from its context, and searches it for the best plan",
    "limit": "beams = 1, depth = 1, model_weight = 0: algorithm distillation until the context is full",
    "kinds": "learning histories of tasks on grids",
}


@tuned_on_histories
def dicp(
    *,
    target: Target = "action",
    model_weight: float = 1.0,
    filter_model: bool = True,
    beams: int = 10,
    depth: int | None = None,
    positions: Positions = "all",
    **common: Unpack[InContextOptions],
) -> Experiment:
    """-log pi(x_t | C_{t-1}, s_t) - xi log p(r_t, s_{t+1} | C_{t-1}, s_t, a_t) at every step of learning histories.

    target: x_t is the "action" that was taken, as in algorithm distillation, or the optimal one, the "label".
    model_weight: xi. filter_model: the model of the world learns from filtered histories too, as in the paper; False:
    from all of them, which takes ``filter_mode = "weight"``, and only actions from the better ones. What a step does to
    the world does not depend on how good the learner was, and random ones show more of it. beams, depth: of the search,
    once the context is full; by default it is as deep as the farthest cell is from the center (8 steps on 9 x 9 cells),
    or from a corner where goals lie there or there are several.
    """
    options = own_options(locals())
    check_options(positions=positions, target=target, model_weight=model_weight)
    histories = Histories(**common)
    if not filter_model and (histories.filter, histories.filter_mode) != ("lhf", "weight"):
        raise ValueError(
            f"filter_model = False with filter = {histories.filter!r}, filter_mode = {histories.filter_mode!r}; valid: "
            "filter = 'lhf', filter_mode = 'weight', which leaves all histories in the data"
        )
    family = histories.tasks
    if not isinstance(family, GridFamily):
        raise DatasetError(f"{histories.data} is of {family.name}; valid for planning: tasks on a grid")
    if depth is None:
        from_center = family.start_at == "center" and not family.once
        depth = 2 * (family.size // 2 if from_center else family.size - 1)
    policy = PlanningPolicy(
        histories.policy(),
        family.observation_space,
        horizon=family.horizon,
        beams=beams,
        depth=depth,
        generator=generator(histories.seed, "model"),
    ).to(histories.device)
    objective = partial(
        planning_nll, model_weight=model_weight, weigh_model=filter_model, target=target, positions=positions
    )
    return histories.experiment(
        "dicp",
        learner=histories.learner(policy, objective),
        windows=histories.windows(teacher=histories.teacher if target == "label" else None),
        metadata=METADATA,
        options={**options, "depth": depth},
    )
