"""The average of weights with a decay that rises: its numbers, what it copies, what is saved."""

import pytest
import torch
from torch import nn

from decisionrl.ema import PowerAverage
from decisionrl.learner import GradientLearner, Loss


def network() -> nn.Sequential:
    made = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)).double()
    made[0].bias.requires_grad_(False)
    return made


def test_the_decay_is_zero_at_first_and_then_follows_the_power_law() -> None:
    average = PowerAverage(network())
    decays = []
    for _ in range(4):
        decays.append(average.decay)
        average.follow()
    assert decays == pytest.approx([0, 0, 1 - 2**-0.75, 1 - 3**-0.75])
    for updates, decay in ((10_001, 0.9990001), (10**7, 0.9999)):
        average.load_state_dict({"module": network().state_dict(), "updates": updates})
        assert average.decay == pytest.approx(decay, abs=1e-6)


def test_the_average_is_the_formula_and_the_rest_is_copied() -> None:
    source = network()
    average, expected = PowerAverage(source), source[0].weight.detach().clone()
    assert not any(parameter.requires_grad for parameter in average.module.parameters())
    assert not average.module.training
    for i in range(6):
        with torch.no_grad():
            for j, tensor in enumerate((*source.parameters(), source[1].running_mean)):
                tensor.copy_(torch.full_like(tensor, 0.1 * j + i**2))
        decay = 0.0 if i < 2 else 1 - i**-0.75
        expected = decay * expected + (1 - decay) * source[0].weight.detach()
        average.follow()
        torch.testing.assert_close(average.module[0].weight, expected)
        assert torch.equal(average.module[0].bias, source[0].bias)
        assert torch.equal(average.module[1].running_mean, source[1].running_mean)


def test_a_learner_saves_it() -> None:
    def learner() -> tuple[GradientLearner, PowerAverage[nn.Linear]]:
        torch.manual_seed(0)
        policy = nn.Linear(2, 1)
        average = PowerAverage(policy)
        made = GradientLearner(
            policy,
            lambda module, batch: Loss(module(batch).square().mean()),
            torch.optim.SGD(policy.parameters(), 0.1),
            components={"average": average},
            after_update=[average.follow],
        )
        return made, average

    batch = torch.tensor([[1.0, 2.0], [3.0, -1.0]])
    (first, average), (second, other) = learner(), learner()
    for _ in range(5):
        first.update(batch)
    second.load_state_dict(first.state_dict())
    for each in (first, second):
        each.update(batch)
    assert torch.equal(average.module.weight, other.module.weight)
    assert average.decay == other.decay == pytest.approx(1 - 6**-0.75)
    assert not torch.equal(average.module.weight, first.policy.weight)


def test_errors_name_what_is_wrong() -> None:
    with pytest.raises(ValueError, match="power = 0; valid: positive"):
        PowerAverage(network(), power=0)
    with pytest.raises(ValueError, match="inverse_gamma = -1; valid: positive"):
        PowerAverage(network(), inverse_gamma=-1)
    with pytest.raises(ValueError, match="largest = 1; valid: at least 0 and below 1"):
        PowerAverage(network(), largest=1)
