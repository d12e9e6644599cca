"""The two networks of diffusion policies: what sees what, shapes, decay, initial weights."""

import math

import pytest
import torch
from torch import nn

from decisionrl.policies.diffusion_network import (
    DiffusionTransformer,
    DiffusionTransformerSizes,
    StepEmbedding,
    decay_groups,
)
from decisionrl.policies.diffusion_unet import DiffusionUnet, DiffusionUnetSizes

DO, DA, TO, TOKENS, BATCH = 3, 2, 4, 8, 2
SMALL = {"width": 8, "layers": 2, "heads": 2, "dropout": 0.0}


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, generator=rng(seed), dtype=torch.float64)


def widened(network: nn.Module) -> nn.Module:
    """With larger weights than at the beginning, biases and norms too, so that every path matters."""
    with torch.no_grad():
        for i, parameter in enumerate(network.parameters()):
            parameter.add_(0.2 * normal(*parameter.shape, seed=i))
    return network.eval()


def transformer(*, tokens: int = TOKENS, present: int = TO - 1, **sizes: object) -> DiffusionTransformer:
    made = DiffusionTransformer(
        DO,
        DA,
        observations=TO,
        tokens=tokens,
        present=present,
        sizes=DiffusionTransformerSizes(**{**SMALL, **sizes}),
        generator=rng(),
    )
    return widened(made.double())


def unet(conditioning: str, *, tokens: int = TOKENS, channels: tuple[int, ...] = (4, 8)) -> DiffusionUnet:
    sizes = DiffusionUnetSizes(channels=channels, kernel=3, groups=2, step_width=8, conditioning=conditioning)
    return widened(DiffusionUnet(DO, DA, observations=TO, tokens=tokens, sizes=sizes, generator=rng()).double())


def networks() -> list[nn.Module]:
    return [transformer(), unet("film"), unet("attention")]


def output(network: nn.Module, noisy: torch.Tensor, context: torch.Tensor, step: int = 3) -> torch.Tensor:
    with torch.no_grad():
        return network(noisy, torch.full((len(noisy),), step), network.encode(context))


def changed(before: torch.Tensor, after: torch.Tensor) -> list[bool]:
    """Which tokens are not exactly the same."""
    return (before != after).any(2).all(0).tolist()


def same(before: torch.Tensor, after: torch.Tensor) -> list[bool]:
    return (before == after).all(2).all(0).tolist()


def test_an_observation_changes_only_the_tokens_of_its_time_and_later() -> None:
    network, noisy, context = transformer(), normal(BATCH, TOKENS, DA), normal(BATCH, TO, DO, seed=2)
    before = output(network, noisy, context)
    for m in range(TO):
        moved = context.clone()
        moved[:, m] += 1
        after = output(network, noisy, moved)
        assert changed(before, after) == [j >= m for j in range(TOKENS)]
        assert same(before, after) == [j < m for j in range(TOKENS)]


def test_a_noisy_action_changes_only_its_token_and_later_ones() -> None:
    network, noisy, context = transformer(), normal(BATCH, TOKENS, DA), normal(BATCH, TO, DO, seed=2)
    before = output(network, noisy, context)
    for i in range(TOKENS):
        moved = noisy.clone()
        moved[:, i] += 1
        after = output(network, moved, context)
        assert changed(before, after) == [j >= i for j in range(TOKENS)]
        assert same(before, after) == [j < i for j in range(TOKENS)]


def test_without_past_tokens_every_token_sees_all_observations() -> None:
    network = transformer(tokens=3, present=0)
    assert not network.unseen.any()
    assert network.unseen.shape == (3, 1 + TO)
    noisy, context = normal(BATCH, 3, DA), normal(BATCH, TO, DO, seed=2)
    moved = context.clone()
    moved[:, -1] += 1
    assert changed(output(network, noisy, context), output(network, noisy, moved)) == [True] * 3


def test_the_mask_of_four_tokens_and_two_observations() -> None:
    network = DiffusionTransformer(
        DO, DA, observations=2, tokens=4, present=1, sizes=DiffusionTransformerSizes(**SMALL), generator=rng()
    )
    assert (~network.unseen).tolist() == [[True, True, False], *[[True] * 3] * 3]


def test_without_causal_masks_everything_sees_everything() -> None:
    network, noisy, context = transformer(causal=False), normal(BATCH, TOKENS, DA), normal(BATCH, TO, DO, seed=2)
    before = output(network, noisy, context)
    for tensor, last in ((noisy, TOKENS - 1), (context, TO - 1)):
        moved = tensor.clone()
        moved[:, last] += 1
        after = output(network, moved, context) if tensor is noisy else output(network, noisy, moved)
        assert changed(before, after) == [True] * TOKENS


@pytest.mark.parametrize("network", networks())
def test_shapes_and_that_rows_do_not_mix(network: nn.Module) -> None:
    noisy, context = normal(BATCH, TOKENS, DA), normal(BATCH, TO, DO, seed=2)
    whole = output(network, noisy, context)
    assert whole.shape == noisy.shape
    torch.testing.assert_close(output(network, noisy[1:], context[1:]), whole[1:])


@pytest.mark.parametrize("network", networks())
def test_every_parameter_and_the_diffusion_step_matter(network: nn.Module) -> None:
    noisy, context = normal(BATCH, TOKENS, DA), normal(BATCH, TO, DO, seed=2)
    assert not torch.equal(output(network, noisy, context, 3), output(network, noisy, context, 4))
    result = network(noisy, torch.tensor([1, 50]), network.encode(context))
    result.square().sum().backward()
    unused = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert unused == []


@pytest.mark.parametrize("conditioning", ["film", "attention"])
@pytest.mark.parametrize("channels", [(4,), (4, 8), (4, 8, 12)])
def test_the_unet_reads_every_observation_at_any_depth(conditioning: str, channels: tuple[int, ...]) -> None:
    network, noisy, context = unet(conditioning, channels=channels), normal(BATCH, TOKENS, DA), normal(BATCH, TO, DO)
    before = output(network, noisy, context)
    for m in range(TO):
        moved = context.clone()
        moved[:, m] += 1
        assert changed(before, output(network, noisy, moved)) == [True] * TOKENS


def test_the_embedding_of_a_step() -> None:
    embedded = StepEmbedding(6)(torch.tensor([7]))[0].tolist()
    frequencies = [1.0, 10000**-0.5, 10000**-1.0]
    expected = [math.sin(7 * w) for w in frequencies] + [math.cos(7 * w) for w in frequencies]
    assert embedded == pytest.approx(expected, rel=1e-5)


def test_initial_weights_are_drawn_by_the_generator() -> None:
    made = [
        DiffusionTransformer(
            DO, DA, observations=TO, tokens=TOKENS, present=TO - 1,
            sizes=DiffusionTransformerSizes(width=64, layers=2), generator=rng(seed),
        )
        for seed in (0, 0, 1)
    ]  # fmt: skip
    first, again, other = (dict(network.named_parameters()) for network in made)
    for name, parameter in first.items():
        assert torch.equal(parameter, again[name])
        if parameter.dim() > 1:
            assert not torch.equal(parameter, other[name])
            assert float(parameter.detach().std()) == pytest.approx(0.02, rel=0.15)
        else:
            assert torch.equal(parameter, torch.full_like(parameter, float("norm" in name and "weight" in name)))


def test_matrices_decay_and_the_rest_does_not() -> None:
    network = transformer()
    network.embed_action.weight.requires_grad_(False)
    names = {id(p): name for name, p in network.named_parameters()}
    decayed, rest = decay_groups(network, 1e-3)
    assert (decayed["weight_decay"], rest["weight_decay"]) == (1e-3, 0.0)
    in_decayed = {names[id(p)] for p in decayed["params"]}
    in_rest = {names[id(p)] for p in rest["params"]}
    assert in_decayed | in_rest | {"embed_action.weight"} == set(names.values())
    assert not in_decayed & in_rest
    assert {"head.weight", "layers.0.self_attn.in_proj_weight", "embed_observation.weight"} <= in_decayed
    assert {"action_position", "memory_position", "norm.weight", "head.bias", "layers.1.norm2.weight"} <= in_rest
    assert not any("bias" in name or "norm" in name for name in in_decayed)


def test_errors_name_what_is_wrong() -> None:
    with pytest.raises(ValueError, match="width = 9, heads = 3; valid: an even width"):
        transformer(width=9, heads=3)
    with pytest.raises(ValueError, match="layers = 0; valid: at least 1"):
        transformer(layers=0)
    with pytest.raises(ValueError, match="present = 4; valid: at least 0 and below tokens = 8 and observations = 4"):
        transformer(present=4)
    with pytest.raises(ValueError, match="tokens = 7; valid with 2 levels: a multiple of 2"):
        unet("film", tokens=7)
    with pytest.raises(ValueError, match=r"channels = \(5,\); valid: at least one, all multiples of groups = 2"):
        unet("film", channels=(5,))
    with pytest.raises(ValueError, match=r"channels = \(6,\); valid with attention: multiples of its 4 heads"):
        unet("attention", channels=(6,))
    with pytest.raises(ValueError, match="conditioning = 'concat'; valid: film, attention"):
        unet("concat")
    with pytest.raises(ValueError, match="kernel = 4; valid: an odd number"):
        DiffusionUnet(DO, DA, observations=TO, tokens=4, sizes=DiffusionUnetSizes(kernel=4))
