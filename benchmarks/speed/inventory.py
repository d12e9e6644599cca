"""How fast inventory policies are simulated and trained: ``python -m decisionrl.benchmarks.speed.inventory``.

The yardstick is ``plain_inventory``: an eager loop written straight from the semantics, with the same weights and
demand paths, in the same process, on one thread. Losses must agree to 1e-5 before anything is timed.

Rows (suite "speed-inventory"), case by case:

- ``speedup``: seconds of the plain loop over seconds of the library, the median of interleaved rounds; ``low`` and
  ``high`` are the smallest and largest round, ``seconds`` is the library's median. reference = the target, kind
  "peer". Methods: "eager" and "compiled" include what feeds a step, on both sides: the plain loop's per-sample
  Dataset and DataLoader, the library's drawing of a batch. "...-without-loader": batches at hand on both sides.
- ``compile_seconds``: processor seconds of the first compiled step, which no other row includes.
- ``mean_cost``: of a trained policy against the exact optimum (kind "exact"), both on the same demand paths, and
  ``cpu_seconds`` it was trained for (kind "peer": the target). ``seeds_within_target``: how many met both.
- ``peak_gb``: memory of a long evaluation in a fresh process, against its target; ``imported_gb`` before it starts.

Seconds are processor time on the CPU and wall-clock time to the end of the device's work elsewhere.
"""

from __future__ import annotations

import copy
import dataclasses
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from decisionrl.benchmarks.speed.many_seeds import ManySeeds
from decisionrl.benchmarks.speed.memory import peak_memory
from decisionrl.benchmarks.speed.plain_inventory import (
    Data,
    PlainCappedBaseStock,
    PlainGNN,
    PlainMLP,
    PlainSimulator,
    ScenarioDataset,
    rollout_loss,
)
from decisionrl.benchmarks.speed.report import Report, command_line
from decisionrl.benchmarks.speed.timing import race, stopwatch
from decisionrl.envs.inventory.scenarios import fresh_scenarios, make_simulator, take
from decisionrl.envs.inventory.setting import Setting, load_setting
from decisionrl.envs.inventory.simulator import Scenario, Simulator
from decisionrl.evaluation.inventory import evaluate_policies
from decisionrl.evaluation.references import reference
from decisionrl.evaluation.statistics import control_variate
from decisionrl.experience.scenarios import FiniteScenarios
from decisionrl.objectives.pathwise import Pathwise
from decisionrl.policies.gnn import InventoryGNN
from decisionrl.policies.inventory_rules import CappedBaseStock
from decisionrl.policies.mlp import InventoryMLP
from decisionrl.recipes.hdpo import hdpo
from decisionrl.recipes.inventory_policies import BUILDERS, Build
from decisionrl.seeding import generator
from decisionrl.trainer import Trainer

SUITE = "speed-inventory"
TOLERANCE = 1e-5
BATCHES = 4
"""Optimizer steps in one timed round."""


@dataclass(frozen=True)
class Profile:
    """How much is measured. periods and batch of the steps; whether compiled variants are timed."""

    rounds: int
    gnn_periods: int
    compiled: bool
    seeds: int
    paper_seconds: float
    evaluation: tuple[int, int]
    memory: tuple[int, int]


FULL = Profile(
    rounds=9,
    gnn_periods=10,
    compiled=True,
    seeds=5,
    paper_seconds=240.0,
    evaluation=(8192, 1500),
    memory=(32768, 5000),
)
QUICK = Profile(
    rounds=6,
    gnn_periods=5,
    compiled=False,
    seeds=1,
    paper_seconds=10.0,
    evaluation=(2048, 800),
    memory=(32768, 300),
)


@dataclass
class Race:
    """A policy of the library and its plain twin, with the same scenarios in the form each of them takes."""

    setting: Setting
    simulator: Simulator
    policy: nn.Module
    plain: nn.Module
    scenario: Scenario
    batch: int
    plain_simulator: PlainSimulator = dataclasses.field(init=False)
    dataset: ScenarioDataset = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        self.plain_simulator = PlainSimulator(lost_demand=self.setting.network.unmet_demand == "lost")
        self.dataset = ScenarioDataset(self.setting.network, self.scenario)

    @classmethod
    def create(
        cls,
        name: str,
        kind: str,
        batch: int,
        periods: int,
        *,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
        batches: int = BATCHES,
    ) -> Race:
        """A network policy ("mlp" or "gnn") of a setting; the graph network as published, without echelon positions."""
        setting = load_setting(name)
        simulator = make_simulator(setting, device=device, dtype=dtype)
        torch.manual_seed(0)
        options = {"echelon": False} if kind == "gnn" else {}
        policy = BUILDERS[kind](Build(setting, simulator), **options).to(device, dtype)
        plain = plain_twin(policy)
        rng = generator(0, "speed", device)
        scenario = fresh_scenarios(setting, simulator, batch=batches * batch, periods=periods, generator=rng)
        return cls(setting, simulator, policy, plain, scenario, batch)

    def batches(self) -> list[tuple[Scenario, Data]]:
        """The same mini-batches in both forms."""
        starts = range(0, self.scenario.batch, self.batch)
        slices = [slice(start, start + self.batch) for start in starts]
        return [
            (take(self.scenario, index), {name: values[index] for name, values in self.dataset.data.items()})
            for index in slices
        ]

    def loader(self) -> Iterator[Data]:
        """One shuffled epoch, sample by sample."""
        device = self.scenario.demand.device
        for data in DataLoader(self.dataset, batch_size=self.batch, shuffle=True):
            yield {name: values.to(device) for name, values in data.items()}

    def check(self) -> None:
        """Raises RuntimeError unless both give the same loss."""
        scenario, data = self.batches()[0]
        with torch.no_grad():
            ours = float(Pathwise(self.simulator)(self.policy, scenario).value)
            plain = float(rollout_loss(self.plain_simulator, self.plain, data))
        if abs(ours - plain) > TOLERANCE * abs(plain):
            raise RuntimeError(f"losses differ: library {ours!r}, plain loop {plain!r}")


def plain_twin(policy: nn.Module) -> nn.Module:
    """The same function of the same weights, computed the plain way."""
    if isinstance(policy, InventoryMLP):
        return PlainMLP(policy)
    if isinstance(policy, InventoryGNN):
        return PlainGNN(policy)
    raise TypeError(f"no plain twin for {type(policy).__name__}")


def network_training(
    report: Report,
    case: str,
    race_: Race,
    *,
    rounds: int,
    target: float,
    compiled: bool,
) -> None:
    """Forward, backward and Adam: the plain loop against the library, eager and compiled."""
    race_.check()
    plain_adam = torch.optim.Adam(race_.plain.parameters(), lr=1e-4)
    batches = race_.batches()
    source = FiniteScenarios(race_.scenario, batch=race_.batch, generator=generator(0, "order"))

    def plain_step(data: Data) -> None:
        plain_adam.zero_grad()
        rollout_loss(race_.plain_simulator, race_.plain, data).backward()  # type: ignore[no-untyped-call]
        plain_adam.step()

    def plain_loaded() -> None:
        for data in race_.loader():
            plain_step(data)

    def plain_at_hand() -> None:
        for _, data in batches:
            plain_step(data)

    runners: dict[str, Callable[[], object]] = {"plain": plain_loaded, "plain-without-loader": plain_at_hand}
    methods = ["eager", "compiled"] if compiled else ["eager"]
    for method in methods:
        policy = copy.deepcopy(race_.policy)
        step = _library_step(race_.simulator, policy, compiled=method == "compiled")
        if method == "compiled":
            seconds = stopwatch(partial(step, batches[0][0]))
            report.add(case, method, "compile_seconds", seconds)
        runners[method] = lambda step=step: [step(source.sample()) for _ in batches]  # type: ignore[misc]
        runners[f"{method}-without-loader"] = lambda step=step: [step(s) for s, _ in batches]  # type: ignore[misc]
    measured = {name: [s / len(batches) for s in v] for name, v in race(runners, rounds=rounds).items()}
    for method in methods:
        report.speedup(case, method, measured["plain"], measured[method], target)
        bare = f"{method}-without-loader"
        report.speedup(case, bare, measured["plain-without-loader"], measured[bare], target)


def _library_step(simulator: Simulator, policy: nn.Module, *, compiled: bool) -> Callable[[Scenario], object]:
    adam = torch.optim.Adam(policy.parameters(), lr=1e-4, fused=True)
    objective = Pathwise(simulator, compile=compiled)

    def step(scenario: Scenario) -> None:
        adam.zero_grad()
        objective(policy, scenario).value.backward()  # type: ignore[no-untyped-call]
        adam.step()

    return step


def sweep_race(*, batch: int, periods: int, dtype: torch.dtype = torch.float32) -> tuple[Race, list[nn.Module]]:
    """Eight capped base-stock settings in one rollout, and the same eight as plain policies."""
    setting = load_setting("one_store_lost")
    simulator = make_simulator(setting, dtype=dtype)
    level, cap = torch.linspace(26.3, 33.1, 8, dtype=dtype), torch.linspace(4.3, 8.2, 8, dtype=dtype)
    policy = CappedBaseStock(level=level.view(8, 1, 1), cap=cap.view(8, 1, 1), scale=5.0).to(dtype)
    plain = [PlainCappedBaseStock(policy, index) for index in range(8)]
    scenario = fresh_scenarios(setting, simulator, batch=batch, periods=periods, generator=generator(0, "speed"))
    return Race(setting, simulator, policy, plain[0], scenario, batch), list(plain)


def sweep(report: Report, profile: Profile) -> None:
    """A sweep over eight parameter settings: one rollout against eight, for evaluation and with gradients."""
    race_, settings = sweep_race(batch=4096, periods=50)
    data = dict(race_.dataset.data)

    def costs() -> Tensor:
        return race_.simulator.rollout(race_.policy, race_.scenario).cost.mean((0, 2))

    def plain_costs(loaded: bool) -> list[Tensor]:
        batches = race_.loader if loaded else lambda: iter([data])
        return [rollout_loss(race_.plain_simulator, plain, batch) for plain in settings for batch in batches()]

    compiled_costs = torch.compile(costs, dynamic=False) if profile.compiled else None
    for mode in ("forward", "forward-backward"):
        gradients = mode == "forward-backward"

        def run(function: Callable[[], Tensor | list[Tensor]], gradients: bool = gradients) -> Tensor:
            with torch.set_grad_enabled(gradients):
                values = function()
                values = values if isinstance(values, Tensor) else torch.stack(values)
                if gradients:
                    for module in (race_.policy, *settings):
                        module.zero_grad()
                    values.sum().backward()  # type: ignore[no-untyped-call]
                return values.detach()

        runners: dict[str, Callable[[], object]] = {
            "plain": partial(run, partial(plain_costs, True)),
            "plain-without-loader": partial(run, partial(plain_costs, False)),
            "eager": partial(run, costs),
        }
        case = f"sweep-8x4096-{mode}"
        difference = float((run(costs) / run(partial(plain_costs, False)) - 1).abs().max())
        if difference > TOLERANCE:
            raise RuntimeError(f"losses of the sweep differ by {difference:.2g}")
        if compiled_costs is not None:
            seconds = stopwatch(partial(run, compiled_costs))
            report.add(case, "compiled", "compile_seconds", seconds)
            runners["compiled"] = partial(run, compiled_costs)
        measured = race(runners, rounds=profile.rounds)
        target = None if gradients else 20.0
        for method in ("eager", "compiled"):
            if method in measured:
                report.speedup(case, method, measured["plain"], measured[method], target)
                bare = f"{method}-without-loader"
                report.speedup(case, bare, measured["plain-without-loader"], measured[method], target)


def learning(report: Report, profile: Profile) -> None:
    """From random weights to the optimum of one_store_lost: the recipe's protocol, and the paper's beside it."""
    setting = load_setting("one_store_lost")
    simulator = make_simulator(setting)
    optimum = reference(setting, simulator)
    assert optimum is not None
    assert optimum.control is not None
    policies: dict[str, nn.Module] = {}
    seconds: dict[str, float] = {}
    for seed in range(profile.seeds):
        start = time.process_time()
        experiment = hdpo(setting=setting, seed=seed)
        Trainer(experiment).fit(int(experiment.config["steps"]))
        seconds[f"hdpo-{seed}"] = time.process_time() - start
        policies[f"hdpo-{seed}"] = experiment.policy
    start = time.process_time()
    policies["paper-0"] = train_as_paper(seconds=profile.paper_seconds)
    seconds["paper-0"] = time.process_time() - start

    scenarios, periods = profile.evaluation
    results = evaluate_policies(
        {**policies, "optimal": optimum.control},
        setting,
        simulator,
        scenarios=scenarios,
        periods=periods,
        warmup=periods // 5,
        seed=1,
    )
    case, within = "one_store_lost-L4-p9", 0
    for name in policies:
        method, seed_text = name.split("-")
        rng = np.random.default_rng(0)
        cost = control_variate(results[name].cost, results["optimal"].cost, known_mean=optimum.value, rng=rng)
        limits = {"low": cost.low, "high": cost.high, "n": cost.n}
        report.add(case, method, "mean_cost", cost.value, exact=optimum.value, seed=int(seed_text), **limits)  # type: ignore[arg-type]
        target = 6.0 if method == "hdpo" else None
        report.add(case, method, "cpu_seconds", seconds[name], target=target, seed=int(seed_text))
        within += method == "hdpo" and cost.value <= 1.0025 * optimum.value and seconds[name] <= 6.0
    report.add(case, "hdpo", "seeds_within_target", within, target=profile.seeds, higher=True, n=profile.seeds)


def train_as_paper(*, seconds: float) -> nn.Module:
    """The paper's protocol for so many processor seconds: fixed sample, batch 8192, raw units, constant rate."""
    experiment = hdpo(setting="one_store_lost", policy="mlp", protocol="paper", steps=1)
    start = time.process_time()
    while time.process_time() - start < seconds:
        experiment.learner.update(experiment.source.sample())
    return experiment.policy


def memory(report: Report, profile: Profile) -> None:
    """Peak resident memory of a long evaluation of a base-stock rule."""
    scenarios, periods = profile.memory
    measured = peak_memory(scenarios=scenarios, periods=periods)
    case = f"evaluation-{scenarios}x{periods}"
    report.add(case, "base_stock", "peak_gb", measured["peak"], target=2.0, seconds=measured["seconds"])
    report.add(case, "base_stock", "imported_gb", measured["imported"])


def many_seeds(report: Report, device: str, rounds: int, *, batch: int, periods: int) -> None:
    """Eight seeds of the MLP: one vmapped rollout and backward pass against one after another."""
    race_ = Race.create("one_store_lost", "mlp", batch, periods, device=device, batches=1)
    build = Build(race_.setting, race_.simulator)
    policies = [BUILDERS["mlp"](build).to(device) for _ in range(8)]
    together, objective = ManySeeds(policies, race_.simulator), Pathwise(race_.simulator)

    def one_by_one() -> None:
        for policy in policies:
            policy.zero_grad()
            objective(policy, race_.scenario).value.backward()  # type: ignore[no-untyped-call]

    def at_once() -> None:
        for parameter in together.parameters.values():
            parameter.grad = None
        together.costs(race_.scenario).sum().backward()  # type: ignore[no-untyped-call]

    measured = race({"apart": one_by_one, "together": at_once}, rounds=rounds, device=device)
    report.speedup(f"seeds-8-mlp-B{batch}", "vmap", measured["apart"], measured["together"], None)


def captured_training(report: Report, case: str, race_: Race, *, device: str, rounds: int) -> None:
    """A whole training step as one CUDA graph against the plain loop on the same device."""
    race_.check()
    scenario, data = race_.batches()[0]
    plain_adam = torch.optim.Adam(race_.plain.parameters(), lr=1e-4)
    replay = capture_step(race_.simulator, race_.policy, scenario)

    def plain_step() -> None:
        plain_adam.zero_grad()
        rollout_loss(race_.plain_simulator, race_.plain, data).backward()  # type: ignore[no-untyped-call]
        plain_adam.step()

    measured = race({"plain": plain_step, "captured": replay}, rounds=rounds, device=device)
    report.speedup(case, "cuda-graph-without-loader", measured["plain"], measured["captured"], 20.0)


def capture_step(simulator: Simulator, policy: nn.Module, scenario: Scenario) -> Callable[[], None]:
    """Forward, backward and Adam as one CUDA graph; new data is copied into ``scenario``'s tensors to replay it."""
    adam = torch.optim.Adam(policy.parameters(), lr=1e-4, fused=True, capturable=True)
    objective = Pathwise(simulator)

    def step() -> None:
        adam.zero_grad(set_to_none=True)
        objective(policy, scenario).value.backward()  # type: ignore[no-untyped-call]
        adam.step()

    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # what is allocated on first use must exist before the capture
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def measure_on_cpu(report: Report, profile: Profile) -> None:
    """Everything that needs no accelerator."""
    sweep(report, profile)
    for batch, target in ((64, 3.0), (1024, 1.7)):
        race_ = Race.create("one_store_lost", "mlp", batch, 50)
        network_training(
            report, f"mlp-B{batch}", race_, rounds=profile.rounds, target=target, compiled=profile.compiled
        )
    for batch in (64, 1024):
        race_ = Race.create("one_warehouse_lost_demand", "gnn", batch, profile.gnn_periods)
        network_training(report, f"gnn-B{batch}", race_, rounds=profile.rounds, target=2.0, compiled=profile.compiled)
    many_seeds(report, "cpu", profile.rounds, batch=64, periods=20)
    memory(report, profile)
    learning(report, profile)


def measure_on_device(report: Report, profile: Profile, device: str) -> None:
    """Captured training steps, and several seeds at once."""
    for name, kind, periods in (("one_store_lost", "mlp", 50), ("one_warehouse_lost_demand", "gnn", 50)):
        race_ = Race.create(name, kind, 1024, periods, device=device, batches=1)
        captured_training(report, f"{kind}-B1024", race_, device=device, rounds=profile.rounds)
    many_seeds(report, device, profile.rounds, batch=1024, periods=50)


def main(arguments: list[str] | None = None) -> None:
    """The command line; quick leaves compiled variants out."""

    def measured(report: Report, quick: bool, device: str) -> None:
        profile = QUICK if quick else FULL
        if device == "cpu":
            measure_on_cpu(report, profile)
        else:
            measure_on_device(report, profile, device)

    command_line(SUITE, __doc__, measured, arguments)


if __name__ == "__main__":
    main()
