"""CAPO's model against autograd of ``A pi / pi_old`` in the last layer, and what its mask keeps."""

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from toy_minibatch import Told, terms_of

from decisionrl.objectives.curvature import AdamDirection, CurvatureMask, Direction, gradient_direction
from decisionrl.objectives.policy_gradient import PolicyGradient
from decisionrl.objectives.surrogates import Clip
from decisionrl.objectives.terms import Terms
from decisionrl.policies.evaluation import Evaluation, Head

ROWS, COLUMNS, HIDDEN, OUTPUTS = 2, 3, 4, 5
STD = torch.tensor([0.5, 1.0, 2.0, 0.7, 1.3], dtype=torch.float64)

LogProb = Callable[[Tensor, Tensor], Tensor]
"""Outputs and action of one step to the log-probability."""


def categorical(outputs: Tensor, action: Tensor) -> Tensor:
    return outputs.log_softmax(-1)[int(action)]


def gaussian(outputs: Tensor, action: Tensor) -> Tensor:
    return -((action - outputs) / STD).square().sum() / 2


class Layer:
    """A last layer with weight W, the hidden states that reach it, and the actions taken."""

    def __init__(self, log_prob: LogProb) -> None:
        generator = torch.Generator().manual_seed(0)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        self.weight = nn.Parameter(0.5 * normal(OUTPUTS, HIDDEN))
        self.hidden = normal(ROWS, COLUMNS, HIDDEN)
        self.advantage = normal(ROWS, COLUMNS)
        self.log_prob = log_prob
        outputs = self.hidden @ self.weight.detach().T
        if log_prob is categorical:
            self.action = torch.randint(0, OUTPUTS, (ROWS, COLUMNS), generator=generator)
            probability = outputs.softmax(-1)
            self.score = nn.functional.one_hot(self.action, OUTPUTS) - probability
            self.fisher = torch.diag_embed(probability) - probability.unsqueeze(-1) * probability.unsqueeze(-2)
        else:
            self.action = outputs + STD * normal(ROWS, COLUMNS, OUTPUTS)
            self.score = (self.action - outputs) / STD**2
            self.fisher = torch.diag(STD**-2).expand(ROWS, COLUMNS, OUTPUTS, OUTPUTS)

    @property
    def head(self) -> Head:
        return Head(self.hidden, self.score, lambda u: (self.fisher @ u.unsqueeze(-1)).squeeze(-1))

    def terms(self, scale: float = 1.0) -> Terms:
        ones = torch.ones(ROWS, COLUMNS, dtype=torch.float64)
        return terms_of(ones, scale * self.advantage, head=self.head)

    def objective(self, i: int, t: int) -> Callable[[Tensor], Tensor]:
        """W -> A pi(a) / pi_old(a) at one step."""
        hidden, action, advantage = self.hidden[i, t], self.action[i, t], self.advantage[i, t]
        old = self.log_prob(self.weight.detach() @ hidden, action)
        return lambda weight: advantage * (self.log_prob(weight @ hidden, action) - old).exp()

    def gradient(self, i: int, t: int) -> Tensor:
        result: Tensor = torch.func.grad(self.objective(i, t))(self.weight.detach())
        return result

    def curved(self, i: int, t: int, along: Tensor) -> Tensor:
        """The Hessian times D."""
        slope = torch.func.grad(self.objective(i, t))
        result: Tensor = torch.func.grad(lambda weight: (slope(weight) * along).sum())(self.weight.detach())
        return result


def plain(gradient: Tensor) -> Tensor:
    return gradient


def check_predictions(layer: Layer, direction: Direction, transform: Callable[[Tensor], Tensor]) -> None:
    """m_H and m_F of all steps against autograd, for D = transform(G)."""
    rate = 0.3
    mask = CurvatureMask(learning_rate=rate, direction=direction)
    hessian, fisher = mask.predictions(layer.terms())
    _, expected_fisher = replace(mask, expected_fisher=True).predictions(layer.terms())
    for i in range(ROWS):
        for t in range(COLUMNS):
            gradient = layer.gradient(i, t)
            along = transform(gradient)
            curved = layer.curved(i, t, along)
            change = along @ layer.hidden[i, t]
            m_h = rate * (gradient * along).sum() + rate**2 / 2 * (curved * along).sum()
            torch.testing.assert_close(hessian[i, t], m_h)
            torch.testing.assert_close(fisher[i, t], rate**2 / 2 * (layer.score[i, t] @ change) ** 2)
            torch.testing.assert_close(expected_fisher[i, t], rate**2 / 2 * (change @ layer.fisher[i, t] @ change))


@pytest.mark.parametrize("log_prob", [categorical, gaussian])
def test_gradient_direction_against_autograd(log_prob: LogProb) -> None:
    check_predictions(Layer(log_prob), gradient_direction, plain)


def adam_after_two_steps(layer: Layer) -> torch.optim.Adam:
    """An optimizer that has taken steps on other gradients; the weight is put back."""
    optimizer = torch.optim.Adam([layer.weight], lr=0.1, betas=(0.8, 0.9))
    before = layer.weight.detach().clone()
    for seed in (1, 2):
        generator = torch.Generator().manual_seed(seed)
        layer.weight.grad = torch.randn(OUTPUTS, HIDDEN, generator=generator, dtype=torch.float64)
        optimizer.step()
    with torch.no_grad():
        layer.weight.copy_(before)
    return optimizer


@pytest.mark.parametrize("log_prob", [categorical, gaussian])
@pytest.mark.parametrize("chunk", [1, 4, 64])
def test_adam_direction_is_the_step_that_adam_would_take(log_prob: LogProb, chunk: int) -> None:
    layer = Layer(log_prob)
    optimizer = adam_after_two_steps(layer)

    def step(gradient: Tensor) -> Tensor:
        weight = nn.Parameter(layer.weight.detach().clone())
        twin = torch.optim.Adam([weight], lr=1.0, betas=(0.8, 0.9))
        twin.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        twin.param_groups[0]["lr"] = 1.0
        weight.grad = -gradient  # the optimizer descends, the objective is to rise
        twin.step()
        return weight.detach() - layer.weight.detach()

    check_predictions(layer, AdamDirection(optimizer=optimizer, weight=layer.weight, chunk=chunk), step)


def test_adam_direction_leaves_the_optimizer_alone() -> None:
    layer = Layer(categorical)
    optimizer = adam_after_two_steps(layer)
    before = {name: value.clone() for name, value in optimizer.state[layer.weight].items()}
    AdamDirection(optimizer=optimizer, weight=layer.weight)(layer.head, layer.advantage)
    torch.testing.assert_close(dict(optimizer.state[layer.weight]), before, rtol=0, atol=0)


def test_before_adams_first_step_the_direction_is_the_gradient() -> None:
    layer = Layer(categorical)
    direction = AdamDirection(optimizer=torch.optim.Adam([layer.weight]), weight=layer.weight)
    check_predictions(layer, direction, plain)


def test_the_expected_fisher_is_the_mean_over_actions() -> None:
    """At one hidden state and one direction u, E_a[(v_a . u)^2] = u^T F u."""
    layer = Layer(categorical)
    probability = (layer.weight.detach() @ layer.hidden[0, 0]).softmax(0)
    change = torch.linspace(-1, 1, OUTPUTS, dtype=torch.float64)
    scores = torch.eye(OUTPUTS, dtype=torch.float64) - probability
    expectation = (probability * (scores @ change) ** 2).sum()
    torch.testing.assert_close(expectation, change @ layer.fisher[0, 0] @ change)


@pytest.mark.parametrize(
    "options",
    [
        {"learning_rate": 10.0, "delta_fisher": torch.inf, "delta_hessian": torch.inf},
        {"learning_rate": 0.0, "delta_fisher": 1e-12, "delta_hessian": 1e-12},
        {"learning_rate": lambda: 0.0},
    ],
)
def test_without_bounds_or_without_a_step_all_are_kept(options: dict[str, Any]) -> None:
    assert CurvatureMask(**options)(Layer(categorical).terms()).all()


@pytest.mark.parametrize("symmetric", [True, False])
def test_steps_without_an_advantage_are_kept(symmetric: bool) -> None:
    assert CurvatureMask(learning_rate=100.0, symmetric=symmetric)(Layer(categorical).terms(scale=0.0)).all()


def test_looser_bounds_keep_more() -> None:
    terms = Layer(categorical).terms()
    previous = torch.zeros(ROWS, COLUMNS, dtype=torch.bool)
    counts = []
    for bound in torch.logspace(-6, 3, 40).tolist():
        kept = CurvatureMask(delta_fisher=bound, delta_hessian=bound, learning_rate=0.3)(terms)
        assert (previous <= kept).all()
        previous = kept
        counts.append(int(kept.sum()))
    assert counts[0] == 0
    assert counts[-1] == ROWS * COLUMNS
    assert len(set(counts)) > 2


def test_the_mask_is_the_two_bounds() -> None:
    terms = Layer(categorical).terms()
    mask = CurvatureMask(delta_fisher=0.05, delta_hessian=0.3, learning_rate=0.3)
    hessian, fisher = mask.predictions(terms)
    torch.testing.assert_close(mask(terms), (fisher < 0.05) & (hessian.abs() < 0.3))
    one_sided = CurvatureMask(delta_fisher=0.05, delta_hessian=0.3, learning_rate=3.0, symmetric=False)
    hessian, fisher = one_sided.predictions(terms)
    assert (hessian < 0).any()
    torch.testing.assert_close(one_sided(terms), (fisher < 0.05) & (hessian >= 0) & (hessian < 0.3))


def test_scaling() -> None:
    layer = Layer(categorical)
    fisher = [CurvatureMask(learning_rate=rate).predictions(layer.terms())[1] for rate in (0.1, 0.3)]
    torch.testing.assert_close(fisher[1], 9 * fisher[0])
    small = 1e-6
    hessian = [CurvatureMask(learning_rate=small).predictions(layer.terms(scale))[0] for scale in (1.0, 2.0)]
    assert (hessian[0] > 0).all()
    torch.testing.assert_close(hessian[1], 4 * hessian[0], rtol=1e-4, atol=0)


def test_in_an_objective_it_takes_steps_out_of_the_policy_loss() -> None:
    layer = Layer(categorical)
    terms = layer.terms()
    keep = CurvatureMask(delta_fisher=0.05, delta_hessian=0.3, learning_rate=0.3)
    kept = keep(terms)
    assert 0 < kept.sum() < kept.numel()
    objective = PolicyGradient(surrogate=Clip(), filters=[keep])
    loss = objective(Told(terms.evaluation), terms.batch)
    torch.testing.assert_close(loss.value, -terms.advantage[kept].mean())
    (gradient,) = torch.autograd.grad(loss.value, terms.evaluation.log_prob)
    assert (gradient[~kept] == 0).all()


def test_no_gradient_comes_from_the_mask() -> None:
    layer = Layer(categorical)
    hidden, score = layer.hidden.requires_grad_(), layer.score.requires_grad_()
    terms = layer.terms()
    loss = PolicyGradient(surrogate=Clip(), filters=[CurvatureMask(learning_rate=0.3)])(
        Told(terms.evaluation), terms.batch
    )
    found = torch.autograd.grad(loss.value, (hidden, score), allow_unused=True)
    assert all(gradient is None for gradient in found)


def test_errors_name_the_field_and_the_value() -> None:
    layer = Layer(categorical)
    with pytest.raises(ValueError, match=r"delta_fisher = 0, delta_hessian = 0\.01; valid: positive"):
        CurvatureMask(delta_fisher=0, learning_rate=0.1)
    terms = layer.terms()
    headless = replace(terms, evaluation=Evaluation(terms.log_prob))
    with pytest.raises(ValueError, match="needs a policy whose evaluation has a head"):
        CurvatureMask(learning_rate=0.1)(headless)
    other = torch.optim.Adam([nn.Parameter(torch.zeros(2))])
    with pytest.raises(ValueError, match=r"weight of shape \(5, 4\) is no parameter of the optimizer"):
        AdamDirection(optimizer=other, weight=layer.weight)
    with pytest.raises(ValueError, match="chunk = 0"):
        AdamDirection(optimizer=torch.optim.Adam([layer.weight]), weight=layer.weight, chunk=0)
