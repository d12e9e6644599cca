"""Train the quantile forecaster of a setting's series: sliding windows, pinball loss, chosen on the dev columns."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from decisionrl.callbacks import Evaluate, LearningRateSchedule
from decisionrl.checkpoint import load_weights
from decisionrl.envs.inventory.demand import DemandError, SeriesDemand
from decisionrl.envs.inventory.setting import Setting
from decisionrl.experience.forecasts import ForecastData, ForecastSource
from decisionrl.experiment import Experiment
from decisionrl.learner import GradientLearner
from decisionrl.objectives.pinball import Pinball
from decisionrl.policies.quantile import QuantileForecaster
from decisionrl.recipes.schedules import one_cycle
from decisionrl.seeding import generator
from decisionrl.trainer import Trainer

METADATA = {
    "title": "Quantile forecasts of demand over a lead time",
    "arxiv": "2306.11246",
    "changes": "quantiles relative to a series' own recent mean, in increasing steps, so that they never cross",
    "limit": "with constant inputs: the empirical quantiles",
    "kinds": "inventory",
}


def forecaster(
    setting: Setting,
    *,
    steps: int = 1500,
    batch: int = 1024,
    learning_rate: float = 0.005,
    hidden: Sequence[int] = (64, 64),
    horizons: Sequence[int] | None = None,
    seed: int = 0,
) -> Experiment:
    """A forecaster of a setting's series, windows of its train columns, and the pinball learner.

    horizons: in periods; default those that the setting's newsvendor rules need. Raises DemandError where the
    setting has no series.
    """
    needed = tuple(horizons or forecast_horizons(setting))
    data = ForecastData(setting, "train", horizons=needed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(generator(seed, "weights").initial_seed() % 2**31))
        network = QuantileForecaster(history=setting.history, horizons=needed, hidden=hidden)
    optimizer = torch.optim.Adam(network.parameters(), lr=learning_rate, fused=True)
    config = {
        "recipe": "forecaster",
        "setting": setting.name,
        "steps": steps,
        "batch": batch,
        "learning_rate": learning_rate,
        "hidden": list(hidden),
        "horizons": list(needed),
        "seed": seed,
    }
    return Experiment(
        policy=network,
        source=ForecastSource(data, batch=batch, generator=generator(seed, "windows")),
        learner=GradientLearner(network, Pinball(), optimizer, clip_norm=1.0),
        callbacks=(LearningRateSchedule(one_cycle(steps, learning_rate)),),
        config=config,
        metadata=METADATA,
    )


def train_forecaster(
    setting: Setting,
    *,
    steps: int = 1500,
    batch: int = 1024,
    learning_rate: float = 0.005,
    hidden: Sequence[int] = (64, 64),
    horizons: Sequence[int] | None = None,
    seed: int = 0,
) -> QuantileForecaster:
    """Train :func:`forecaster` and return the weights with the least pinball loss on the dev columns.

    The same arguments and data give the same weights, from a cache after the first time in a process: rules
    that are compared then forecast alike. The caller gets the cached module and must not train it.
    """
    key = (data_digest(setting), steps, batch, learning_rate, tuple(hidden), tuple(horizons or ()), seed)
    if key not in _TRAINED:
        experiment = forecaster(
            setting,
            steps=steps,
            batch=batch,
            learning_rate=learning_rate,
            hidden=hidden,
            horizons=horizons,
            seed=seed,
        )
        network = experiment.policy
        assert isinstance(network, QuantileForecaster)
        dev = ForecastData(setting, "dev", horizons=network.horizons, skip=setting.phases["dev"].ignore)
        cases = dev.take(torch.randperm(len(dev), generator=generator(seed, "dev"))[:DEV_CASES])
        objective = Pinball()
        evaluate = Evaluate(
            lambda policy: {"loss": float(objective(policy, cases).value)},
            every=max(1, steps // 15),
            name="dev",
            keep_best="dev/loss",
        )
        with tempfile.TemporaryDirectory() as folder:
            Trainer(experiment, callbacks=[evaluate], out=Path(folder) / "run").fit(steps)
            load_weights(network, Path(folder) / "run" / "best.safetensors")
        _TRAINED[key] = network.eval().requires_grad_(False)
    return _TRAINED[key]


DEV_CASES = 20_000
"""The forecaster is chosen on so many random dev cases."""

_TRAINED: dict[tuple[object, ...], QuantileForecaster] = {}


def forecast_horizons(setting: Setting) -> list[int]:
    """Horizons that newsvendor rules for the setting may need, in periods.

    L + 1 for each lane into a store and L_w + L + 1 for its share of the echelon of the warehouse behind it;
    for every lead time of lanes that occurs, where they vary by scenario.
    """
    network, varying = setting.network, setting.lead_time_range
    inlet = {j: e for e, (i, j) in enumerate(zip(network.edge_source, network.edge_destination, strict=True)) if i < 0}
    needed: set[int] = set()
    for edge, (behind, node) in enumerate(zip(network.edge_source, network.edge_destination, strict=True)):
        if node < network.num_warehouses:
            continue
        for lead in range(varying[0], varying[1] + 1) if varying else [network.lead_times[edge]]:
            needed.add(lead + 1)
            if behind >= 0:
                needed.add(network.lead_times[inlet[behind]] + lead + 1)
    return sorted(needed)


def data_digest(setting: Setting) -> str:
    """Identifies the series, their calendar, their splits and the lead times to forecast over."""
    demand = setting.demand
    if not isinstance(demand, SeriesDemand):
        raise DemandError(f"setting {setting.name!r} has no series to forecast; valid: demand.kind = 'series'")
    digest = hashlib.blake2b(demand.table.contiguous().numpy().tobytes(), digest_size=16)
    about = (tuple(demand.table.shape), demand.start, setting.history, sorted(setting.phases.items()))
    digest.update(repr((about, forecast_horizons(setting))).encode())
    return digest.hexdigest()
