"""Leave out the steps whose own update would change the objective or the policy too much (CAPO)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from decisionrl.objectives.terms import Terms
from decisionrl.policies.evaluation import Head


class Direction(Protocol):
    """How the optimizer turns the gradient ``G = A v h^T`` of one step's objective into a direction D, step by step.

    Returns ``<G, D>`` [batch, step] and ``u = D h`` [batch, step, outputs], the change of the outputs along D.
    """

    def __call__(self, head: Head, advantage: Tensor, /) -> tuple[Tensor, Tensor]: ...


def gradient_direction(head: Head, advantage: Tensor) -> tuple[Tensor, Tensor]:
    """D = G, plain gradient ascent: ``<G, D> = A^2 |v|^2 |h|^2`` and ``u = A |h|^2 v``, without building G."""
    reach = advantage * head.hidden.square().sum(-1)
    return advantage * reach * head.score.square().sum(-1), reach.unsqueeze(-1) * head.score


@dataclass(frozen=True, kw_only=True)
class AdamDirection:
    """D as Adam's next step would be if G were its gradient, from the real moments of the layer's weight.

    With the moments m, s of ascent after t steps: ``m' = b1 m + (1 - b1) G``, ``s' = b2 s + (1 - b2) G^2`` and
    ``D = m' / (1 - b1^(t+1)) / (sqrt(s' / (1 - b2^(t+1))) + eps)``; D = G before the first step. The paper's release
    tracks moments of its own, of the accepted gradients only and for each row of W; those of the optimizer are
    what its next step will use. Needs [chunk, outputs, hidden] of memory at a time, a few times over.

    Attributes:
        optimizer: Adam or AdamW over the loss, whose moments are those of descent.
        weight: W [outputs, hidden], a parameter of that optimizer.
        chunk: for how many steps D is built at a time.
    """

    optimizer: torch.optim.Adam
    weight: nn.Parameter
    chunk: int = 64

    def __post_init__(self) -> None:
        if not any(parameter is self.weight for group in self.optimizer.param_groups for parameter in group["params"]):
            raise ValueError(f"weight of shape {tuple(self.weight.shape)} is no parameter of the optimizer")
        if self.chunk < 1:
            raise ValueError(f"chunk = {self.chunk}; valid: at least 1")

    def __call__(self, head: Head, advantage: Tensor) -> tuple[Tensor, Tensor]:
        state = self.optimizer.state.get(self.weight)
        if not state:
            return gradient_direction(head, advantage)
        (group,) = (g for g in self.optimizer.param_groups if any(p is self.weight for p in g["params"]))
        (beta1, beta2), epsilon, time = group["betas"], group["eps"], state["step"].double() + 1
        first, second = 1 - beta1**time, 1 - beta2**time
        alignments, changes = [], []
        for scores, hiddens in zip(
            torch.split((advantage.unsqueeze(-1) * head.score).flatten(0, 1), self.chunk),
            torch.split(head.hidden.flatten(0, 1), self.chunk),
            strict=True,
        ):
            gradient = scores.unsqueeze(2) * hiddens.unsqueeze(1)
            mean = (1 - beta1) * gradient - beta1 * state["exp_avg"]
            square = (1 - beta2) * gradient.square() + beta2 * state["exp_avg_sq"]
            direction = mean / first / ((square / second).sqrt() + epsilon)
            alignments.append((gradient * direction).sum((1, 2)))
            changes.append((direction @ hiddens.unsqueeze(2)).squeeze(2))
        return torch.cat(alignments).view_as(advantage), torch.cat(changes).view_as(head.score)


@dataclass(frozen=True, kw_only=True)
class CurvatureMask:
    """CAPO: keep a step only if the model of its own update stays within two bounds (arXiv 2510.00819, section 4).

    The model looks at the last layer, outputs = W h, alone. A step with advantage A, score v and Fisher information F
    (see :class:`Head`) has gradient ``G = A v h^T``; along the optimizer's direction D the outputs change by
    u = D h. With the learning rate eta:

    - ``m_H = eta <G, D> + eta^2 / 2 A ((v.u)^2 - u^T F u)``, the change of ``A pi / pi_old`` to second order;
    - ``m_F = eta^2 / 2 (v.u)^2``, the change of the policy in KL, with the Fisher information of the action taken.

    A step is kept iff ``m_F < delta_fisher`` and ``|m_H| < delta_hessian``. Infinity turns a bound off. Needs a policy
    whose evaluation has a head.

    Attributes:
        delta_fisher: the paper has 1e-4 with GRPO, 1e-3 with Dr. GRPO and 1e-5 with REINFORCE.
        delta_hessian: 0.01, 5e-4 and 0.1.
        learning_rate: eta, or what returns it, such as a look into the optimizer.
        direction: what the optimizer makes of G.
        symmetric: bound |m_H|; otherwise keep a step iff 0 <= m_H < delta_hessian.
        expected_fisher: ``m_F = eta^2 / 2 u^T F u``, the expectation over actions, which has less noise.
    """

    delta_fisher: float = 1e-4
    delta_hessian: float = 0.01
    learning_rate: float | Callable[[], float | Tensor]
    direction: Direction = gradient_direction
    symmetric: bool = True
    expected_fisher: bool = False

    def __post_init__(self) -> None:
        if not self.delta_fisher > 0 or not self.delta_hessian > 0:
            raise ValueError(
                f"delta_fisher = {self.delta_fisher}, delta_hessian = {self.delta_hessian}; "
                "valid: positive numbers, infinity for no bound"
            )

    @torch.no_grad()
    def __call__(self, terms: Terms) -> Bool[Tensor, "batch step"]:
        hessian, fisher = self.predictions(terms)
        bounded = hessian.abs() if self.symmetric else torch.where(hessian >= 0, hessian, torch.inf)
        return (fisher < self.delta_fisher) & (bounded < self.delta_hessian)

    def predictions(self, terms: Terms) -> tuple[Float[Tensor, "batch step"], Float[Tensor, "batch step"]]:
        """m_H and m_F.

        Raises:
            ValueError: the policy's evaluation has no head.
        """
        head = terms.evaluation.head
        if head is None:
            raise ValueError("CAPO needs a policy whose evaluation has a head: a linear last layer")
        rate = self.learning_rate() if callable(self.learning_rate) else self.learning_rate
        alignment, change = self.direction(head, terms.advantage)
        along = (head.score * change).sum(-1).square()
        information = (change * head.fisher(change)).sum(-1)
        hessian = rate * alignment + 0.5 * rate**2 * terms.advantage * (along - information)
        return hessian, 0.5 * rate**2 * (information if self.expected_fisher else along)
