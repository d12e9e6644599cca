"""vLLM as what writes responses, in the place of ``generate``.

    engine = VLLMEngine("path/of/a/model", gpu_memory_utilization=0.4)
    world = TextWorld(task, tokenizer, engine=engine)

Before each batch the policy's weights are handed over, so that what is sampled is of the policy as it is. Seeds are
vLLM's own: equal generators give equal responses on the same machine and version, not those of ``generate``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Int
from torch import Tensor

from decisionrl.llm.generation import Generated, Reply, Temperature

if TYPE_CHECKING:
    from decisionrl.policies.language import LanguagePolicy


class VLLMEngine:
    """An :class:`~decisionrl.llm.generation.Engine` on vLLM, in this process.

    Args:
        model: the directory that the policy was loaded from.
        options: further arguments of ``vllm.LLM``, such as ``gpu_memory_utilization`` and ``tensor_parallel_size``.

    Raises:
        ImportError: vLLM is not installed; it is no extra of this library, as it pins its own torch.
    """

    def __init__(self, model: str, **options: Any) -> None:
        try:
            import vllm
        except ImportError as error:
            raise ImportError(f"this engine needs vLLM ({error}): pip install vllm") from error
        self._sampling: Callable[..., Any] = vllm.SamplingParams
        self._llm: Any = vllm.LLM(model=model, **{"logprobs_mode": "processed_logprobs", **options})

    def __call__(
        self,
        policy: LanguagePolicy,
        context: Int[Tensor, "batch prompt"],
        *,
        max_tokens: int | Int[Tensor, " batch"],
        stop: Sequence[int],
        generator: torch.Generator | None,
        temperature: Temperature | None = None,
        reply: Reply | None = None,
    ) -> Generated:
        """Responses, with their log-probabilities and without entropies.

        Raises:
            ValueError: there are temperatures of single tokens or replies of an environment, which vLLM does not know;
                or the policy has adapters.
        """
        if temperature is not None or reply is not None:
            raise ValueError("temperature and reply are given; valid with vLLM: neither, or the engine generate")
        if policy.model is not policy.causal_model:
            raise ValueError("the policy has adapters; valid with vLLM: a whole model, or the engine generate")
        self._hand_over(policy.causal_model.state_dict().items())
        rows = [row[row >= 0].tolist() for row in context]
        limits = torch.as_tensor(max_tokens).expand(len(rows)).tolist()
        seeds = self._seeds(len(rows), generator)
        parameters = [
            self._sampling(
                temperature=0.0 if generator is None else policy.temperature,
                max_tokens=limit,
                stop_token_ids=list(stop),
                ignore_eos=True,
                seed=seed,
                logprobs=0,
            )
            for limit, seed in zip(limits, seeds, strict=True)
        ]
        prompts = [{"prompt_token_ids": row} for row in rows]
        written = [each.outputs[0] for each in self._llm.generate(prompts, parameters, use_tqdm=False)]
        return _generated(written, context.device)

    def _hand_over(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        held = list(weights)
        self._llm.apply_model(lambda model: model.load_weights(iter(held)))
        self._llm.reset_prefix_cache()

    @staticmethod
    def _seeds(count: int, generator: torch.Generator | None) -> list[int | None]:
        if generator is None:
            return [None] * count
        drawn: list[int | None] = torch.randint(2**31, (count,), generator=generator, device=generator.device).tolist()
        return drawn


def _generated(written: Sequence[Any], device: torch.device) -> Generated:
    steps = max((len(each.token_ids) for each in written), default=0)
    token = torch.full((len(written), steps), -1)
    log_prob = torch.zeros(token.shape)
    for row, each in enumerate(written):
        ids = list(each.token_ids)
        token[row, : len(ids)] = torch.tensor(ids)
        values = [said[chosen].logprob for chosen, said in zip(ids, each.logprobs, strict=True)]
        log_prob[row, : len(ids)] = torch.tensor(values)
    return Generated(
        token=token.to(device),
        mask=(token >= 0).to(device),
        log_prob=log_prob.to(device),
        entropy=None,
        finished=torch.tensor([each.finish_reason == "stop" for each in written], device=device),
    )
