"""A binary sequence in which a few places decide: the value of every prefix is known exactly."""

from __future__ import annotations

from dataclasses import dataclass
from math import comb

import torch
from jaxtyping import Float
from torch import Tensor

from decisionrl.envs.gridworld.family import check_flag, check_whole
from decisionrl.envs.text.task import TextTaskDefaults, checked_index


@dataclass(frozen=True, kw_only=True)
class KeyTokenChain(TextTaskDefaults):
    """``"..1.0..:"`` is answered by as many binary digits, of which those at the marked places must be as they say.

    There is a prompt for every choice of ``keys`` of the ``length`` places and all bits there. The reward is 1 if all
    keys are right, else 0; a response of another length, or with other characters, is worth 0.

    Args:
        partial_credit: the reward is the share of keys that are right.

    Raises:
        ValueError: not 1 <= keys <= length.
    """

    length: int = 12
    keys: int = 3
    partial_credit: bool = False

    name = "text/key-token-chain"
    alphabet = "01.:"
    best_reward = 1.0

    def __post_init__(self) -> None:
        check_flag("partial_credit", self.partial_credit)
        check_whole("length", self.length, 1)
        check_whole("keys", self.keys, 1)
        if self.keys > self.length:
            raise ValueError(f"keys = {self.keys}; valid: 1 to length = {self.length}")

    @property
    def num_prompts(self) -> int:
        return comb(self.length, self.keys) << self.keys

    @property
    def max_tokens(self) -> int:
        return self.length + 1

    def prompt(self, index: int, /) -> str:
        return f"{self.pattern(index)}:"

    def pattern(self, index: int) -> str:
        """What is asked for at each place: ``0``, ``1``, or ``.`` for either."""
        choice, bits = divmod(checked_index(self, index), 2**self.keys)
        pattern, left = "", self.keys
        for place in range(self.length):
            without = comb(self.length - place - 1, left)
            if choice < without:
                pattern += "."
            else:
                choice, left = choice - without, left - 1
                pattern += str(bits >> left & 1)
        return pattern

    def reward(self, index: int, response: str, /) -> float:
        pattern = self.pattern(index)
        if len(response) != self.length or set(response) - set("01"):
            return 0.0
        right = sum(bit == wanted for bit, wanted in zip(response, pattern, strict=True))
        return right / self.keys if self.partial_credit else float(right == self.keys)

    def demonstration(self, index: int, generator: torch.Generator, /) -> str:
        """The right keys, and random bits elsewhere."""
        bits = torch.randint(2, (self.length,), generator=generator, device=generator.device).tolist()
        return "".join(str(bit) if key == "." else key for bit, key in zip(bits, self.pattern(index), strict=True))

    def values(self, index: int, policy: Float[Tensor, "length *context 2"]) -> Float[Tensor, "stages *context counts"]:
        """The expected reward from every state under a policy that writes ``length`` bits, by dynamic programming.

        Args:
            policy: [length, 2, ..., 2, 2]; entry [t, x_{t-n}, ..., x_{t-1}, x_t] is the probability of bit x_t at place
                t after the n bits before it. There may be none of these; bits before the first are read as 0.

        Returns:
            [length + 1, 2, ..., 2, keys + 1]: before place t, after these n bits, with so many keys right until then.
            See :meth:`prefix_values`.

        Raises:
            ValueError: the policy has another shape.
        """
        if policy.dim() < 2 or policy.shape[0] != self.length or any(size != 2 for size in policy.shape[1:]):
            raise ValueError(f"policy has shape {list(policy.shape)}; valid: [{self.length}, 2, ..., 2]")
        context = policy.shape[1:-1]
        table = policy.reshape(self.length, -1, 2)
        before = torch.arange(table.shape[1], device=policy.device)
        count = torch.arange(self.keys + 1, device=policy.device)
        one_more = (count + 1).clamp(max=self.keys)
        final = count.to(policy) / self.keys if self.partial_credit else (count == self.keys).to(policy)
        values = [final.expand(len(before), -1)]
        for place, key in reversed(list(enumerate(self.pattern(index)))):
            following = [values[-1][(2 * before + bit) % len(before)] for bit in (0, 1)]
            if key != ".":
                following[int(key)] = following[int(key)][:, one_more]
            values.append(table[place, :, :1] * following[0] + table[place, :, 1:] * following[1])
        return torch.stack(values[::-1]).reshape(self.length + 1, *context, self.keys + 1)

    def prefix_values(
        self, index: int, response: str, values: Float[Tensor, "stages *context counts"]
    ) -> Float[Tensor, " prefixes"]:
        """The values of the prefixes of a response, from the empty one to itself, looked up in ``values``.

        Raises:
            ValueError: the response has other characters than 0 and 1, or more than ``length``.
        """
        if len(response) > self.length or set(response) - set("01"):
            raise ValueError(f"response = {response!r}; valid: up to {self.length} characters 0 and 1")
        right = [bit == wanted for bit, wanted in zip(response, self.pattern(index), strict=False)]
        bits = [0] * (values.dim() - 2) + [int(bit) for bit in response]
        places = range(len(response) + 1)
        return torch.stack([values[(t, *bits[t : t + values.dim() - 2], sum(right[:t]))] for t in places])
