"""Risk-averse advantages: answers are scored in bundles, and low scores count more (RiskPO, arXiv 2510.00911)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from decisionrl.experience.trajectories import Trajectories
from decisionrl.pipeline.groups import numbered, occurrence, rows
from decisionrl.pipeline.requirements import required
from decisionrl.pipeline.returns import outcomes, with_advantage

Form = Literal["paper", "release", "release-constant", "risk-seeking"]
Credit = Literal["uniform", "sum-mean"]


def risk_weight(
    score: Tensor, low: Tensor, high: Tensor, *, alpha: float, beta: float, omega: float, form: Form
) -> Tensor:
    """A(R) of scores R with the quantiles q_alpha = low and q_beta = high; see ``Risk``."""
    if form == "risk-seeking":
        return (score - high).clamp(min=0)
    tail = -(low - score).clamp(min=0)
    middle = score.clamp(low, high)
    if form == "paper":
        return (1 + omega) * tail + middle - high
    middle = middle - (high if form == "release-constant" else low)
    return ((1 + omega) * tail / alpha + middle / (beta - alpha)) / (2 + omega)


def bundles(group: Int[Tensor, " batch"], size: int, generator: torch.Generator) -> Int[Tensor, " batch"]:
    """The bundle of every row, 0 .. batch / size - 1: one answer each to ``size`` prompts, drawn at random.

    Raises:
        ValueError: the groups differ in size, or their number is not a multiple of ``size``.
    """
    prompt, prompts = numbered(group)
    answers = torch.bincount(prompt, minlength=prompts)
    if (answers != answers[0]).any():
        raise ValueError(f"groups of {sorted(set(answers.tolist()))} rows; valid for bundles: groups of one size")
    if prompts % size:
        raise ValueError(f"{prompts} groups; valid: a multiple of bundle = {size}")
    shuffled, order = (
        torch.randperm(count, generator=generator, device=generator.device).to(group.device)
        for count in (prompts, len(group))
    )
    turn = torch.empty_like(prompt).scatter(0, order, occurrence(prompt[order]))
    return shuffled[prompt] // size * answers[0] + turn


class Risk:
    """The gradient weight of the mixed value-at-risk ``(1 + omega) int_0^alpha q_s ds + int_alpha^beta q_s ds``.

    A bundle is one answer each to ``bundle`` prompts and R the sum of their outcomes. With q_a, q_b the tracked
    quantiles of R at alpha and beta,

        ``A(R) = -(1 + omega) (q_a - R)+ + g(R)``, ``g(R) = (R - q_a)+ - (R - q_b)+ + q_a - q_b``

    ("paper"), which is at most 0, never falls with R, and is 0 above q_b. omega = 0 makes it ``-(q_b - R)+``, CVaR at
    beta; alpha = 0 leaves out the tail. "release-constant" is the authors' code, ``[w (-(q_a - R)+) / alpha +
    g / (beta - alpha)] / (w + 1)`` with w = 1 + omega; "release" is what their scripts run, the same with g - (q_a -
    q_b) for g. "risk-seeking" is ``(R - q_b)+``, CVaR of the upper tail.

    Each batch first moves the quantiles, ``q_s <- q_s + rate (s - mean 1{R < q_s})``; the first batch sets them to its
    own. Prompts are put into bundles at random and the answers of every prompt in an independent random order.

    Args:
        alpha, beta: 0 <= alpha < beta <= 1; alpha > 0 for the released forms.
        omega: extra weight of the lower tail.
        bundle: prompts in a bundle, B. With 1 every row is its own bundle, as in control, and no group is needed.
        rate: of the quantile tracker.
        form: see above.
        credit: "uniform": every answer of a bundle gets A. "sum-mean" (the scripts): A in shares proportional to
            R_i - mean(R of its prompt), equal ones if those sum to less than 1e-6 in absolute value.
        generator: for bundles; its state is part of ``state_dict``.

    Raises:
        ValueError: an argument out of range, trajectories without ``group``, or groups that cannot be bundled.
    """

    def __init__(
        self,
        *,
        alpha: float = 0.2,
        beta: float = 0.8,
        omega: float = 0.5,
        bundle: int = 5,
        rate: float = 0.1,
        form: Form = "paper",
        credit: Credit = "uniform",
        generator: torch.Generator | None = None,
    ) -> None:
        if not 0 <= alpha < beta <= 1:
            raise ValueError(f"alpha = {alpha}, beta = {beta}; valid: 0 <= alpha < beta <= 1")
        if form not in get_args(Form):
            raise ValueError(f"form = {form!r}; valid: {', '.join(get_args(Form))}")
        if alpha == 0 and form.startswith("release"):
            raise ValueError(f"alpha = {alpha}; valid: above 0 where form = {form!r}, which divides by it")
        if credit not in get_args(Credit):
            raise ValueError(f"credit = {credit!r}; valid: {', '.join(get_args(Credit))}")
        if not omega >= 0:
            raise ValueError(f"omega = {omega}; valid: 0 or more")
        if bundle < 1:
            raise ValueError(f"bundle = {bundle}; valid: 1 or more")
        if not 0 <= rate <= 1:
            raise ValueError(f"rate = {rate}; valid: in [0, 1]")
        if bundle > 1 and generator is None:
            raise ValueError(f"bundle = {bundle} needs a generator; valid without one: 1")
        self.alpha, self.beta, self.omega, self.bundle, self.rate = alpha, beta, omega, bundle, rate
        self.form, self.credit = form, credit
        self.quantiles: Tensor | None = None
        self._generator = generator

    def __call__(self, batch: Trajectories) -> Trajectories:
        outcome = outcomes(batch.reward, batch.mask)
        if self.bundle == 1:
            member, score = torch.arange(len(outcome), device=outcome.device), outcome
        else:
            assert self._generator is not None
            member = bundles(required(batch, "group", self), self.bundle, self._generator)
            score = outcome.new_zeros(len(outcome) // self.bundle).index_add(0, member, outcome)
        low, high = self._track(score)
        weight = risk_weight(
            score,
            low if self.alpha > 0 else torch.full_like(low, -torch.inf),
            high,
            alpha=self.alpha,
            beta=self.beta,
            omega=self.omega,
            form=self.form,
        )
        advantage = weight[member]
        if self.credit == "sum-mean":
            surplus = rows(batch, self).centered(outcome)
            total = torch.zeros_like(score).index_add(0, member, surplus)[member]
            advantage = advantage * torch.where(total.abs() < 1e-6, 1 / self.bundle, surplus / total)
        return with_advantage(batch, advantage.unsqueeze(1))

    def state_dict(self) -> dict[str, Any]:
        """The quantiles, None before the first batch, and the state of the generator, None without one."""
        generator = None if self._generator is None else self._generator.get_state()
        return {"quantiles": self.quantiles, "generator": generator}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a saved state."""
        self.quantiles = state["quantiles"]
        if self._generator is not None:
            self._generator.set_state(state["generator"])

    def _track(self, score: Float[Tensor, " bundles"]) -> Float[Tensor, " 2"]:
        """q_alpha and q_beta, moved by these scores."""
        score = score.detach()
        levels = score.new_tensor([self.alpha, self.beta])
        if self.quantiles is None:
            self.quantiles = score.quantile(levels)
        else:
            before = self.quantiles.to(score)
            below = (score.unsqueeze(1) < before).to(score.dtype).mean(0)
            self.quantiles = before + self.rate * (levels - below)
        return self.quantiles
