"""The softmax-linear policy: pi_h(a | s) proportional to exp(eta phi_h(s, a) . w_h)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from decisionrl.policies.evaluation import Batch, Evaluation


class SoftmaxLinear(nn.Module):
    """Actions of finitely many states, by a softmax that is linear in given features, with weights for each stage.

    The observation is what the environments of ``decisionrl.envs.linear_mdp`` show: (h, s), two whole numbers
    [..., 2], because the optimal policy of a finite horizon depends on the stage. The last one of an episode has h = H;
    no action is taken there and its value is 0.

    Args:
        features: phi, [H, S, A, d] or [S, A, d].
        horizon: H, needed with features [S, A, d].
        eta: scale of the logits.
        critic: a value V_h(s) for every stage and state, as in ``ActorCritic``; without it ``value`` is None.
        dtype: of weights and logits; by default torch's.

    The weights, ``weight`` [H, d], begin at 0: the uniform policy.
    """

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
        raise NotImplementedError

    def probabilities(self) -> Float[Tensor, "H S A"]:
        """pi_h(a | s) as a table, for exact evaluation."""
        raise NotImplementedError

    def act(self, observation: Tensor, state: None = None, *, noise: Tensor | None = None) -> tuple[Tensor, None]:
        raise NotImplementedError

    def value(self, observation: Tensor, state: None = None) -> Tensor | None:
        raise NotImplementedError

    def evaluate(self, batch: Batch) -> Evaluation:
        raise NotImplementedError

    def initial_state(self, n: int) -> None:
        """None: there is no memory."""

    def sample_noise(self, shape: Sequence[int], generator: torch.Generator | None = None) -> Tensor:
        raise NotImplementedError
