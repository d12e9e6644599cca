"""What happens to a rollout once, before it is learned from: reward shaping, filters, advantages.

A step of the pipeline is ``step(batch) -> batch``. One that has state across batches also has ``state_dict`` and
``load_state_dict``, and the source that owns the pipeline saves it.
"""

from collections.abc import Callable

from decisionrl.experience.trajectories import Trajectories

PipelineStep = Callable[[Trajectories], Trajectories]

__all__ = ["PipelineStep"]
