"""Films of a trained policy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from decisionrl.envs.copies import Copies
from decisionrl.envs.make import env_maker, env_name
from decisionrl.envs.world import EnvironmentFault
from decisionrl.experience.acting import ActingPolicy


class VideoError(ValueError):
    """An environment or a file name that no film can be made of."""


def film(
    policy: ActingPolicy, env: Any, path: Path, *, env_options: dict[str, Any] | None = None, seed: int = 1
) -> Path:
    """Play one episode with the policy's deterministic actions and write its frames to ``path`` (.mp4 or .gif).

    Raises:
        VideoError: the environment has no ``rgb_array`` rendering, or the file name no known ending.
        ImportError: imageio, of the extra ``decisionrl[control]``, is not installed.
    """
    if path.suffix not in (".mp4", ".gif"):
        raise VideoError(f"video = {str(path)!r}; valid: a name that ends in .mp4 or .gif")
    try:
        import imageio.v2 as imageio
    except ImportError as error:
        raise ImportError("films need the extra: pip install 'decisionrl[control]'") from error
    frames, rate = _frames(policy, env, env_options or {}, seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    speed: dict[str, Any] = {"duration": 1000 / rate} if path.suffix == ".gif" else {"fps": rate, "macro_block_size": 2}
    imageio.mimsave(path, frames, **speed)
    return path


def _frames(policy: ActingPolicy, env: Any, options: dict[str, Any], seed: int) -> tuple[list[Any], float]:
    make, name = env_maker(env, {**options, "render_mode": "rgb_array"}), env_name(env)
    try:
        world = Copies(make, 1, name=name)
    except EnvironmentFault as error:
        raise VideoError(f"{name} cannot be filmed, which takes render_mode='rgb_array': {error}") from error
    single = world.envs[0]
    modes = single.metadata.get("render_modes", [])
    if "rgb_array" not in modes:
        raise VideoError(f"{name} cannot be filmed: its render modes are {modes}; valid is one with 'rgb_array'")
    observation, state = world.reset([seed]), policy.initial_state(1)
    frames, over = [single.render()], False
    with torch.no_grad():
        while not over:
            action, state = policy.act(observation, state)
            step = world.step(action)
            observation, over = step.observation, bool(step.terminated | step.truncated)
            frames.append(single.render())
    world.close()
    return [np.asarray(frame) for frame in frames], float(single.metadata.get("render_fps") or 30)
