"""How much is saved by one forward of a prompt for all its responses:
``python -m decisionrl.benchmarks.speed.prefix_sharing``.

One prompt of L tokens has G responses of 128; the model is a Llama of four layers with random weights. Timed is the
mean log-probability of the responses' tokens with its gradient, as ``grouped_hidden`` works it out ("shared") and from
a forward of prompt and response for every response ("repeated"), which needs no mask as all have one length. Both must
agree in the loss and in all gradients before they are timed.

Rows (suite "speed-prefix-sharing"), on one thread, of the cases "prompt-L-responses-G".

- ``speedup``: seconds of "repeated" over those of "shared", the median of the rounds with the smallest and largest.
- ``peak_gb``: memory at most in use, more than before, in a process of its own; with the longest prompts only, as what
  torch needs once is more than short ones take. ``memory``: that of "shared" over that of "repeated".
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from decisionrl.benchmarks.speed.in_context import agree
from decisionrl.benchmarks.speed.memory import largest_resident_gb
from decisionrl.benchmarks.speed.report import Report, command_line
from decisionrl.benchmarks.speed.timing import race
from decisionrl.policies.prefix_sharing import grouped_hidden
from decisionrl.seeding import generator

SUITE = "speed-prefix-sharing"
TOLERANCE = 1e-5
"""How far the losses and gradients of both may be apart."""

VOCABULARY = 512


@dataclass(frozen=True)
class Case:
    """A prompt and its responses, with targets.

    Attributes:
        prompt, response: tokens.
        memory: whether it is measured.
    """

    prompt: int
    responses: int
    response: int = 128
    memory: bool = False
    speedup_target: float | None = None
    memory_target: float | None = None

    @property
    def name(self) -> str:
        return f"prompt-{self.prompt}-responses-{self.responses}"


TARGET = Case(1024, 8, memory=True, speedup_target=2.5, memory_target=0.4)


@dataclass(frozen=True)
class Profile:
    """What is timed, and how often."""

    cases: Sequence[Case]
    rounds: int


FULL = Profile(
    [
        TARGET if (length, count) == (TARGET.prompt, TARGET.responses) else Case(length, count, memory=length == 1024)
        for length in (64, 256, 1024)
        for count in (2, 4, 8, 16)
    ],
    6,
)
QUICK = Profile([Case(256, 8), TARGET], 2)


@dataclass(frozen=True)
class Tokens:
    """The prompt [1, L] and its responses [G, T]."""

    prompt: Tensor
    responses: Tensor


def made(case: Case, device: str) -> tuple[Any, Tokens]:
    """A model and tokens, both random."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=688,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=case.prompt + case.response,
    )
    model: Any = LlamaForCausalLM(config)
    drawing = generator(0, "prefix sharing")
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(std=parameter.shape[1] ** -0.5, generator=drawing)
    prompt = torch.randint(VOCABULARY, (1, case.prompt), generator=drawing)
    responses = torch.randint(VOCABULARY, (case.responses, case.response), generator=drawing)
    return model.to(device), Tokens(prompt.to(device), responses.to(device))


def repeated(model: Any, tokens: Tokens) -> Tensor:
    """Hidden states before the responses' tokens [G, T, d], by a forward of the prompt with each response."""
    both = torch.cat([tokens.prompt.expand(len(tokens.responses), -1), tokens.responses], 1)
    hidden: Tensor = model.model(both, use_cache=False).last_hidden_state
    return hidden[:, tokens.prompt.shape[1] - 1 : -1]


def shared(model: Any, tokens: Tokens) -> Tensor:
    """The same, by one forward of the prompt."""
    group = torch.zeros(len(tokens.responses), dtype=torch.int64, device=tokens.responses.device)
    return grouped_hidden(model, prompts=tokens.prompt, responses=tokens.responses, group=group)


METHODS: dict[str, Callable[[Any, Tokens], Tensor]] = {"repeated": repeated, "shared": shared}


def step(method: str, model: Any, tokens: Tokens) -> Tensor:
    """The loss, whose gradients are left on the model."""
    model.zero_grad()
    logits = model.lm_head(METHODS[method](model, tokens))
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens.responses.flatten())
    loss.backward()  # type: ignore[no-untyped-call]
    return loss.detach()


def check(model: Any, tokens: Tokens) -> None:
    """Raises RuntimeError if the loss or a gradient of one method is not that of the other."""
    found = {}
    for method in METHODS:
        loss = step(method, model, tokens)
        found[method] = loss, {name: each.grad for name, each in model.named_parameters()}
    (loss, gradients), (other, others) = found["shared"], found["repeated"]
    agree("losses", loss, other, tolerance=TOLERANCE)
    for name, gradient in gradients.items():
        agree(f"gradients of {name}", gradient, others[name], tolerance=TOLERANCE)


def step_memory(method: str, case: Case, device: str) -> float:
    """GB that a step takes at most, beyond model, gradients and what torch needs once; in a fresh process."""
    torch.set_num_threads(1)
    model, tokens = made(case, device)
    few = Tokens(tokens.prompt[:, :1], tokens.responses[:1])
    step(method, model, few)
    if device == "cpu":
        before = largest_resident_gb()
        step(method, model, tokens)
        return largest_resident_gb() - before
    before = torch.cuda.memory_allocated(device) / 1e9
    torch.cuda.reset_peak_memory_stats(device)
    step(method, model, tokens)
    return torch.cuda.max_memory_allocated(device) / 1e9 - before


def peak_memory(method: str, case: Case, device: str) -> float:
    """:func:`step_memory` of a process that starts anew."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(step_memory, method, case, device).result()


def measure(report: Report, profile: Profile, *, device: str) -> None:
    """All rows."""
    for case in profile.cases:
        model, tokens = made(case, device)
        check(model, tokens)
        runners = {method: partial(step, method, model, tokens) for method in METHODS}
        seconds = race(runners, rounds=profile.rounds, device=device)
        report.speedup(case.name, "shared", seconds["repeated"], seconds["shared"], case.speedup_target)
        if case.memory:
            peaks = {method: peak_memory(method, case, device) for method in METHODS}
            for method, peak in peaks.items():
                report.add(case.name, method, "peak_gb", peak)
            report.add(case.name, "shared", "memory", peaks["shared"] / peaks["repeated"], target=case.memory_target)


def main(arguments: list[str] | None = None) -> None:
    """The command line."""

    def measured(report: Report, quick: bool, device: str) -> None:
        measure(report, QUICK if quick else FULL, device=device)

    command_line(SUITE, __doc__, measured, arguments)


if __name__ == "__main__":
    main()
