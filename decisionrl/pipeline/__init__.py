"""What happens to a rollout once, before it is learned from: reward shaping, filters, advantages.

A step of the pipeline is ``step(batch) -> batch``. One that has state across batches also has ``state_dict`` and
``load_state_dict``, and the source that owns the pipeline saves it; one with ``observe(update)`` hears of the update on
its batch.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from decisionrl.experience.trajectories import Trajectories

PipelineStep = Callable[[Trajectories], Trajectories]


def tell(pipeline: Sequence[PipelineStep], update: Any) -> None:
    """Let the steps that have ``observe`` hear of the update on their batch."""
    for step in pipeline:
        if hasattr(step, "observe"):
            step.observe(update)


def states(pipeline: Sequence[PipelineStep]) -> dict[str, Any]:
    """The states of the steps that have one, by position and class."""
    return {_key(i, step): step.state_dict() for i, step in enumerate(pipeline) if hasattr(step, "state_dict")}


def load_states(pipeline: Sequence[PipelineStep], saved: Mapping[str, Any]) -> None:
    """Continue from ``states`` of an equal pipeline; ValueError if it is not."""
    stateful = {_key(i, step): step for i, step in enumerate(pipeline) if hasattr(step, "load_state_dict")}
    if stateful.keys() != saved.keys():
        raise ValueError(f"pipeline: the saved one has {sorted(saved)}, this one has {sorted(stateful)}")
    for key, step in stateful.items():
        step.load_state_dict(saved[key])


def _key(position: int, step: PipelineStep) -> str:
    return f"{position} {type(step).__name__}"
