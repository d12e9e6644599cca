"""How long a step of GRPO on a language model takes, beside TRL's: ``python -m decisionrl.benchmarks.speed.llm``.

A step is 8 responses to each of 8 prompts, their rewards, and one optimizer step with AdamW on the whole batch. Both
begin with the same small Llama, prompts and reward function; no response ends before its last token, so both write and
train on equally many. The library's step is that of recipe ``grpo``: with log-probabilities as they were sampled, as
TRL has none but those of the update ("ours"), with those worked out anew before the update ("recomputed"), and as the
first, with each prompt read once for all of its responses ("shared").

Rows (suite "speed-llm"), on one thread, of the cases "prompt-P-response-T".

- ``step_ms``: of processor time, the median of the steps with the smallest and largest.
- ``speedup``: TRL's step over the library's, round by round.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from decisionrl.benchmarks.speed.report import Report, command_line
from decisionrl.callbacks import Callback
from decisionrl.envs.text.prompts import PromptTask
from decisionrl.envs.text.tokenizer import character_tokenizer
from decisionrl.experiment import Experiment
from decisionrl.llm.generation import Generated, generate
from decisionrl.llm.world import LogProbs, TextWorld
from decisionrl.policies.language_models import quietly, tiny_model
from decisionrl.recipes.grpo import grpo
from decisionrl.seeding import generator
from decisionrl.trainer import Trainer

SUITE = "speed-llm"
LETTERS = "abcdefghijklmnopqrstuvwxyz"
PROMPTS, RESPONSES = 8, 8
LEARNING_RATE = 1e-4
SPEEDUP_TARGET = 1 / 0.9


@dataclass(frozen=True)
class Case:
    """prompt, response: tokens. width, layers: of the model."""

    prompt: int
    response: int
    width: int = 128
    layers: int = 4

    @property
    def name(self) -> str:
        return f"prompt-{self.prompt}-response-{self.response}"


@dataclass(frozen=True)
class Profile:
    """What is timed: the steps of each round after the first, which is not counted."""

    cases: Sequence[Case]
    rounds: int
    steps: int


FULL = Profile([Case(32, 64), Case(256, 64)], 6, 4)
QUICK = Profile([Case(32, 32)], 2, 2)


def vowels(prompts: Any, completions: Sequence[str], **columns: Any) -> list[float]:
    """The share of vowels."""
    return [sum(letter in "aeiou" for letter in said) / max(1, len(said)) for said in completions]


def rows(case: Case) -> list[dict[str, Any]]:
    """Random prompts."""
    drawn = torch.randint(len(LETTERS), (PROMPTS, case.prompt), generator=generator(0, "prompts"))
    return [{"prompt": "".join(LETTERS[letter] for letter in row)} for row in drawn.tolist()]


def save_model(case: Case, directory: Path) -> None:
    """The model that both begin with, and its tokenizer."""
    tokenizer = character_tokenizer(LETTERS)
    model = tiny_model(
        len(tokenizer),
        width=case.width,
        layers=case.layers,
        context=case.prompt + case.response,
        generator=generator(0, "model"),
    )
    with quietly():
        model.save_pretrained(directory)
        tokenizer.save_pretrained(directory)


def endless(*arguments: Any, stop: Sequence[int], **options: Any) -> Generated:
    """An engine whose responses end with their last token only."""
    return generate(*arguments, stop=(), **options)


class StepTimes(Callback):
    """Processor seconds of every step."""

    name = "step times"

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._since = 0.0

    def on_start(self, trainer: Trainer) -> None:
        self._since = time.process_time()

    def on_step(self, trainer: Trainer) -> None:
        now = time.process_time()
        self.seconds.append(now - self._since)
        self._since = now


def our_experiment(case: Case, model: Path, log_probs: LogProbs, share_prompts: bool, device: str) -> Experiment:
    """Recipe grpo with TRL's optimizer step: all responses at once, once."""
    experiment = grpo(
        env=PromptTask(rows=rows(case), reward_functions=[vowels], max_tokens=case.response, best_reward=1.0),
        model=str(model),
        groups=PROMPTS,
        group_size=RESPONSES,
        epochs=1,
        num_envs=PROMPTS * RESPONSES,
        learning_rate=LEARNING_RATE,
        clip_norm=1.0,
        log_probs=log_probs,
        share_prompts=share_prompts,
        device=device,
        steps=10**9,
    )
    world: Any = experiment.source.world  # type: ignore[attr-defined]
    assert isinstance(world, TextWorld)
    world.engine = endless
    return experiment


def our_steps(
    case: Case, model: Path, steps: int, device: str, *, log_probs: LogProbs = "sampled", share_prompts: bool = False
) -> list[float]:
    """Seconds of each step."""
    times = StepTimes()
    trainer = Trainer(our_experiment(case, model, log_probs, share_prompts, device), callbacks=[times])
    trainer.fit(steps * PROMPTS * RESPONSES * case.response)
    return times.seconds[1:]


def their_steps(case: Case, model: Path, steps: int, device: str) -> list[float]:
    """Seconds of each step of TRL's trainer."""
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    seconds: list[float] = []

    class Watch(TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:
            self.since = time.process_time()

        def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
            seconds.append(time.process_time() - self.since)

    with tempfile.TemporaryDirectory() as out, quietly():
        trainer = GRPOTrainer(
            str(model),
            vowels,
            GRPOConfig(
                out,
                per_device_train_batch_size=PROMPTS * RESPONSES,
                num_generations=RESPONSES,
                max_completion_length=case.response,
                generation_kwargs={"min_new_tokens": case.response},
                learning_rate=LEARNING_RATE,
                lr_scheduler_type="constant",
                max_steps=steps,
                loss_type="grpo",
                bf16=False,
                gradient_checkpointing=False,
                use_cpu=device == "cpu",
                logging_strategy="no",
                save_strategy="no",
                report_to=[],
                disable_tqdm=True,
            ),
            train_dataset=Dataset.from_list(rows(case)),
            callbacks=[Watch()],
        )
        trainer.train()
    return seconds[1:]


def measure(report: Report, profile: Profile, *, device: str) -> None:
    """All rows."""
    for case in profile.cases:
        with tempfile.TemporaryDirectory() as folder:
            model = Path(folder) / "model"
            save_model(case, model)
            runners: dict[str, Callable[..., list[float]]] = {
                "trl": their_steps,
                "ours": our_steps,
                "recomputed": partial(our_steps, log_probs="recomputed"),
                "shared": partial(our_steps, share_prompts=True),
            }
            seconds: dict[str, list[float]] = {name: [] for name in runners}
            for _ in range(profile.rounds):
                for name, run in runners.items():
                    each = run(case, model, profile.steps + 1, device)
                    seconds[name].append(sum(each) / len(each))
        for name, values in seconds.items():
            report.rounds(case.name, name, "step_ms", [1e3 * value for value in values])
        for name in ("ours", "recomputed", "shared"):
            target = SPEEDUP_TARGET if name == "ours" else None
            report.speedup(case.name, name, seconds["trl"], seconds[name], target)


def main(arguments: list[str] | None = None) -> None:
    """The command line."""

    def measured(report: Report, quick: bool, device: str) -> None:
        measure(report, QUICK if quick else FULL, device=device)

    command_line(SUITE, __doc__, measured, arguments)


if __name__ == "__main__":
    main()
