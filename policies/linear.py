"""The softmax-linear policy: pi_h(a | s) proportional to exp(eta phi_h(s, a) . w_h)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from decisionrl.policies.actor_critic import Steps
from decisionrl.policies.distributions import Categorical
from decisionrl.policies.evaluation import Batch, Evaluation, Observation


class SoftmaxLinear(nn.Module):
    """Actions in finitely many states, by a softmax that is linear in given features, with weights for each stage.

    The observation is what the environments of ``decisionrl.envs.linear_mdp`` show: (h, s), two whole numbers
    [..., 2], because the optimal policy of a finite horizon depends on the stage. In the last observation of an episode
    h = H; its value is 0 and its policy uniform, and neither is ever needed.

    The weights ``weight`` [H, d] begin at 0, the uniform policy.

    Args:
        features: phi, [H, S, A, d] or [S, A, d].
        horizon: H, needed with features [S, A, d].
        eta: scale of the logits.
        critic: a value V_h(s) for every stage and state, ``values`` [H, S], beginning at 0; without it there is none.
        dtype: of weights and logits; by default torch's.

    Raises:
        ValueError: features of another shape, a missing or contradicting horizon, or an eta that is not positive.
    """

    features: Float[Tensor, "stages S A d"]

    def __init__(
        self,
        features: Tensor,
        *,
        horizon: int | None = None,
        eta: float = 1.0,
        critic: bool = True,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if features.dim() == 3 and horizon is not None:
            features = features.expand(horizon, -1, -1, -1)
        if features.dim() != 4 or horizon not in (None, len(features)):
            raise ValueError(
                f"features {list(features.shape)} with horizon = {horizon}; valid: [H, S, A, d], or [S, A, d] and H"
            )
        if not eta > 0:
            raise ValueError(f"eta = {eta}; valid: a positive number")
        dtype = dtype or torch.get_default_dtype()
        stages, states, actions, d = features.shape
        end = torch.zeros(1, states, actions, d)
        self.register_buffer("features", torch.cat([features, end.to(features)]).to(dtype), persistent=False)
        self.weight = nn.Parameter(torch.zeros(stages, d, dtype=dtype))
        self.values = nn.Parameter(torch.zeros(stages, states, dtype=dtype)) if critic else None
        self.eta = eta
        self.head = Categorical(actions)

    def probabilities(self) -> Float[Tensor, "H S A"]:
        """pi_h(a | s) as a table, for exact evaluation."""
        logits = torch.einsum("hsad,hd->hsa", self.features[:-1], self.weight)
        return (self.eta * logits).softmax(-1)

    def act(
        self, observation: Observation, state: Tensor | None = None, *, noise: Tensor | None = None
    ) -> tuple[Tensor, None]:
        """Actions [N] for observations [N, 2]: the likeliest, or what the noise of :meth:`sample_noise` leads to."""
        logits = self._logits(*_stage_and_state(observation))
        return (self.head.mode(logits) if noise is None else self.head.sample(logits, noise)), None

    def value(self, observation: Observation, state: Tensor | None = None) -> Float[Tensor, " n"] | None:
        """V_h(s) [N]; None without a critic."""
        return None if self.values is None else self._value(self.values, *_stage_and_state(observation))

    def evaluate(self, batch: Batch) -> Evaluation:
        """log_prob, entropy and value of the batch's actions. Masked steps are not computed; they are 0.

        There is no head: the features belong to actions, and the logits are no matrix times one vector of them.
        """
        if not isinstance(batch.observation, Tensor):
            raise TypeError(f"observation is {type(batch.observation).__name__}; valid: a tensor [batch, step, 2]")
        steps = Steps(batch.mask)
        h, s = _stage_and_state(steps.take(batch.observation))
        log_prob, entropy = self.head.evaluate(self._logits(h, s), steps.take(batch.action))
        return Evaluation(
            log_prob=steps.put(log_prob),
            entropy=None if entropy is None else steps.put(entropy),
            value=None if self.values is None else steps.put(self._value(self.values, h, s)),
        )

    def initial_state(self, n: int) -> Tensor | None:
        """None: there is no memory."""
        return None

    def sample_noise(self, shape: Sequence[int], generator: torch.Generator | None = None) -> Tensor:
        """Noise for ``shape`` actions, [*shape, A], such as [steps, copies, A] for a whole rollout."""
        return self.head.noise(shape, generator=generator, dtype=self.weight.dtype, device=self.weight.device)

    def _logits(self, h: Tensor, s: Tensor) -> Float[Tensor, "n A"]:
        stage = h.clamp(max=len(self.weight) - 1)  # at the end the features are 0
        return self.eta * torch.einsum("nad,nd->na", self.features[h, s], self.weight[stage])

    def _value(self, values: Tensor, h: Tensor, s: Tensor) -> Float[Tensor, " n"]:
        inside = h < len(values)
        return torch.where(inside, values[h.clamp(max=len(values) - 1), s], 0.0)


def _stage_and_state(observation: Observation) -> tuple[Tensor, Tensor]:
    if not isinstance(observation, Tensor):
        raise TypeError(f"observation is {type(observation).__name__}; valid: a tensor [..., 2]")
    return observation[..., 0], observation[..., 1]
