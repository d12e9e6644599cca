"""Text tasks as a world: an episode is a response, an action is a token.

It plays whole episodes by itself, with a key-value cache, where other worlds are stepped; ``EpisodeSource`` asks for
them in the same way, so that a recipe does not know which of the two it has.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from gymnasium import spaces
from jaxtyping import Int
from torch import Tensor
from torch.nn.functional import pad

from decisionrl.envs.text.task import Prompt, TextTask, own_characters
from decisionrl.envs.text.tokenizer import encode
from decisionrl.experience.episodes import Played, Task
from decisionrl.experience.trajectories import NO_TOKEN
from decisionrl.llm.examples import SolvedExamples
from decisionrl.llm.generation import ContextLengthError, Engine, Generated, Temperature, generate
from decisionrl.llm.record import Provenance
from decisionrl.policies.language import LanguagePolicy

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LogProbs = Literal["recomputed", "sampled"]

CHECKED = 256
"""Prompts that are tried out before a training begins."""


@dataclass(frozen=True)
class _Attempt:
    """Responses to a request, and the generator's state after them."""

    request: tuple[Any, ...]
    written: Generated
    after: Tensor | None


class TextWorld:
    """The prompts of a task, or some of them, and what responses to them are worth.

    The start of an episode is the number of its prompt; ``num_starts`` of them there are, or None if there is no end of
    them. A response ends with the tokenizer's end token, or after ``max_tokens``; then it is rewarded, at its last own
    token. Nothing comes after it either way, so it has terminated.

    Args:
        task: prompts and rewards.
        tokenizer: between text and tokens.
        num_envs: responses that are written side by side.
        prompts: the numbers of those that are played; by default all of the task's.
        max_tokens: of a response, the end included; by default the task's.
        engine: writes the responses.
        temperature: of single tokens, see :data:`~decisionrl.llm.generation.Temperature`.
        examples: to stand in front of prompts that fail.
        log_probs: "recomputed" from whole responses, as updates do it, so that ratios are 1 at first; or as they were
            "sampled" token by token, which saves a pass and differs by rounding. A critic needs the former.
        device: where the tokens are.

    Raises:
        ValueError: num_envs or max_tokens is below 1, there are no prompts, or the tokenizer has no end token.
    """

    seedable = True

    def __init__(
        self,
        task: TextTask,
        tokenizer: PreTrainedTokenizerBase,
        *,
        num_envs: int = 64,
        prompts: Int[Tensor, " prompts"] | None = None,
        max_tokens: int | None = None,
        engine: Engine = generate,
        temperature: Temperature | None = None,
        examples: SolvedExamples | None = None,
        log_probs: LogProbs = "recomputed",
        device: torch.device | str = "cpu",
    ) -> None:
        max_tokens = task.max_tokens if max_tokens is None else max_tokens
        if log_probs not in get_args(LogProbs):
            raise ValueError(f"log_probs = {log_probs!r}; valid: {', '.join(get_args(LogProbs))}")
        for name, value in (("num_envs", num_envs), ("max_tokens", max_tokens)):
            if value < 1:
                raise ValueError(f"{name} = {value}; valid: a whole number >= 1")
        if prompts is not None and not len(prompts):
            raise ValueError("prompts is empty; valid: at least one")
        if tokenizer.eos_token_id is None:
            raise ValueError(f"{task.name}: the tokenizer has no end token; valid: one with eos_token")
        self.name, self.num_envs, self.task, self.tokenizer = task.name, num_envs, task, tokenizer
        self.max_tokens, self.engine, self.temperature = max_tokens, engine, temperature
        self.examples, self.log_probs = examples, log_probs
        self.action_space = self.observation_space = spaces.Discrete(len(tokenizer))
        self._prompts, self._device = prompts, torch.device(device)
        self._end = int(tokenizer.eos_token_id)
        self._unrewarded: _Attempt | None = None

    @property
    def device(self) -> torch.device:
        return self._device

    @property
    def num_starts(self) -> int | None:
        """Prompts there are."""
        return self.task.num_prompts if self._prompts is None else len(self._prompts)

    def prompt(self, start: int) -> list[int]:
        """The tokens of a prompt.

        Raises:
            ValueError: it has none.
        """
        text = self.task.prompt(self.number(start))
        tokens = self._prompted(text)
        if not tokens:
            number = self.number(start)
            raise ValueError(f"{self.name}: prompt {number} is {text!r}, which has no token; valid: at least one")
        return tokens

    def check(self, policy: LanguagePolicy) -> None:
        """Raise what :meth:`play` would, for the first of the prompts, without playing.

        Raises:
            ValueError: a prompt is empty, or has a token that the model does not know, or log-probabilities as they
                were sampled will not do.
            ContextLengthError: a prompt and a response may be longer than the model can read.
            UnknownCharacterError: the tokenizer cannot encode a prompt.
        """
        self._check_log_probs(policy)
        several = range(CHECKED if self.num_starts is None else min(CHECKED, self.num_starts))
        vocabulary = policy.head.out_features
        valid = f"valid: a tokenizer that belongs to the model, which knows 0 to {vocabulary - 1}"
        if self._end >= vocabulary:
            raise ValueError(f"{self.name}: the end token is {self._end}; {valid}")
        for start in several:
            tokens = self.prompt(start)
            if max(tokens) >= vocabulary:
                raise ValueError(f"{self.name}: prompt {self.number(start)} has token {max(tokens)}; {valid}")
            self._check_lengths(policy, [start], [len(tokens)], [self.max_tokens])

    def demonstration(self, start: int, generator: torch.Generator) -> tuple[list[int], list[bool]]:
        """The tokens of a correct response, with the end token, and which of them are the policy's own."""
        number = self.number(start)
        text = self.task.demonstration(number, generator)
        tokens = [*encode(self.tokenizer, text), self._end]
        return tokens, [*own_characters(self.task, number, text), True] if self.task.triggers else [True] * len(tokens)

    def play(
        self,
        policy: LanguagePolicy,
        tasks: Sequence[Task],
        *,
        generator: torch.Generator | None,
        max_steps: int | None = None,
        more: int | None = None,
    ) -> Played:
        """Responses to the prompts ``task.seed``, after what ``task.prefix`` says already.

        generator: of the sampling; None takes the most probable tokens. max_steps: a response with as many tokens,
        those of a prefix included, is cut, and so is one with ``more`` tokens besides those of a prefix; it has no
        reward.

        If the rewards fail, the responses are kept, and the same call from the same state rewards those.

        Raises:
            ValueError: there is no task, a prompt is empty, or log-probabilities as they were sampled will not do.
            ContextLengthError: a prompt and a response may be longer than the model can read.
            RewardFunctionError: a reward function failed.
        """
        if not tasks:
            raise ValueError("tasks is empty; valid: at least one episode")
        self._check_log_probs(policy)
        limit = min(self.max_tokens, max_steps or self.max_tokens)
        new = [limit - each.played if more is None else min(more, limit - each.played) for each in tasks]
        texts = {start: self.prompt(start) for start in dict.fromkeys(each.seed for each in tasks)}
        prompts = [texts[each.seed] for each in tasks]
        shown = self._shown(policy, tasks, texts)
        asked = [shown.get(each.seed, []) + texts[each.seed] + _tokens(each.prefix) for each in tasks]
        self._check_lengths(policy, [each.seed for each in tasks], [*map(len, asked)], new)
        context, allowed = padded(asked).to(self.device), torch.tensor(new, device=self.device)
        request = asked, new, _moment(policy, generator)
        attempt, self._unrewarded = self._unrewarded, None
        if attempt is None or attempt.request != request:
            written = self._write(policy, tasks, context, allowed, generator)
            attempt = _Attempt(request, written, None if generator is None else generator.get_state())
        if generator is not None and attempt.after is not None:
            generator.set_state(attempt.after)
        try:
            played = self._played(tasks, context, attempt.written)
        except Exception:
            self._unrewarded = attempt
            raise
        if self.examples is None:
            return played
        self._heard(tasks, prompts, played)
        if self.examples.in_loss:
            return played
        alone = padded([texts[each.seed] + _tokens(each.prefix) for each in tasks]).to(self.device)
        hinted = torch.tensor([bool(shown[each.seed]) for each in tasks], device=self.device)
        return replace(
            played,
            state=alone,
            sampling_state=context,
            final_state=torch.cat([alone, attempt.written.token], 1),
            extras={**played.extras, "provenance": hinted * int(Provenance.HINTED)},
        )

    def _shown(
        self, policy: LanguagePolicy, tasks: Sequence[Task], texts: Mapping[int, list[int]]
    ) -> dict[int, list[int]]:
        """The examples in front of each start's prompt, as far as the model can read them."""
        if self.examples is None:
            return {}
        shown = {}
        for start, responses in Counter(each.seed for each in tasks).items():
            text = texts[start]
            room = None if policy.context is None else policy.context - len(text) - self.max_tokens
            shown[start] = self.examples.before(self.number(start), text, responses=responses, room=room)
        return shown

    def _check_log_probs(self, policy: LanguagePolicy) -> None:
        if self.log_probs == "sampled" and policy.critic is not None:
            raise ValueError("log_probs = 'sampled'; valid with a critic: 'recomputed'")
        if self.log_probs == "sampled" and self.examples is not None and not self.examples.in_loss:
            raise ValueError("log_probs = 'sampled'; valid with examples that are not in the loss: 'recomputed'")

    def _check_lengths(
        self, policy: LanguagePolicy, starts: Sequence[int], before: Sequence[int], after: Sequence[int]
    ) -> None:
        context = policy.context
        for start, read, written in zip(starts, before, after, strict=True):
            if context is not None and read + written > context:
                raise ContextLengthError(
                    f"{self.name}: prompt {self.number(start)} has {read} tokens, and a response up to {written}; "
                    f"valid: at most {context} in all, which the model can read"
                )

    def _heard(self, tasks: Sequence[Task], prompts: Sequence[Sequence[int]], played: Played) -> None:
        """Tell the examples what whole responses have earned."""
        assert self.examples is not None
        whole = [i for i in (~played.cut).nonzero()[:, 0].tolist() if not tasks[i].played]
        self.examples.heard(
            [self.number(tasks[i].seed) for i in whole],
            [prompts[i] for i in whole],
            [played.action[i][played.steps[i]].tolist() for i in whole],
            (played.outcome >= self.examples.success)[whole].tolist(),
        )

    def _write(
        self,
        policy: LanguagePolicy,
        tasks: Sequence[Task],
        context: Tensor,
        allowed: Tensor,
        generator: torch.Generator | None,
    ) -> Generated:
        """All responses, ``num_envs`` of them side by side."""
        parts = [slice(i, i + self.num_envs) for i in range(0, len(tasks), self.num_envs)]
        return _joined([self._written(policy, tasks[p], context[p], allowed[p], generator) for p in parts])

    def _written(
        self,
        policy: LanguagePolicy,
        tasks: Sequence[Task],
        context: Tensor,
        allowed: Tensor,
        generator: torch.Generator | None,
    ) -> Generated:
        def reply(row: int, tokens: Sequence[int]) -> Sequence[int]:
            if not tokens:
                return encode(self.tokenizer, self._unanswered(tasks[row]))
            said = self.tokenizer.decode([*_tokens(tasks[row].prefix), *tokens])
            if said[-1:] not in self.task.triggers:
                return ()
            return encode(self.tokenizer, self.task.reply(self.number(tasks[row].seed), said, tasks[row].noise))

        return self.engine(
            policy,
            context,
            max_tokens=allowed,
            stop=[self._end],
            generator=generator,
            temperature=self.temperature,
            reply=reply if self.task.triggers else None,
        )

    def _unanswered(self, task: Task) -> str:
        """What the environment was yet to say where the prefix was cut."""
        said = self.tokenizer.decode(_tokens(task.prefix))
        at = 0
        while at < len(said):
            at += 1
            if said[at - 1] in self.task.triggers:
                answer = self.task.reply(self.number(task.seed), said[:at], task.noise)
                if at + len(answer) > len(said):
                    return answer[len(said) - at :]
                at += len(answer)
        return ""

    def _played(self, tasks: Sequence[Task], context: Tensor, written: Generated) -> Played:
        token, there = written.token, written.token >= 0
        length = there.sum(1) + torch.tensor([each.played for each in tasks], device=self.device)
        cut = ~written.finished & (length < self.max_tokens)
        said = [
            self.tokenizer.decode(_tokens(each.prefix) + row[row >= 0].tolist(), skip_special_tokens=True)
            for each, row in zip(tasks, token, strict=True)
        ]
        over = (~cut).nonzero()[:, 0].tolist()
        numbers = [self.number(each.seed) for each in tasks]
        reward = torch.zeros(token.shape, dtype=written.log_prob.dtype, device=self.device)
        last = _last(written.mask)
        ids = [token[i][there[i]].tolist() for i in over]
        worth = self.task.rewards([numbers[i] for i in over], [said[i] for i in over], tokens=ids)
        reward[over, last[over]] = torch.tensor(worth, dtype=reward.dtype, device=self.device)
        ends = torch.zeros_like(there).scatter_(1, last[:, None], True)
        before = torch.cat([_newest(context)[:, None], token[:, :-1]], 1)
        everything = torch.cat([context, token], 1)
        return Played(
            observation=torch.where(there, before, NO_TOKEN),
            action=token.clamp(min=0),
            reward=reward,
            mask=written.mask,
            terminated=ends & ~cut[:, None],
            truncated=ends & cut[:, None],
            final_observation=_newest(everything),
            final_state=everything,
            cut=cut,
            state=context,
            extras={"problem": torch.tensor(numbers, device=self.device)},
            log_prob=written.log_prob if self.log_probs == "sampled" else None,
            entropy=written.entropy if self.log_probs == "sampled" else None,
        )

    def number(self, start: int) -> int:
        """Which of the task's prompts a start is."""
        return start if self._prompts is None else int(self._prompts[start])

    def _prompted(self, text: Prompt) -> list[int]:
        """With what the tokenizer puts before a text of its model, or around the messages of a conversation."""
        if not isinstance(text, str):
            messages: Any = text
            ids: Any = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
            return list(ids)
        if self.task.alphabet is not None:
            return encode(self.tokenizer, text)
        return list(self.tokenizer(text)["input_ids"])


def padded(rows: Sequence[Sequence[int]]) -> Int[Tensor, "batch step"]:
    """Rows of tokens as a tensor, with -1 where a row has ended."""
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[NO_TOKEN] * (longest - len(row))] for row in rows], dtype=torch.int64)


def _moment(policy: LanguagePolicy, generator: torch.Generator | None) -> tuple[int, bytes]:
    """What tells a second attempt from the next batch: how often weights have changed, and where randomness is."""
    changes = sum(parameter._version for parameter in policy.parameters())
    return changes, b"" if generator is None else generator.get_state().numpy().tobytes()


def _tokens(prefix: Tensor | None) -> list[int]:
    return [] if prefix is None else prefix.long().tolist()


def _last(there: Tensor) -> Tensor:
    """The last column of each row where something is."""
    return there.long().cumsum(1).argmax(1)


def _newest(token: Tensor) -> Tensor:
    """The last token of each row."""
    return token.gather(1, _last(token >= 0)[:, None])[:, 0]


def _joined(parts: Sequence[Generated]) -> Generated:
    """Under each other."""
    width = max(part.token.shape[1] for part in parts)

    def stacked(name: str, filler: float) -> Tensor:
        return torch.cat([pad(getattr(each, name), (0, width - each.token.shape[1]), value=filler) for each in parts])

    return Generated(
        token=stacked("token", NO_TOKEN),
        mask=stacked("mask", False),
        log_prob=stacked("log_prob", 0.0),
        entropy=None if parts[0].entropy is None else stacked("entropy", 0.0),
        finished=torch.cat([each.finished for each in parts]),
    )
