"""Language models behind the arguments of the recipes: the task, the model, where prompts are divided."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from decisionrl.envs.text import make_task, split
from decisionrl.envs.text.task import TextTask
from decisionrl.envs.text.tokenizer import character_tokenizer
from decisionrl.evaluation.language import PassEvaluator
from decisionrl.evaluation.results import config_hash
from decisionrl.llm.warm_start import warm_start
from decisionrl.llm.world import TextWorld
from decisionrl.policies.language import LanguagePolicy
from decisionrl.policies.language_models import load_model, tiny_model
from decisionrl.seeding import generator

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

CACHE = "DECISIONRL_CACHE"
"""The environment variable that names the folder of warm-started models; by default ~/.cache/decisionrl."""

WARM = 0.3
"""The share of right answers at which a warm start ends."""


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
        num_envs: responses written side by side.
        max_tokens: of a response; by default the task's.
        seed: of the small transformer and its warm start.
    """

    env: str | TextTask
    env_options: Mapping[str, Any]
    model: str | None
    lora_rank: int | None
    temperature: float
    gradient_checkpointing: bool
    num_envs: int
    max_tokens: int | None
    seed: int
    device: str

    @cached_property
    def task(self) -> TextTask:
        return make_task(self.env, **self.env_options) if isinstance(self.env, str) else self.env

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return self._loaded[1]

    @cached_property
    def prompts(self) -> tuple[Tensor | None, Tensor | None]:
        """The numbers of those to train on, and of those to measure on; None where there is no end of them."""
        return (None, None) if self.task.num_prompts is None else split(self.task)

    def world(self, num_envs: int, *, held_out: bool = False) -> TextWorld:
        """The training prompts, or the others."""
        return TextWorld(
            self.task,
            self.tokenizer,
            num_envs=num_envs,
            prompts=self.prompts[held_out],
            max_tokens=self.max_tokens,
            device=self.device,
        )

    def policy(self, *, critic: bool) -> LanguagePolicy:
        """The model as a policy."""
        return LanguagePolicy(
            self._loaded[0],
            temperature=self.temperature,
            value="shared" if critic else None,
            gradient_checkpointing=self.gradient_checkpointing,
        ).to(self.device)

    def evaluator(self) -> PassEvaluator:
        """Of held-out prompts."""
        return PassEvaluator(make_world=lambda: self.world(self.num_envs, held_out=True), success=self.task.best_reward)

    @cached_property
    def _loaded(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        return load_model(self._directory, lora_rank=self.lora_rank)

    @property
    def _directory(self) -> Path:
        if self.model is not None:
            return Path(self.model)
        folder = Path(os.environ.get(CACHE, "~/.cache/decisionrl")).expanduser()
        name = (
            f"{self.task.name.rpartition('/')[2]}-{config_hash({'options': dict(self.env_options), 'seed': self.seed})}"
        )
        if not (folder / name).exists():
            self._warm_started(folder, name)
        return folder / name

    def _warm_started(self, folder: Path, name: str) -> None:
        tokenizer = character_tokenizer(self.task.alphabet)
        context = 64 + self.task.max_tokens
        model = tiny_model(len(tokenizer), context=context, generator=generator(self.seed, "model"))
        world = TextWorld(self.task, tokenizer, num_envs=256, prompts=self.prompts[0])
        warm_start(LanguagePolicy(model), world, target=WARM, seed=self.seed)
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as whole:
            model.save_pretrained(whole)
            tokenizer.save_pretrained(whole)
            shutil.copytree(whole, folder / f".{name}.tmp", dirs_exist_ok=True)
        (folder / f".{name}.tmp").rename(folder / name)
