"""Language models behind the arguments of the recipes: the task, the model, where prompts are divided."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from decisionrl.envs.text import make_task, split
from decisionrl.envs.text.task import TextTask, success_of
from decisionrl.evaluation.language import PassEvaluator
from decisionrl.evaluation.results import config_hash
from decisionrl.llm.warm_start import no_alphabet, warm_started
from decisionrl.llm.world import LogProbs, TextWorld
from decisionrl.policies.language import LanguagePolicy
from decisionrl.policies.language_models import load_model
from decisionrl.policies.prefix_sharing import PrefixAttention
from decisionrl.seeding import generator

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

SEVERAL = 512
"""Prompts by which tasks are told apart."""

CACHE = "DECISIONRL_CACHE"
"""The environment variable that names the folder of warm-started models; by default ~/.cache/decisionrl."""


@dataclass(frozen=True, kw_only=True)
class Language:
    """A text task and a model for it.

    Attributes:
        env: ``text/NAME``, or a task.
        env_options: keyword arguments of a named task.
        model: a directory with a model and its tokenizer. None: a small transformer with a token for each character,
            which imitates right answers until 30 % of its own are right; it is kept in the folder that the environment
            variable DECISIONRL_CACHE names.
        lora_rank: train low-rank adapters (arXiv 2106.09685) instead of the weights.
        temperature: of the sampling, and of all log-probabilities.
        gradient_checkpointing: work activations out anew instead of keeping them.
        share_prompts: read a prompt once for all of its responses in a batch; pays where prompts are long.
        prefix_attention: by which of torch's attentions: "sdpa", or "flex" on a GPU.
        log_probs: "recomputed" or as they were "sampled"; see :class:`~decisionrl.llm.world.TextWorld`.
        held_out: the share of the prompts that are not trained on but measured on; 0: all are both.
        num_envs: responses written side by side.
        max_tokens: of a response; by default the task's.
        seed: of the small transformer and its warm start, and of the adapters.

    Raises:
        ValueError: an option has no valid value.
    """

    env: str | TextTask
    env_options: Mapping[str, Any]
    model: str | None
    lora_rank: int | None
    temperature: float
    gradient_checkpointing: bool
    share_prompts: bool
    prefix_attention: PrefixAttention
    log_probs: LogProbs
    held_out: float
    num_envs: int
    max_tokens: int | None
    seed: int
    device: str

    def __post_init__(self) -> None:
        for name in ("max_tokens", "lora_rank"):
            value = getattr(self, name)
            if value is not None and value < 1:
                asked = "max_steps" if name == "max_tokens" else name
                raise ValueError(f"{asked} = {value}; valid: a whole number >= 1, or None")
        if not 0 <= self.held_out < 1:
            raise ValueError(f"held_out = {self.held_out}; valid: from 0 to below 1")

    @cached_property
    def task(self) -> TextTask:
        return make_task(self.env, **self.env_options) if isinstance(self.env, str) else self.env

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return self._loaded[1]

    @cached_property
    def prompts(self) -> tuple[Tensor | None, Tensor | None]:
        """The numbers of those to train on, and of those to measure on; None: all."""
        if not self.held_out:
            return None, None
        if self.task.num_prompts is None:
            raise ValueError(
                f"held_out = {self.held_out}; valid with {self.task.name}: 0, there is no end of its prompts and those "
                "that are measured on were hardly ever trained on"
            )
        if not 0 < round((1 - self.held_out) * self.task.num_prompts) < self.task.num_prompts:
            raise ValueError(
                f"held_out = {self.held_out} of {self.task.num_prompts} prompts; valid: a share that leaves prompts to "
                "train on and to measure on"
            )
        return split(self.task, train_share=1 - self.held_out)

    def world(self, num_envs: int, *, measured: bool = False) -> TextWorld:
        """The prompts to train on, or those to measure on."""
        return TextWorld(
            self.task,
            self.tokenizer,
            num_envs=num_envs,
            prompts=self.prompts[measured],
            max_tokens=self.max_tokens,
            log_probs=self.log_probs,
            device=self.device,
        )

    def policy(self, *, critic: bool) -> LanguagePolicy:
        """The model as a policy.

        Raises:
            ValueError: it does not fit the prompts; see :meth:`~decisionrl.llm.world.TextWorld.check`.
        """
        policy = LanguagePolicy(
            self._loaded[0],
            temperature=self.temperature,
            value="shared" if critic else None,
            gradient_checkpointing=self.gradient_checkpointing,
            share_prompts=self.share_prompts,
            prefix_attention=self.prefix_attention,
        ).to(self.device)
        for measured in (False, True) if self.held_out else (False,):
            self.world(1, measured=measured).check(policy)
        return policy

    def evaluator(self) -> PassEvaluator:
        """Of the prompts to measure on; right is what the task says, or what earns 1 where that is unknown."""
        success = success_of(self.task)
        return PassEvaluator(
            make_world=lambda: self.world(self.num_envs, measured=True), success=1.0 if success is None else success
        )

    @cached_property
    def _loaded(self) -> tuple[PreTrainedModel | PeftModel, PreTrainedTokenizerBase]:
        try:
            return load_model(self._directory, lora_rank=self.lora_rank, generator=generator(self.seed, "adapters"))
        except FileNotFoundError as error:
            raise ValueError(
                f"model = {self.model!r}: {error}; valid: a directory as save_pretrained leaves it"
            ) from error

    @property
    def _directory(self) -> Path:
        if self.model is not None:
            return Path(self.model)
        folder = _cache()
        task = {"options": dict(self.env_options)} if isinstance(self.env, str) else {"task": _content(self.task)}
        made = {**task, "held_out": self.held_out, "seed": self.seed}
        name = f"{self.task.name.rpartition('/')[2]}-{config_hash(made)}"
        return warm_started(self.task, folder / name, seed=self.seed, prompts=self.prompts[0])


def _cache() -> Path:
    """The folder of warm-started models, made if need be."""
    folder = Path(os.environ.get(CACHE, "~/.cache/decisionrl")).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        problem = None if os.access(folder, os.W_OK) else "not writable"
    except OSError as error:
        problem = error.strerror
    if problem is not None:
        raise ValueError(f"{CACHE} = {str(folder)!r}: {problem}; valid: a folder for small models")
    return folder


def _content(task: TextTask) -> dict[str, Any]:
    """What tells a task from others that a warm start can learn: prompts, right answers, and what others are worth."""
    if task.alphabet is None:
        raise no_alphabet(task)
    several = range(SEVERAL if task.num_prompts is None else min(SEVERAL, task.num_prompts))
    draws = generator(0, "demonstrations")
    answers = [task.demonstration(index, draws) for index in several]
    return {
        "class": f"{type(task).__module__}.{type(task).__qualname__}",
        "alphabet": task.alphabet,
        "max_tokens": task.max_tokens,
        "num_prompts": task.num_prompts,
        "prompts": [task.prompt(index) for index in several],
        "answers": answers,
        "unfinished": task.rewards(list(several), [answer[:-1] for answer in answers]),
    }
