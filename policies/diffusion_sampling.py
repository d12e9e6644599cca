"""How a diffusion policy adds noise to actions and takes it away, with random numbers that belong to rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

PredictionType = Literal["epsilon", "sample"]
Sampler = Literal["ddpm", "ddim"]


class DiffusionSchedule:
    """``A_k = sqrt(abar_k) A + sqrt(1 - abar_k) eps`` for k = 0, ..., ``train_steps`` - 1, and the way back.

    abar is the squared cosine schedule. "ddpm" (arXiv 2006.11239, the smaller of its two variances) is run as DDIM
    with eta = 1 and the noise worked out anew from the clipped prediction, which is the same chain; "ddim"
    (arXiv 2010.02502) has eta = 0, so that nothing but the initial noise is random.

    Args:
        prediction: what the network says: the noise "epsilon", or the clean actions, "sample".
        sampler: see above.
        train_steps, inference_steps: of the schedule, and of the way back, which visits equally spaced ones from
            the last multiple of ``train_steps // inference_steps`` down to 0.
        clip: predicted clean actions are clipped to [-1, 1].

    Raises:
        ValueError: an option has no valid value.
        ImportError: diffusers is not installed.
    """

    def __init__(
        self,
        *,
        prediction: PredictionType = "epsilon",
        sampler: Sampler = "ddpm",
        train_steps: int = 100,
        inference_steps: int = 100,
        clip: bool = True,
    ) -> None:
        for name, value, valid in (
            ("prediction", prediction, get_args(PredictionType)),
            ("sampler", sampler, get_args(Sampler)),
        ):
            if value not in valid:
                raise ValueError(f"{name} = {value!r}; valid: {', '.join(valid)}")
        if not 1 <= inference_steps <= train_steps:
            raise ValueError(f"inference_steps = {inference_steps}; valid: 1 to train_steps = {train_steps}")
        self.prediction, self.sampler, self.train_steps = prediction, sampler, train_steps
        self._scheduler = _scheduler(train_steps, prediction, clip)
        self._scheduler.set_timesteps(inference_steps)
        self.timesteps: list[int] = self._scheduler.timesteps.tolist()

    def add_noise(
        self, actions: Float[Tensor, "batch T Da"], noise: Float[Tensor, "batch T Da"], step: Int[Tensor, " batch"]
    ) -> Float[Tensor, "batch T Da"]:
        """A_k, all tokens of a row at the same step k."""
        noisy: Tensor = self._scheduler.add_noise(actions, noise, step)
        return noisy

    def target(self, actions: Tensor, noise: Tensor) -> Tensor:
        """What the network is to say."""
        return noise if self.prediction == "epsilon" else actions

    def sample(self, predict: Callable[[Tensor, int], Tensor], noise: Callable[[int], Tensor]) -> Tensor:
        """From noise to actions.

        Args:
            predict: ``(A_k, k) -> prediction``.
            noise: standard normals of the actions' shape, number 0 to begin with and, with "ddpm", i for the i-th step.
        """
        eta = float(self.sampler == "ddpm")
        actions = noise(0)
        for i, k in enumerate(self.timesteps, start=1):
            actions = self._scheduler.step(
                predict(actions, k),
                k,
                actions,
                eta=eta,
                use_clipped_model_output=eta > 0,
                variance_noise=noise(i) if eta else None,
                return_dict=False,
            )[0]
        return actions


def row_normals(
    seed: Int[Tensor, " n"], shape: Sequence[int], *, stream: int, dtype: torch.dtype = torch.float32
) -> Float[Tensor, "n ..."]:
    """Standard normals of which each row depends on its own seed and the stream only, however many rows there are.

    A counter goes through the mixing function of SplitMix64 (Steele, Lea and Flood 2014), then Box and Muller.
    """
    size = math.prod(shape)
    counter = torch.arange(1 + stream * size, 1 + (stream + 1) * size, device=seed.device)
    bits = mixed(seed[:, None] + _GOLDEN * counter)
    radius = (-2 * torch.log((_shifted(bits, 32).double() + 0.5) * 2.0**-32)).sqrt()
    angle = (bits & 0xFFFFFFFF).double() * (2 * math.pi * 2.0**-32)
    return (radius * angle.cos()).to(dtype).view(len(seed), *shape)


def row_seeds(seed: Int[Tensor, " n"], count: int) -> Int[Tensor, "n count"]:
    """As many seeds from each; the first ones do not depend on how many there are."""
    return mixed(seed[:, None] + _GOLDEN * torch.arange(count, device=seed.device))


def content_seed(values: Float[Tensor, "n ..."]) -> Int[Tensor, " n"]:
    """A seed for each row that is a function of its numbers, bit by bit."""
    bits = values.flatten(1).double().view(torch.int64)
    return mixed(bits + _GOLDEN * torch.arange(bits.shape[1], device=bits.device)).sum(1)


def mixed(bits: Int[Tensor, ...]) -> Int[Tensor, ...]:
    """The mixing function of SplitMix64; int64 stands for 64 bits without a sign."""
    bits = (bits ^ _shifted(bits, 30)) * (0xBF58476D1CE4E5B9 - 2**64)
    bits = (bits ^ _shifted(bits, 27)) * (0x94D049BB133111EB - 2**64)
    return bits ^ _shifted(bits, 31)


_GOLDEN = 0x9E3779B97F4A7C15 - 2**64


def _shifted(bits: Tensor, places: int) -> Tensor:
    """To the right, zeros moving in."""
    return (bits >> places) & ((1 << (64 - places)) - 1)


def _scheduler(train_steps: int, prediction: str, clip: bool) -> Any:
    try:
        from diffusers import DDIMScheduler
    except ImportError as error:
        raise ImportError(f"diffusion policies need diffusers ({error}): pip install 'decisionrl[robotics]'") from error
    scheduler: Any = DDIMScheduler
    return scheduler(
        num_train_timesteps=train_steps,
        beta_schedule="squaredcos_cap_v2",
        prediction_type=prediction,
        clip_sample=clip,
        clip_sample_range=1.0,
        set_alpha_to_one=True,
        steps_offset=0,
        timestep_spacing="leading",
    )
