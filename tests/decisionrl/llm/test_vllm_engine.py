"""The engine on vLLM, against a stand-in with the same signatures: what is handed over, and what comes back."""

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from decisionrl.envs.text import make_task
from decisionrl.envs.text.tokenizer import character_tokenizer
from decisionrl.experience.episodes import Task
from decisionrl.llm.vllm import VLLMEngine
from decisionrl.llm.world import TextWorld
from decisionrl.policies.language import LanguagePolicy
from decisionrl.policies.language_models import add_lora, tiny_model

pytest.importorskip("transformers")

TASK = make_task("text/modular-addition", modulus=5)
TOKENIZER = character_tokenizer(TASK.alphabet or "")
END = int(TOKENIZER.eos_token_id)


class LLM:
    """Says the digit 3 and stops, or goes on to the limit where it may have no more than one token."""

    def __init__(self, model: str, **options: Any) -> None:
        self.model, self.options, self.loaded, self.asked = model, options, {}, []  # type: ignore[var-annotated]
        made.append(self)

    def load_weights(self, weights: Any) -> None:
        self.loaded = dict(weights)

    def apply_model(self, function: Any) -> list[Any]:
        return [function(self)]

    def reset_prefix_cache(self) -> None:
        self.asked.append("reset")

    def generate(self, prompts: Any, parameters: Any, *, use_tqdm: bool) -> list[Any]:
        self.asked.append((prompts, parameters))
        three = TOKENIZER.encode("3")[0]
        answers = []
        for each in parameters:
            ids = [three, END][: each.max_tokens]
            logprobs = [{token: SimpleNamespace(logprob=-0.5 - place)} for place, token in enumerate(ids)]
            reason = "stop" if len(ids) == 2 else "length"
            answers.append(SimpleNamespace(token_ids=ids, logprobs=logprobs, finish_reason=reason))
        return [SimpleNamespace(outputs=[answer]) for answer in answers]


made: list[LLM] = []


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> VLLMEngine:
    stub = ModuleType("vllm")
    stub.LLM, stub.SamplingParams = LLM, SimpleNamespace  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm", stub)
    return VLLMEngine("somewhere", gpu_memory_utilization=0.4)


def policy() -> LanguagePolicy:
    model = tiny_model(len(TOKENIZER), width=16, heads=2, context=16, generator=torch.Generator().manual_seed(0))
    return LanguagePolicy(model, temperature=0.7)


def test_a_world_is_played_with_it(engine: VLLMEngine) -> None:
    acting, world = policy(), TextWorld(TASK, TOKENIZER, engine=engine)
    llm = made[-1]
    assert llm.options == {"logprobs_mode": "processed_logprobs", "gpu_memory_utilization": 0.4}
    starts = range(25)
    played = world.play(acting, [Task(start) for start in starts], generator=torch.Generator().manual_seed(0))
    right = [float(TASK.demonstration(start, torch.Generator()) == "3") for start in starts]
    assert played.outcome.tolist() == right
    assert 0 < sum(right) < 25
    prompts, parameters = llm.asked[-1]
    assert llm.asked[-2] == "reset"
    assert prompts[7] == {"prompt_token_ids": world.prompt(7)}
    assert {each.temperature for each in parameters} == {0.7}
    assert {tuple(each.stop_token_ids) for each in parameters} == {(END,)}
    assert len({each.seed for each in parameters}) > 20
    weights = acting.model.state_dict()
    assert llm.loaded.keys() == weights.keys()
    assert all(torch.equal(llm.loaded[name], weights[name]) for name in weights)


def test_what_it_says_is_taken_over(engine: VLLMEngine) -> None:
    context = torch.tensor([[3, 4, -1], [5, 6, 7]])
    said = engine(policy(), context, max_tokens=torch.tensor([1, 4]), stop=[END], generator=None)
    three = TOKENIZER.encode("3")[0]
    assert said.token.tolist() == [[three, -1], [three, END]]
    assert said.mask.tolist() == [[True, False], [True, True]]
    assert said.log_prob.tolist() == [[-0.5, 0.0], [-0.5, -1.5]]
    assert said.finished.tolist() == [False, True]
    assert said.entropy is None
    _, parameters = made[-1].asked[-1]
    assert [(each.temperature, each.max_tokens, each.seed) for each in parameters] == [(0.0, 1, None), (0.0, 4, None)]


def test_what_it_does_not_know_is_refused(engine: VLLMEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    context = torch.tensor([[3]])
    with pytest.raises(ValueError, match="temperature and reply are given; valid with vLLM: neither"):
        engine(policy(), context, max_tokens=1, stop=[], generator=None, reply=lambda row, tokens: [])
    pytest.importorskip("peft")
    adapted = LanguagePolicy(add_lora(policy().causal_model, rank=1, generator=torch.Generator().manual_seed(0)))
    with pytest.raises(ValueError, match="the policy has adapters"):
        engine(adapted, context, max_tokens=1, stop=[], generator=None)
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(ImportError, match="pip install vllm"):
        VLLMEngine("somewhere")
