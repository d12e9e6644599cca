"""What counts as a success, for methods that tell easy starts from hard ones."""

from __future__ import annotations

import gymnasium

from decisionrl.recipes.control import Control


def success_return(control: Control, success: float | None) -> float:
    """The return from which an episode succeeds: ``success``, by default the environment's reward threshold.

    Raises:
        ValueError: there is neither.
    """
    if success is None and isinstance(control.env, str) and control.env in gymnasium.registry:
        success = gymnasium.spec(control.env).reward_threshold
    if success is None:
        raise ValueError(f"success = None; valid: the return from which an episode of {control.world.name} succeeds")
    return success
