"""Log-probabilities of tokens in chunks of the vocabulary: the same as from all logits at once, and in less memory."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from decisionrl.policies.token_log_probs import token_log_probs

ROWS, VOCABULARY, WIDTH = 7, 23, 5


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def inputs(dtype: torch.dtype = torch.float64, *, rows: int = ROWS, scale: float = 2.0) -> tuple[Tensor, ...]:
    """hidden, weight, bias and token."""
    generator = rng()
    hidden = torch.randn(rows, WIDTH, generator=generator, dtype=torch.float64) * scale
    weight = torch.randn(VOCABULARY, WIDTH, generator=generator, dtype=torch.float64)
    bias = torch.randn(VOCABULARY, generator=generator, dtype=torch.float64)
    token = torch.randint(VOCABULARY, (rows,), generator=generator)
    return *(each.to(dtype).requires_grad_() for each in (hidden, weight, bias)), token


def naive(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    token: Tensor,
    *,
    temperature: float = 1.0,
    softcap: float | None = None,
) -> tuple[Tensor, Tensor]:
    logits = hidden @ weight.T if bias is None else hidden @ weight.T + bias
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    log_softmax = torch.log_softmax(logits / temperature, 1)
    entropy = -(log_softmax.exp() * log_softmax).sum(1)
    return log_softmax.gather(1, token[:, None]).squeeze(1), entropy


def gradients(outputs: tuple[Tensor, Tensor | None], parameters: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Of a sum in which every output has another weight."""
    generator = rng(1)
    loss = sum(
        (each * torch.randn(each.shape, generator=generator, dtype=each.dtype)).sum()
        for each in outputs
        if each is not None
    )
    return torch.autograd.grad(loss, parameters)


@pytest.mark.parametrize("chunk", [1, ROWS * 4, ROWS * VOCABULARY - 1, 2**22])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("keep", [0.0, 0.4, 1.0])
def test_equal_to_all_logits_at_once(chunk: int, temperature: float, softcap: float | None, keep: float) -> None:
    hidden, weight, bias, token = inputs()
    ours = token_log_probs(
        hidden, weight, bias, token, temperature=temperature, softcap=softcap, chunk=chunk, keep=keep
    )
    theirs = naive(hidden, weight, bias, token, temperature=temperature, softcap=softcap)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    parameters = (hidden, weight, bias)
    for a, b in zip(gradients(ours, parameters), gradients(theirs, parameters), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("entropy", [True, False])
def test_gradcheck(softcap: float | None, entropy: bool) -> None:
    hidden, weight, bias, token = inputs(rows=3, scale=1.0)

    def outputs(*parameters: Tensor) -> Any:
        both = token_log_probs(*parameters, token, temperature=0.7, softcap=softcap, chunk=3 * 5, entropy=entropy)
        return both if entropy else both[0]

    assert torch.autograd.gradcheck(outputs, (hidden, weight, bias))


def test_float32_is_as_good_as_the_naive_form() -> None:
    exact = naive(*(each.detach() for each in inputs()))
    hidden, weight, bias, token = inputs(torch.float32)
    ours, theirs = token_log_probs(hidden, weight, bias, token, chunk=ROWS), naive(hidden, weight, bias, token)
    for a, b, c in zip(ours, theirs, exact, strict=True):
        assert a.dtype == torch.float32
        assert (a - c).abs().max() <= 2 * (b - c).abs().max() + 1e-6


def test_large_logits_and_a_sure_choice() -> None:
    """The largest logit stands in the last chunk, far above the others: probability 1, entropy 0, no overflow."""
    weight = torch.tensor([[0.0], [1.0], [2.0], [1000.0]])
    hidden = torch.tensor([[1.0], [-1.0]], requires_grad=True)
    log_prob, entropy = token_log_probs(hidden, weight, None, torch.tensor([3, 0]), chunk=2)
    expected = math.log(1 + math.exp(-1) + math.exp(-2))
    torch.testing.assert_close(log_prob, torch.tensor([0.0, -expected]))
    p = [math.exp(-i - expected) for i in range(3)]
    torch.testing.assert_close(entropy, torch.tensor([0.0, -sum(each * math.log(each) for each in p)]))
    (log_prob + entropy).sum().backward()
    assert hidden.grad is not None
    assert hidden.grad[0].item() == 0
    assert hidden.grad[1].isfinite()


def test_uniform() -> None:
    hidden, weight = torch.zeros(2, 3, dtype=torch.float64), torch.randn(9, 3, generator=rng(), dtype=torch.float64)
    log_prob, entropy = token_log_probs(hidden, weight, None, torch.tensor([0, 8]), chunk=4)
    torch.testing.assert_close(log_prob, torch.full((2,), -math.log(9), dtype=torch.float64))
    torch.testing.assert_close(entropy, torch.full((2,), math.log(9), dtype=torch.float64))


def test_bfloat16_is_summed_in_float32() -> None:
    """What comes out is that of the rounded inputs in float32, which logits rounded to bfloat16 are not."""
    hidden, weight, bias, token = inputs(torch.bfloat16)
    ours = token_log_probs(hidden, weight, bias, token, chunk=ROWS * 3)
    exact = naive(hidden.double(), weight.double(), bias.double(), token)
    rounded = naive(hidden, weight, bias, token)
    for a, b, c in zip(ours, exact, rounded, strict=True):
        assert a.dtype == torch.float32
        torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=1e-5)
        assert (c.double() - b).abs().max() > 1e-3
    parameters = (hidden, weight, bias)
    for a, b in zip(gradients(ours, parameters), gradients(exact, parameters), strict=True):
        assert a.dtype == torch.bfloat16
        torch.testing.assert_close(a, b, rtol=0.02, atol=0.02)


def test_autocast_changes_nothing() -> None:
    hidden, weight, bias, token = inputs(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        inside = token_log_probs(hidden, weight, bias, token)
    outside = token_log_probs(hidden, weight, bias, token)
    for a, b in zip(inside, outside, strict=True):
        assert torch.equal(a, b)


def test_hidden_states_of_autocast_beside_a_head_in_float32() -> None:
    hidden, weight, bias, token = inputs(torch.float32)
    half = hidden.detach().bfloat16().requires_grad_()
    ours, theirs = token_log_probs(half, weight, bias, token), naive(half.float(), weight, bias, token)
    torch.testing.assert_close(ours, theirs)
    for a, b in zip(gradients(ours, (half, weight)), gradients(theirs, (half, weight)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-2, atol=1e-5)
        assert a.dtype == b.dtype


@pytest.mark.parametrize("trained", [0, 1, 2])
def test_gradients_only_of_what_is_trained(trained: int) -> None:
    *parameters, token = inputs()
    expected = gradients(naive(*parameters, token), tuple(parameters))[trained]
    for i, parameter in enumerate(parameters):
        parameter.requires_grad_(i == trained)
    ours = token_log_probs(*parameters, token, chunk=ROWS * 3)
    torch.testing.assert_close(gradients(ours, (parameters[trained],))[0], expected)
    ours = token_log_probs(*parameters, token, chunk=ROWS * 3)
    sum(each.sum() for each in ours if each is not None).backward()  # type: ignore[union-attr]
    assert [parameter.grad is not None for parameter in parameters] == [i == trained for i in range(3)]


@pytest.mark.parametrize("chunk", [1, ROWS * 4, 2**22])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("outputs", [[0], [1], [0, 1]])
def test_frozen_last_layer(chunk: int, temperature: float, softcap: float | None, outputs: list[int]) -> None:
    hidden, *frozen, token = inputs()
    weight, bias = (each.detach() for each in frozen)
    options = {"temperature": temperature, "softcap": softcap}
    found = []
    for ours in (True, False):
        both = (
            token_log_probs(hidden, weight, bias, token, chunk=chunk, **options)
            if ours
            else naive(hidden, weight, bias, token, **options)
        )
        chosen = tuple(both[i] for i in outputs)
        found.append((*chosen, *gradients(chosen, (hidden,))))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


def test_frozen_last_layer_in_bfloat16() -> None:
    hidden, weight, _, token = inputs(torch.bfloat16)
    ours = token_log_probs(hidden, weight.detach(), None, token, chunk=ROWS * 3)[:1]
    exact = naive(hidden.double(), weight.detach().double(), None, token)[:1]
    (a,), (b,) = gradients(ours, (hidden,)), gradients(exact, (hidden,))
    assert a.dtype == torch.bfloat16
    torch.testing.assert_close(a, b, rtol=0.02, atol=0.02)


class Products(TorchDispatchMode):
    """Multiply-adds of all matrix products."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket is torch.ops.aten.mm:
            self.count += args[0].numel() * args[1].shape[1]
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("keep", "trained", "products"), [(0.0, True, 4), (0.5, True, 3.5), (1.0, True, 3), (0.0, False, 2)]
)
def test_what_is_worked_out(keep: float, trained: bool, products: float) -> None:
    """In products of all hidden states with all of the last layer; a plain forward and backward takes 3, or 2."""
    vocabulary, rows, width = 64, 8, 4
    hidden = torch.randn(rows, width, generator=rng()).requires_grad_()
    weight = torch.randn(vocabulary, width, generator=rng()).requires_grad_(trained)
    with Products() as mode:
        log_prob, _ = token_log_probs(hidden, weight, None, torch.arange(rows), chunk=rows * 8, keep=keep)
        log_prob.sum().backward()
    assert mode.count == products * vocabulary * rows * width


def test_without_gradients_nothing_is_kept() -> None:
    hidden, weight, bias, token = inputs()
    with torch.no_grad(), Products() as mode:
        token_log_probs(hidden, weight.detach(), bias.detach(), token, chunk=ROWS * 4, keep=1.0)
    assert mode.count == ROWS * VOCABULARY * WIDTH


def test_a_second_backward_pass_finds_the_same() -> None:
    hidden, weight, bias, token = inputs()
    loss = token_log_probs(hidden, weight, bias, token, chunk=ROWS * 4, keep=1.0)[0].sum()
    first, second = (torch.autograd.grad(loss, (hidden, weight, bias), retain_graph=True) for _ in range(2))
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b)


def test_without_entropy() -> None:
    hidden, weight, bias, token = inputs()
    with_it, without = (
        token_log_probs(hidden, weight, bias, token),
        token_log_probs(hidden, weight, bias, token, entropy=False),
    )
    assert without[1] is None
    assert torch.equal(with_it[0], without[0])


def test_gradient_of_one_output_alone() -> None:
    hidden, weight, bias, token = inputs()
    for i in (0, 1):
        ours = token_log_probs(hidden, weight, bias, token, chunk=ROWS * 3)[i]
        theirs = naive(hidden, weight, bias, token)[i]
        assert ours is not None
        for a, b in zip(
            torch.autograd.grad(ours.sum(), (hidden, weight, bias)),
            torch.autograd.grad(theirs.sum(), (hidden, weight, bias)),
            strict=True,
        ):
            torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


class LargestTensor(TorchDispatchMode):
    """How many elements the largest tensor has that any operation returns."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for each in result if isinstance(result, tuple | list) else [result]:
            if isinstance(each, Tensor):
                self.elements = max(self.elements, each.numel())
        return result


@pytest.mark.parametrize(("rows", "width"), [(64, 2), (2, 64)])
def test_no_tensor_is_larger_than_the_chunk(rows: int, width: int) -> None:
    """But the weights and their gradient; the naive form does hold all logits."""
    vocabulary, chunk = 500, 2048
    hidden = torch.randn(rows, width, generator=rng()).requires_grad_()
    weight = torch.randn(vocabulary, width, generator=rng())
    token = torch.randint(vocabulary, (rows,), generator=rng())
    largest = []
    for function in (lambda *a: token_log_probs(*a, chunk=chunk), naive):
        with LargestTensor() as mode:
            log_prob, entropy = function(hidden, weight, None, token)
            (log_prob.sum() + entropy.sum()).backward()
        largest.append(mode.elements)
    assert largest == [chunk, 64 * vocabulary if rows == 64 else vocabulary * width]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, r"temperature = 0.0; valid: a positive number"),
        ({"temperature": math.nan}, r"temperature = nan"),
        ({"softcap": -1.0}, r"softcap = -1.0; valid: a positive number"),
        ({"chunk": 0}, r"chunk = 0; valid: at least 1"),
        ({"keep": 1.5}, r"keep = 1.5; valid: from 0 to 1"),
    ],
)
def test_options_without_a_valid_value(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        token_log_probs(*inputs(), **options)


@pytest.mark.parametrize("token", [-1, VOCABULARY])
def test_tokens_that_do_not_exist(token: int) -> None:
    hidden, weight, bias, tokens = inputs()
    tokens[3] = token
    with pytest.raises(ValueError, match=rf"token = {token}; valid: 0 to {VOCABULARY - 1}"):
        token_log_probs(hidden, weight, bias, tokens)


def test_no_tokens() -> None:
    hidden, weight, bias, token = inputs(rows=0)
    log_prob, entropy = token_log_probs(hidden, weight, bias, token)
    assert log_prob.shape == (0,)
    assert entropy is not None
    (log_prob.sum() + entropy.sum()).backward()
    assert weight.grad is not None
    assert not weight.grad.any()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_cuda(dtype: torch.dtype) -> None:
    cpu = inputs(dtype)
    cuda = [each.detach().cuda().requires_grad_(each.is_floating_point()) for each in cpu]
    here, there = token_log_probs(*cpu, chunk=ROWS * 3), token_log_probs(*cuda, chunk=ROWS * 3)
    for a, b in zip(here, there, strict=True):
        torch.testing.assert_close(a, b.cpu(), rtol=1e-4, atol=1e-4)
    loss = there[0].sum() + there[1].sum()
    expected = torch.autograd.grad(here[0].sum() + here[1].sum(), cpu[:3])
    for a, b in zip(expected, torch.autograd.grad(loss, cuda[:3]), strict=True):
        torch.testing.assert_close(a, b.cpu(), rtol=1e-2, atol=1e-2)
