"""Sampling with a cache against whole passes: what is said, how likely it was, and when it ends."""

import pytest
import torch
from torch import Tensor

from decisionrl.llm.generation import ContextLengthError, Generated, generate, left_padded
from decisionrl.policies.language import LanguagePolicy
from decisionrl.policies.language_models import Family, tiny_model

pytest.importorskip("transformers")

VOCABULARY, END = 11, 10


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def small(family: Family = "llama", *, temperature: float = 1.0, context: int = 64) -> LanguagePolicy:
    model = tiny_model(
        VOCABULARY, width=16, heads=2, context=context, family=family, generator=rng(3), dtype=torch.float64
    )
    generator = rng(4)
    with torch.no_grad():  # larger weights: tokens that differ in their probabilities
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.copy_(0.6 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return LanguagePolicy(model, temperature=temperature)


CONTEXT = torch.tensor([[3, 4, 5, -1], [3, 4, 5, -1], [-1, -1, 7, 1], [2, -1, 9, -1]])


@torch.no_grad()
def whole(policy: LanguagePolicy, tokens: list[int]) -> Tensor:
    """Log-probabilities of the token after these, by a pass over all of them."""
    logits = policy.model(input_ids=torch.tensor([tokens])).logits[0, -1]
    return (logits / policy.temperature).log_softmax(-1)


def check(policy: LanguagePolicy, context: Tensor, said: Generated, *, greedy: bool = False) -> None:
    for row, prompt in enumerate(context):
        so_far = prompt[prompt >= 0].tolist()
        for t, token in enumerate(said.token[row].tolist()):
            if token < 0:
                assert not said.mask[row, t:].any()
                assert (said.token[row, t:] < 0).all()
                break
            if said.mask[row, t]:
                expected = whole(policy, so_far)
                torch.testing.assert_close(said.log_prob[row, t], expected[token], atol=1e-10, rtol=0)
                torch.testing.assert_close(said.entropy[row, t], -(expected.exp() * expected).sum(), atol=1e-10, rtol=0)
                assert not greedy or token == int(expected.argmax())
            else:
                assert said.log_prob[row, t] == said.entropy[row, t] == 0
            so_far.append(token)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_log_probabilities_are_those_of_whole_passes(family: Family, temperature: float) -> None:
    policy = small(family, temperature=temperature)
    said = generate(policy, CONTEXT, max_tokens=9, stop=[END], generator=rng(1))
    check(policy, CONTEXT, said)
    assert said.finished.tolist() == [END in row.tolist() for row in said.token]
    assert 0 < int(said.finished.sum()) < len(said.token), "of no use otherwise: rows have to drop out"
    for row, finished in zip(said.token, said.finished, strict=True):
        length = int((row >= 0).sum())
        assert row[length - 1] == END if finished else length == 9
        assert END not in row[: length - 1].tolist()


def test_without_a_generator_the_most_probable_tokens_are_taken() -> None:
    policy = small()
    said = generate(policy, CONTEXT, max_tokens=6, stop=[END], generator=None)
    check(policy, CONTEXT, said, greedy=True)
    assert torch.equal(said.token[0], said.token[1])


def test_samples_follow_the_probabilities() -> None:
    policy, rows = small(), 20_000
    said = generate(policy, CONTEXT[:1].expand(rows, -1), max_tokens=1, stop=[END], generator=rng())
    share = torch.bincount(said.token[:, 0], minlength=VOCABULARY) / rows
    expected = whole(policy, [3, 4, 5]).exp()
    assert (share - expected).abs().max() < 4 * (0.25 / rows) ** 0.5


def test_a_seed_decides_what_is_said() -> None:
    policy = small()

    def said(seed: int) -> Tensor:
        return generate(policy, CONTEXT, max_tokens=6, stop=[END], generator=rng(seed)).token

    assert torch.equal(said(1), said(1))
    assert not torch.equal(said(1), said(2))


def test_every_row_has_a_limit_of_its_own() -> None:
    limit = torch.tensor([1, 4, 2, 3])
    said = generate(small(), CONTEXT, max_tokens=limit, stop=[], generator=rng())
    assert (said.token >= 0).sum(1).tolist() == limit.tolist()
    assert not said.finished.any()


def test_what_was_left_unfinished_goes_on_as_if_it_had_not_been() -> None:
    policy = small()
    greedy = generate(policy, CONTEXT, max_tokens=6, stop=[], generator=None)
    begun = generate(policy, CONTEXT, max_tokens=2, stop=[], generator=None)
    rest = generate(policy, torch.cat([CONTEXT, begun.token], 1), max_tokens=4, stop=[], generator=None)
    assert torch.equal(torch.cat([begun.token, rest.token], 1), greedy.token)


def test_the_environment_replies() -> None:
    policy = small()
    asked: list[tuple[int, list[int]]] = []

    def reply(row: int, tokens: list[int]) -> list[int]:
        asked.append((row, tokens))
        return [4, 2] if tokens and tokens[-1] in (0, 2, 8) else []

    said = generate(policy, CONTEXT, max_tokens=8, stop=[END], generator=rng(5), reply=reply)
    check(policy, CONTEXT, said)
    assert (~said.mask & (said.token >= 0)).any()
    for row, mine in zip(said.token.tolist(), said.mask.tolist(), strict=True):
        there = [token for token in row if token >= 0]
        for t, token in enumerate(there):
            if mine[t] and token in (0, 2, 8):
                assert there[t + 1 : t + 3] == [4, 2][: len(there) - t - 1]
                assert not any(mine[t + 1 : t + 3])
    assert all(tokens[-1] != END for _, tokens in asked if tokens)
    assert asked[: len(CONTEXT)] == [(row, []) for row in range(len(CONTEXT))]


def test_the_environment_may_begin() -> None:
    policy = small()
    said = generate(
        policy, CONTEXT, max_tokens=4, stop=[], generator=rng(5), reply=lambda row, tokens: [] if tokens else [4] * row
    )
    check(policy, CONTEXT, said)
    assert (~said.mask).sum(1).tolist() == list(range(len(CONTEXT)))
    assert all(set(row[:i].tolist()) <= {4} for i, row in enumerate(said.token))


def test_the_temperature_of_single_tokens() -> None:
    policy, rows, seen = small(), 4000, []

    def cold(entropy: Tensor) -> Tensor:
        seen.append(entropy)
        return torch.full_like(entropy, 1e-3)

    said = generate(policy, CONTEXT[:1].expand(rows, -1), max_tokens=1, stop=[], generator=rng(), temperature=cold)
    expected = whole(policy, [3, 4, 5])
    assert (said.token == int(expected.argmax())).all()
    torch.testing.assert_close(said.log_prob, expected.max().expand(rows, 1))  # at the policy's own temperature
    torch.testing.assert_close(seen[0], -(expected.exp() * expected).sum().expand(rows))


def test_left_padding_moves_tokens_and_keeps_their_order() -> None:
    assert left_padded(CONTEXT).tolist() == [[3, 4, 5], [3, 4, 5], [-1, 7, 1], [-1, 2, 9]]


def test_no_rows() -> None:
    said = generate(small(), CONTEXT[:0], max_tokens=3, stop=[END], generator=rng())
    assert said.token.shape == (0, 0)
    assert said.finished.shape == (0,)


def test_what_cannot_be_continued_is_refused() -> None:
    empty = torch.tensor([[1, 2], [-1, -1]])
    with pytest.raises(ValueError, match="row 1 has no token; valid: at least one"):
        generate(small(), empty, max_tokens=3, stop=[END], generator=rng())
    with pytest.raises(ValueError, match="max_tokens = 0; valid: a whole number >= 1"):
        generate(small(), CONTEXT, max_tokens=0, stop=[END], generator=rng())
    with pytest.raises(ContextLengthError, match="row 0: 3 tokens and a response of up to 6; valid: at most 8"):
        generate(small(context=8), CONTEXT, max_tokens=6, stop=[END], generator=rng())
