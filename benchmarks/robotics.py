"""The robotics suite: tasks that need memory, learned from demonstrations by policies with long contexts.

Case names are task-ToN/mode: ``return_side-To8/predict``. N is how many observations the policy sees; with ``sK``
behind it they are K steps apart; with ``-epsilon`` the network says the noise, as the paper's does, instead of the
actions. Modes: ``predict`` trains past action tokens (past-token prediction, arXiv 2505.09561), ``unsupervised`` has
them in the decoder untrained, the paper's baseline, ``absent`` has none. ``task-oracle`` sees what is hidden, with a
context of two observations: if that fails, the training is too short for the comparison to mean anything. CueReach has
noise in every move: without it no demonstration shows what to do a little beside the neutral place, and policies follow
their own drift whatever they see.
Demonstrations are recorded anew for every seed and kept under ``OUT/data``. The rows:

- ``success``: share of 400 episodes (Meta-World: 100), the same starts for every method and seed;
  ``success_5_candidates`` with self-verification by the past tokens.
- ``predictability``: how well an action tells the next one, of the experts' actions over the policy's; 1 is the
  experts', more is a copycat.
- ``validation_error``: squared error of the sampled present action on demonstrations that were not trained on, in
  normalized units; ``past_error`` that of the past tokens.
- ``training_seconds``, ``cpu_seconds``: of the training alone, on one thread. On pixels those of everything that a
  method needs: ``cached`` counts its short-context encoder and the cache, ``head_seconds`` its last stage alone.
- ``latency_ms``: wall time of a decision for one robot; ``latency_ms_5_candidates``.
- ``evaluation_seconds``: wall time of playing those episodes, batched.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from decisionrl.benchmarks.control_training import Clock, Record, one_thread, train
from decisionrl.benchmarks.recorded import recorded
from decisionrl.benchmarks.suite import Case, CaseContext, CaseResult, Measurement
from decisionrl.checkpoint import save_weights
from decisionrl.envs.make import make_world
from decisionrl.envs.world import World
from decisionrl.evaluation.imitation import token_errors
from decisionrl.evaluation.predictability import action_predictability
from decisionrl.evaluation.series import Curve, Series
from decisionrl.evaluation.statistics import bootstrap_mean
from decisionrl.experience.acting import ActingPolicy
from decisionrl.experience.context_windows import ContextWindows
from decisionrl.experience.data import open_data
from decisionrl.experience.embeddings import embedded
from decisionrl.experience.episodes import Played, Task, play
from decisionrl.experience.store import EpisodeStore
from decisionrl.experiment import Experiment
from decisionrl.modes import evaluating
from decisionrl.policies.diffusion import DiffusionPolicy
from decisionrl.policies.encoded import EncodedPolicy
from decisionrl.recipes import recipe
from decisionrl.recipes.offline_presets import PRESETS
from decisionrl.recording.demonstrations import TASKS, demonstrations

EVALUATION_SEED = 20_261_123
CANDIDATES = 5
CURVE_POINTS = 6
CURVE_EPISODES = 50
HELD_OUT = 10_000
"""Added to the seed of a training for demonstrations that it does not see."""
HELD_OUT_EPISODES = 50
WINDOWS = 500
"""Windows of them whose actions are sampled at a time."""

DECISIONS = 20
"""Decisions whose median is the latency."""

SOLVED = 0.9
"""What the oracle has to reach for a comparison to count."""


@dataclass(frozen=True, kw_only=True)
class MemoryData:
    """Demonstrations of a task that needs memory, recorded anew for every seed.

    options: of the environment. episodes: that are trained on. measured: that policies are measured in, and copies: of
    them played side by side.
    """

    env: str
    options: Mapping[str, Any] = field(default_factory=dict)
    episodes: int = 500
    measured: int = 400
    copies: int = 400

    def __call__(self, context: CaseContext, *, seed: int, episodes: int | None = None) -> Path:
        """Where they are."""
        episodes = self.episodes if episodes is None else episodes
        words = [f"{key}={value}" for key, value in sorted(self.options.items())]
        root = context.directory.parent.parent / "data" / "-".join([*words, str(episodes)])
        stem = TASKS[self.env].replace("_", "-")
        return recorded(
            root,
            f"{stem}-demonstrations-seed{seed}",
            demonstrations,
            env=self.env,
            env_options=dict(self.options),
            episodes=episodes,
            seed=seed,
        )


@dataclass(frozen=True, kw_only=True)
class MemoryCase:
    """Train ``recipe`` on the demonstrations, then measure everything about the policy."""

    data: MemoryData
    recipe: str = "ptp"
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, context: CaseContext) -> CaseResult:
        with one_thread():
            data = self.data(context, seed=context.seed)
            experiment = recipe(self.recipe)(data=str(data), seed=context.seed, device=context.device, **self.arguments)
            record = trained(experiment, context)
            held_out = open_data(self.data(context, seed=HELD_OUT + context.seed, episodes=HELD_OUT_EPISODES))
            rows = [*measured(experiment, self.data, held_out.to(context.device)), *_costs(record.clock)]
        return CaseResult(rows, Series(curve=_curve(record)))


@dataclass(frozen=True, kw_only=True)
class PixelsCase:
    """The same long context over images, trained from end to end, or on cached embeddings.

    short: arguments of the short-context training whose encoder is kept. long: of the long one. cached: see above.
    """

    data: MemoryData
    short: Mapping[str, Any]
    long: Mapping[str, Any]
    cached: bool

    def __call__(self, context: CaseContext) -> CaseResult:
        with one_thread():
            data = self.data(context, seed=context.seed)
            whole, head, arguments = Clock(), Clock(), dict(self.long)
            if self.cached:
                short = recipe("diffusion_policy")(
                    data=str(data), seed=context.seed, device=context.device, **self.short
                )
                first = trained(short, context, end=0.5)
                whole.wall, whole.cpu = first.clock.wall, first.clock.cpu
                context.directory.mkdir(parents=True, exist_ok=True)
                save_weights(short.policy, context.directory / "short.safetensors")
                arguments["encoder"] = str(context.directory / "short.safetensors")
            whole.start()
            experiment = recipe("ptp")(data=str(data), seed=context.seed, device=context.device, **arguments)
            whole.stop()  # embedding is a part of the training
            record = trained(experiment, context, begin=0.5 if self.cached else 0.0)
            head.wall, head.cpu = record.clock.wall, record.clock.cpu
            whole.wall += head.wall
            whole.cpu += head.cpu
            held_out = open_data(self.data(context, seed=HELD_OUT + context.seed, episodes=HELD_OUT_EPISODES))
            rows = [
                *measured(experiment, self.data, held_out.to(context.device)),
                *_costs(whole),
                Measurement("head_seconds", head.wall),
            ]
        return CaseResult(rows, Series(curve=_curve(record)))


def trained(experiment: Experiment, context: CaseContext, *, begin: float = 0.0, end: float = 1.0) -> Record:
    """Train as long as the recipe says, with the success over the updates; begin, end: of the case's progress."""
    assert experiment.evaluate is not None
    evaluate = experiment.evaluate

    def success(policy: Any) -> float:
        return float(evaluate(policy, episodes=CURVE_EPISODES, seed=EVALUATION_SEED + 1)["mean_return"])

    def progress(done: float, text: str) -> None:
        context.progress(begin + (end - begin) * done, text)

    return train(experiment, experiment.config["steps"], progress, points=CURVE_POINTS, measure=success)


def measured(experiment: Experiment, data: MemoryData, held_out: EpisodeStore) -> list[Measurement]:
    """All rows about a trained policy."""
    policy, seed = experiment.policy, experiment.config["seed"]
    head = policy.head if isinstance(policy, EncodedPolicy) else policy
    assert isinstance(head, DiffusionPolicy)
    demonstrated = open_data(experiment.config["data"])
    seconds, played = played_episodes(experiment, data)
    rows = [success("success", played, reference=demonstrated.info["success_rate"])]
    remembers = head.first_trained < head.present and head.schedule is not None
    if remembers:
        with several_candidates(head):
            rows.append(success(f"success_{CANDIDATES}_candidates", played_episodes(experiment, data)[1]))
    found = action_predictability(demonstrated, played, seed=seed)
    rows.append(Measurement("predictability", found.ratio, 1.0, "oracle"))

    if isinstance(policy, EncodedPolicy):
        held_out = embedded(held_out, policy.encoder)
    windows = ContextWindows(episodes=held_out, context=head.context, size=WINDOWS)
    errors = token_errors(head, windows, seed=seed)
    rows.append(Measurement("validation_error", errors["executed"]))
    if errors["past"] is not None:
        rows.append(Measurement("past_error", errors["past"]))

    rows.append(Measurement("latency_ms", latency(experiment)))
    if remembers:
        with several_candidates(head):
            rows.append(Measurement(f"latency_ms_{CANDIDATES}_candidates", latency(experiment)))
    return [*rows, Measurement("evaluation_seconds", seconds)]


def played_episodes(experiment: Experiment, data: MemoryData) -> tuple[float, Played]:
    """Wall seconds, and the episodes that every policy is measured in."""
    world = world_of(experiment, data.copies)
    tasks = [Task(EVALUATION_SEED + number) for number in range(data.measured)]
    began = time.perf_counter()
    with evaluating(experiment.policy):
        played = play(world, acting(experiment), tasks, generator=None)
    seconds = time.perf_counter() - began
    world.close()
    return seconds, played


def success(metric: str, played: Played, *, reference: float | None = None) -> Measurement:
    """The share of episodes with a reward, which all are successes."""
    estimate = bootstrap_mean(played.outcome.double().cpu().numpy(), rng=np.random.default_rng(EVALUATION_SEED))
    return Measurement(metric, estimate, reference, "none" if reference is None else "oracle", better="higher")


@contextmanager
def several_candidates(policy: DiffusionPolicy) -> Iterator[None]:
    """With self-verification."""
    before, policy.candidates = policy.candidates, CANDIDATES
    try:
        yield
    finally:
        policy.candidates = before


def latency(experiment: Experiment) -> float:
    """Milliseconds of a decision for one robot, when its context is full: the median of several."""
    policy, head = acting(experiment), experiment.policy
    head = head.head if isinstance(head, EncodedPolicy) else head
    assert isinstance(head, DiffusionPolicy)
    world = world_of(experiment, 1)
    observation, state = world.reset([EVALUATION_SEED]), policy.initial_state(1)
    on_cuda = world.device.type == "cuda"
    seconds = []
    with torch.no_grad(), evaluating(experiment.policy):
        for _ in range(head.context.frames + DECISIONS):
            began = time.perf_counter()
            _, state = policy.act(observation, state)
            if on_cuda:
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - began)
    world.close()
    return 1000 * float(np.median(seconds[-DECISIONS:]))


def acting(experiment: Experiment) -> ActingPolicy:
    """The policy, as who plays episodes sees it."""
    return cast(ActingPolicy, experiment.policy)


def world_of(experiment: Experiment, copies: int) -> World:
    """Copies of the environment, where the policy is."""
    config, device = experiment.config, next(experiment.policy.parameters()).device
    return make_world(config["env"], num_envs=copies, options=config["env_options"], device=device)


def _costs(clock: Clock) -> list[Measurement]:
    return [Measurement("training_seconds", clock.wall), Measurement("cpu_seconds", clock.cpu)]


def _curve(record: Record) -> Curve:
    steps, _, values = (list(each) for each in zip(*record.at, strict=True))
    return Curve(x_label="updates", y_label="success", x=steps, y=values)


# ---------------------------------------------------------------------------------------------- the cases

CONTEXTS = (1, 2, 4, 8, 16)
MODES = ("predict", "unsupervised", "absent")

RETURN_SIDE = MemoryData(env="decisionrl/ReturnSide-v0")
COUNT_VISITS = MemoryData(env="decisionrl/CountVisits-v0")
CUE_REACH = MemoryData(env="decisionrl/MWCueReach-v0", options={"noise": 0.3}, measured=100, copies=50)
PICK_AND_RETURN = MemoryData(env="decisionrl/MWPickAndReturn-v0", measured=100, copies=50)
PIXELS = MemoryData(env="decisionrl/ReturnSide-v0", options={"pixels": True})

PRESET = {**PRESETS["demonstrations"]["ptp"], "steps": 6000}
EPSILON: Mapping[str, Any] = {"prediction": "epsilon"}
"""What the paper's network says is the noise, which takes it longer to learn than the actions themselves."""

LONGER: Mapping[str, Any] = {"steps": 10_000}
"""Where what is remembered decides one step of 67."""

WIDER: Mapping[str, Any] = {"sizes": "medium", "steps": 20_000}
"""Where an object is to be grasped: with the small network the oracle succeeded in 0.62 of the episodes."""

VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "predict_1": {"past_steps": 1},
    "predict_4": {"past_steps": 4},
    "regression": {"head": "regression"},
    "regression_unsupervised": {"head": "regression", "past_tokens": "unsupervised"},
    "unet": {"network": "unet", "future": 5},
    "unet_unsupervised": {"network": "unet", "future": 5, "past_tokens": "unsupervised"},
}
"""Some past tokens only, no diffusion, or another network, whose tokens are an even number."""


def cases(profile: str, data: Path | None) -> list[Case]:
    """All cases of a profile, in the order of the report; there is no use for ``data``."""
    if profile == "quick":
        return [_oracle(RETURN_SIDE), *_modes(RETURN_SIDE, 2, MODES[:1]), *_modes(RETURN_SIDE, 8)]
    return [
        *_ladder(RETURN_SIDE, CONTEXTS),
        *(case for observations in (8, 16) for case in _modes(RETURN_SIDE, observations, suffix="-epsilon", **EPSILON)),
        *_variants(RETURN_SIDE, 8),
        *_ladder(COUNT_VISITS, (*CONTEXTS[:-1], 12, 16)),
        *_modes(COUNT_VISITS, 12, suffix="-epsilon", **EPSILON),
        _oracle(CUE_REACH, **LONGER),
        *_modes(CUE_REACH, 16, MODES[:1], **LONGER),
        *_modes(CUE_REACH, 16, stride=4, **LONGER),
        _oracle(PICK_AND_RETURN, **WIDER),
        *_modes(PICK_AND_RETURN, 2, MODES[:1], **WIDER),
        *_modes(PICK_AND_RETURN, 16, stride=4, **WIDER),
        *_pixels(),
    ]


def _ladder(data: MemoryData, contexts: Sequence[int]) -> list[Case]:
    """The oracle, and every length of the context in every mode; one observation has no past tokens."""
    rungs = [case for n in contexts for case in _modes(data, n, MODES if n > 1 else MODES[:1])]
    return [_oracle(data), *rungs]


def _modes(
    data: MemoryData,
    observations: int,
    modes: Sequence[str] = MODES,
    *,
    stride: int = 1,
    suffix: str = "",
    **arguments: Any,
) -> list[Case]:
    name = f"{TASKS[data.env]}-To{observations}{f's{stride}' if stride > 1 else ''}{suffix}"
    context = {"observations": observations, "stride": stride}
    return [_case(name, mode, data, {**context, "past_tokens": mode, **arguments}) for mode in modes]


def _oracle(data: MemoryData, **arguments: Any) -> Case:
    seeing = replace(data, options={**data.options, "oracle": True})
    context = {"observations": 2, "past_tokens": "predict"}
    return _case(f"{TASKS[data.env]}-oracle", "predict", seeing, {**context, **arguments})


def _variants(data: MemoryData, observations: int) -> list[Case]:
    name = f"{TASKS[data.env]}-To{observations}"
    return [
        _case(name, method, data, {"observations": observations, **arguments}) for method, arguments in VARIANTS.items()
    ]


def _case(name: str, method: str, data: MemoryData, arguments: Mapping[str, Any]) -> Case:
    """A case with its preset spelled out, so that results are made anew when that changes."""
    return Case(name, method, MemoryCase(data=data, arguments={**PRESET, **arguments}), cost=arguments["observations"])


def _pixels() -> list[Case]:
    short = {**PRESETS["demonstrations"]["diffusion_policy"], "future": 8, "steps": 1000}
    chosen = [
        Case(
            "return_side_pixels-To16",
            "cached" if cached else "end_to_end",
            PixelsCase(data=PIXELS, short=short, long={**PRESET, "observations": 16}, cached=cached),
            cost=10.0 if cached else 100.0,
        )
        for cached in (True, False)
    ]
    alone = MemoryCase(data=PIXELS, recipe="diffusion_policy", arguments=short)
    return [*chosen, Case("return_side_pixels-To2", "predict", alone, cost=10.0)]
