"""References: frozen, periodic and averaged copies; no gradient, evaluation mode, state."""

import copy

import pytest
import torch
from torch import Tensor, nn

from decisionrl.reference import Reference


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 1)).double()


def move(source: nn.Module, seed: int) -> None:
    """Change every weight and buffer, as an update of the source would."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in (*source.parameters(), *source.buffers()):
            if tensor.is_floating_point():
                tensor.add_(torch.rand(tensor.shape, generator=generator, dtype=tensor.dtype))


def state(module: nn.Module) -> list[Tensor]:
    return [tensor.clone() for tensor in module.state_dict().values()]


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_a_frozen_copy_stays_until_a_snapshot() -> None:
    source = network()
    reference, initial = Reference(source), state(source)
    for update in range(3):
        move(source, update)
        reference.follow()
        assert same(state(reference.module), initial)
    reference.snapshot()
    assert same(state(reference.module), state(source))
    now = state(source)
    move(source, 3)
    assert same(state(reference.module), now)


def test_a_periodic_copy_is_the_source_every_third_update() -> None:
    source = network()
    reference, expected = Reference(source, every=3), state(source)
    for update in range(1, 8):
        move(source, update)
        reference.follow()
        if update % 3 == 0:
            expected = state(source)
        assert same(state(reference.module), expected)


@pytest.mark.parametrize("every", [1, 2])
def test_an_average_is_that_of_a_loop_and_buffers_are_copied(every: int) -> None:
    source = network()
    reference = Reference(source, every=every, rate=0.3)
    expected = [p.detach().clone() for p in source.parameters()]
    buffers = [b.clone() for b in source.buffers()]
    for update in range(1, 6):
        move(source, update)
        reference.follow()
        if update % every == 0:
            expected = [0.3 * new.detach() + 0.7 * old for old, new in zip(expected, source.parameters(), strict=True)]
            buffers = [b.clone() for b in source.buffers()]
        for own, wanted in zip(reference.module.parameters(), expected, strict=True):
            torch.testing.assert_close(own.detach(), wanted, rtol=1e-12, atol=1e-12)
        assert same(list(reference.module.buffers()), buffers)


def test_no_gradient_and_no_dropout() -> None:
    source = network().train()
    reference = Reference(source, every=1, rate=0.5)
    x = torch.randn(5, 3, dtype=torch.float64)
    assert torch.equal(reference.module(x), reference.module(x))
    assert not reference.module(x).requires_grad
    assert not any(parameter.requires_grad for parameter in reference.module.parameters())
    assert all(parameter.requires_grad for parameter in source.parameters())
    assert source.training
    reference.follow()
    reference.snapshot()
    assert not reference.module.training
    source(x).sum().backward()
    assert all(parameter.grad is None for parameter in reference.module.parameters())


def test_state_holds_the_copy_and_where_in_the_period_it_is() -> None:
    source = network()
    reference = Reference(source, every=3)
    move(source, 0)
    reference.follow()
    saved_source, saved = copy.deepcopy(source.state_dict()), copy.deepcopy(reference.state_dict())
    other_source = network(5)
    other = Reference(other_source, every=3)
    other_source.load_state_dict(saved_source)
    other.load_state_dict(saved)
    assert same(state(other.module), state(reference.module))
    for update in range(1, 4):
        for each in (source, other_source):
            move(each, update)
        reference.follow()
        other.follow()
        assert same(state(other.module), state(reference.module))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every": 0}, "every = 0; valid: a whole number >= 1, or None"),
        ({"rate": 0.0}, "rate = 0.0; valid: above 0 and at most 1"),
        ({"every": 1, "rate": 1.5}, "rate = 1.5; valid"),
    ],
)
def test_bad_settings_are_named(options, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Reference(network(), **options)
