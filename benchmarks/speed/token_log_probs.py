"""What log-probabilities of tokens cost: ``python -m decisionrl.benchmarks.speed.token_log_probs``.

The yardstick is the plain form, ``log_softmax(hidden W^T)`` with all logits in memory. Both give the log-probabilities
with a graph and the entropies without one, as an update of a policy needs them, and then the gradient; they must agree
before they are timed.

Rows (suite "speed-token-log-probs"), on one thread. Cases are ``tokens x vocabulary x width``, with the suffix
``-frozen`` where the last layer is not trained, as with LoRA, and ``-keep`` with the share of the logits that the
library keeps for the backward pass.

- ``seconds``: of a forward and a backward pass. ``speedup``: the plain form's over the library's, the median of the
  rounds with the smallest and largest.
- ``peak_gb``: of memory in such a pass, hidden states, weights and gradients included. On the CPU of a fresh process,
  less what it has after its imports (Linux only); elsewhere allocated on the device.
- ``memory_ratio``: the library's peak over the plain form's.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from decisionrl.benchmarks.speed.report import Report, command_line
from decisionrl.benchmarks.speed.timing import race
from decisionrl.policies.token_log_probs import token_log_probs
from decisionrl.seeding import generator

SUITE = "speed-token-log-probs"
SPEEDUP, MEMORY_RATIO = 1.0, 0.4
"""Targets."""

TOLERANCE = 1e-4
"""How far outputs and gradients may be apart, relative to the largest."""


@dataclass(frozen=True)
class Case:
    """How many tokens, of how large a vocabulary, from hidden states how wide, and whether the last layer is frozen."""

    tokens: int
    vocabulary: int
    width: int
    frozen: bool = False
    keep: float = 0.0

    @property
    def name(self) -> str:
        kept = f"-keep{self.keep:g}" if self.keep else ""
        return f"{self.tokens}x{self.vocabulary}x{self.width}" + "-frozen" * self.frozen + kept


@dataclass(frozen=True)
class Profile:
    """What is measured, and in how many rounds it is timed."""

    rounds: int
    cases: Sequence[Case]


KEEP = 0.2
"""What the target of memory leaves room for."""

FULL = Profile(6, (Case(1024, 2**17, 512), Case(1024, 2**17, 512, keep=KEEP), Case(1024, 2**17, 512, frozen=True)))
QUICK = Profile(3, (Case(512, 2**17, 128), Case(512, 2**17, 128, keep=KEEP), Case(512, 2**17, 128, frozen=True)))

Form = Callable[[Tensor, Tensor, Tensor, float], tuple[Tensor, Tensor]]
"""``form(hidden, weight, token, keep) -> (log_prob, entropy)``."""


def ours(hidden: Tensor, weight: Tensor, token: Tensor, keep: float) -> tuple[Tensor, Tensor]:
    """The library's."""
    log_prob, entropy = token_log_probs(hidden, weight, None, token, keep=keep)
    assert entropy is not None
    return log_prob, entropy.detach()


def plain(hidden: Tensor, weight: Tensor, token: Tensor, _: float) -> tuple[Tensor, Tensor]:
    """With all logits in memory, no longer than they are needed."""
    log_softmax = torch.log_softmax(hidden @ weight.T, 1)
    with torch.no_grad():
        entropy = -(log_softmax.exp().mul_(log_softmax)).sum(1)
    return log_softmax.gather(1, token.unsqueeze(1)).squeeze(1), entropy


FORMS: dict[str, Form] = {"ours": ours, "plain": plain}


def inputs(case: Case, device: str) -> tuple[Tensor, Tensor, Tensor]:
    """Random hidden states, weights and tokens."""
    drawing = generator(0, "inputs")
    hidden = torch.randn(case.tokens, case.width, generator=drawing)
    weight = torch.randn(case.vocabulary, case.width, generator=drawing).mul_(case.width**-0.5)
    token = torch.randint(case.vocabulary, (case.tokens,), generator=drawing)
    trained = weight.to(device).requires_grad_(not case.frozen)
    return hidden.to(device).requires_grad_(), trained, token.to(device)


def step(form: Form, keep: float, hidden: Tensor, weight: Tensor, token: Tensor) -> tuple[Tensor, ...]:
    """Outputs and gradients."""
    log_prob, entropy = form(hidden, weight, token, keep)
    gradients = torch.autograd.grad(log_prob.mean(), [each for each in (hidden, weight) if each.requires_grad])
    return log_prob.detach(), entropy, *gradients


def check(keep: float, hidden: Tensor, weight: Tensor, token: Tensor) -> None:
    """Raises RuntimeError if the two forms differ."""
    results = [step(form, keep, hidden, weight, token) for form in FORMS.values()]
    for a, b in zip(*results, strict=True):
        if not bool((a - b).abs().max() <= TOLERANCE * b.abs().max()):
            raise RuntimeError(f"library {a.flatten()[:4].tolist()}, plain {b.flatten()[:4].tolist()}")


def print_peak(name: str, case: Case, device: str) -> None:
    """The peak of one step in this process, which should be a fresh one, in GB on standard output."""
    torch.set_num_threads(1)
    before = _resident_gb("VmRSS") if device == "cpu" else 0.0
    step(FORMS[name], case.keep, *inputs(case, device))
    peak = _resident_gb("VmHWM") if device == "cpu" else torch.cuda.max_memory_allocated(device) / 1e9
    print(json.dumps(peak - before))


def peak_gb(name: str, case: Case, device: str) -> float:
    """:func:`print_peak` of a fresh process."""
    code = f"from {__spec__.name} import Case, print_peak; print_peak({name!r}, Case(**{asdict(case)!r}), {device!r})"
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return float(json.loads(finished.stdout))


def _resident_gb(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if field in line) * 1024 / 1e9


def measure(report: Report, profile: Profile, *, device: str) -> None:
    """All rows."""
    for case in profile.cases:
        tensors = inputs(case, device)
        check(case.keep, *tensors)
        runners = {name: partial(step, form, case.keep, *tensors) for name, form in FORMS.items()}
        seconds = race(runners, rounds=profile.rounds, device=device)
        for name, each in seconds.items():
            report.rounds(case.name, name, "seconds", each)
        report.speedup(case.name, "ours", seconds["plain"], seconds["ours"], SPEEDUP)
        del tensors, runners
        peaks = {name: peak_gb(name, case, device) for name in FORMS}
        for name, peak in peaks.items():
            report.add(case.name, name, "peak_gb", peak)
        report.add(case.name, "ours", "memory_ratio", peaks["ours"] / peaks["plain"], target=MEMORY_RATIO)


def main(arguments: list[str] | None = None) -> None:
    """The command line."""

    def measured(report: Report, quick: bool, device: str) -> None:
        measure(report, QUICK if quick else FULL, device=device)

    command_line(SUITE, __doc__, measured, arguments)


if __name__ == "__main__":
    main()
