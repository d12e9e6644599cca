"""Inventory networks as control problems: policy-gradient recipes beside pathwise gradients, on equal terms.

Every recipe learns from as many simulated periods, and is measured by the code, on the demand and against the exact
reference of the inventory suite.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from decisionrl.benchmarks.control_training import TRAINING_SHARE, WALL_TIME, one_thread, train
from decisionrl.benchmarks.inventory import CURVE_EPISODES, CURVE_POINTS, EVALUATION_SEED
from decisionrl.benchmarks.suite import CaseContext, CaseResult, Measurement
from decisionrl.envs.inventory.env import InventoryEnv, order_limits
from decisionrl.envs.inventory.feasibility import Rationing
from decisionrl.envs.inventory.scenarios import make_simulator
from decisionrl.envs.inventory.setting import Setting, load_setting
from decisionrl.envs.inventory.simulator import Observation, Policy, Simulator
from decisionrl.envs.inventory.spaces import units
from decisionrl.evaluation.measure import measure, trace
from decisionrl.evaluation.series import Series
from decisionrl.experiment import Experiment
from decisionrl.recipes import recipe
from decisionrl.recipes.hdpo import Evaluator

HDPO = "hdpo"


class OrdersOfActions:
    """A policy for control as a policy of the simulator: the state as :class:`InventoryEnv` lays it out, the
    deterministic actions, clipped to [-1, 1], as units of orders that can be filled.

    Raises:
        ValueError: the setting shows more than stock (past demand, the calendar, costs that vary).
    """

    def __init__(self, policy: nn.Module, setting: Setting, simulator: Simulator) -> None:
        names = InventoryEnv(setting, num_envs=1).observation_names
        places = [re.fullmatch(r"stock\[(.+),(\d+)\]", name) for name in names]
        shown = [name for name, place in zip(names, places, strict=True) if place is None]
        if shown:
            raise ValueError(f"{setting.name}: observations have {', '.join(shown)}; valid: stock alone")
        nodes = setting.network.node_names
        self._columns = [(int(place[2]), nodes.index(place[1])) for place in places if place is not None]
        self._policy = policy
        self._high = torch.as_tensor(order_limits(setting), dtype=simulator.dtype, device=simulator.device)
        self._ration = Rationing(setting.network, device=simulator.device, dtype=simulator.dtype)

    def __call__(self, observation: Observation) -> Tensor:
        flat = torch.stack([observation.slots[slot][..., node] for slot, node in self._columns], -1)
        action, _ = self._policy.act(flat.flatten(0, -2))  # type: ignore[operator]
        wanted = units(action.clamp(-1, 1), self._high).view(*flat.shape[:-1], -1)
        return self._ration(wanted, observation.slots[0])


@dataclass(frozen=True, kw_only=True)
class InventoryCase:
    """Train ``recipe`` on ``setting`` for so many simulated periods, those of all copies together, and measure it.

    scenarios, measured_periods, warmup: how precisely, as in the inventory suite.
    """

    recipe: str
    setting: str
    periods: int
    arguments: Mapping[str, Any] = field(default_factory=dict)
    scenarios: int = 4096
    measured_periods: int = 1000
    warmup: int = 500

    def __call__(self, context: CaseContext) -> CaseResult:
        setting = load_setting(self.setting)
        simulator = make_simulator(setting, device=context.device)
        evaluator = Evaluator(setting, simulator)
        reference = evaluator.reference

        def acting(policy: nn.Module) -> Policy:
            return policy if self.recipe == HDPO else OrdersOfActions(policy, setting, simulator)

        def cost(policy: nn.Module) -> float:
            sample = evaluator(acting(policy), episodes=CURVE_EPISODES, seed=EVALUATION_SEED, long=False)  # type: ignore[arg-type]
            return float(sample["mean_cost"])

        with one_thread():
            experiment, steps, scale = self._experiment(context)
            record = train(experiment, steps, context.progress, scale=scale, points=CURVE_POINTS, measure=cost)
            policy = acting(experiment.policy)
            measured = measure(
                policy,
                setting,
                simulator,
                reference=reference,
                scenarios=self.scenarios,
                periods=self.warmup + self.measured_periods,
                warmup=self.warmup,
                seed=EVALUATION_SEED,
                progress=lambda done: context.progress(TRAINING_SHARE + (1 - TRAINING_SHARE) * done, "measuring"),
            )
            path, network = trace(policy, setting, simulator)
        known = {} if reference is None else {"reference": reference.value, "reference_kind": reference.kind}
        rows = [Measurement("cost", measured.cost, **known), *record.costs()]  # type: ignore[arg-type]
        curve, over_time = record.curves("cost", reference=None if reference is None else reference.value)
        return CaseResult(rows, Series(curve=curve, curves={WALL_TIME: over_time}, path=path, network=network))

    def _experiment(self, context: CaseContext) -> tuple[Experiment, int, int]:
        """With the Trainer's steps, and the simulated periods in one of them."""
        common: dict[str, Any] = {"setting": self.setting, "seed": context.seed, "device": context.device}
        common |= self.arguments
        build = recipe(self.recipe)
        if self.recipe != HDPO:
            return build(steps=self.periods, **common), self.periods, 1
        config = build(steps=1, **common).config
        scale = config["batch"] * config["periods"]
        updates = max(1, self.periods // scale)
        return build(steps=updates, **common), updates, scale
