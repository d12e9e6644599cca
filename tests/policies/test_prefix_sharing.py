"""One forward of a prompt for all of its responses computes what a forward of every row would."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn

from decisionrl.policies.prefix_sharing import grouped_hidden, unique_prompts

transformers = pytest.importorskip("transformers")

VOCABULARY = 13
PROMPTS = torch.tensor([[-1, -1, -1, 3, 4], [1, 2, 3, 5, 1], [7, 0, 2, -1, -1]])
RESPONSES = torch.tensor(
    [[1, 2, 3, 4], [4, -1, -1, -1], [5, 6, -1, -1], [-1, -1, 7, 8], [9, -1, 0, -1], [-1, -1, -1, -1], [2, 2, 2, 12]]
)
GROUP = torch.tensor([1, 0, 1, 1, 0, 2, 1])


def tiny(family: str, *, dtype: torch.dtype = torch.float64, seed: int = 0, **options: object) -> nn.Module:
    """A model whose attention matters as much as its other parts."""
    shared = {"vocab_size": VOCABULARY, "max_position_embeddings": 32, "num_hidden_layers": 3, "hidden_size": 16}
    heads = {"intermediate_size": 24, "num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 4}
    if family == "gpt2":
        heads = {"n_head": 2, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
        shared = {"vocab_size": VOCABULARY, "n_positions": 32, "n_layer": 3, "n_embd": 16}
    config = transformers.AutoConfig.for_model(family, **{**shared, **heads, **options})
    model = transformers.AutoModelForCausalLM.from_config(config)
    if dtype == torch.float64:  # in which transformers' norms would round to float32
        for name, module in list(model.named_modules()):
            if type(module).__name__ in ("LlamaRMSNorm", "Qwen2RMSNorm", "Qwen3RMSNorm"):
                norm = nn.RMSNorm(module.weight.shape[0], eps=module.variance_epsilon)
                model.get_submodule(name.rpartition(".")[0]).register_module(name.rpartition(".")[2], norm)
    drawing = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.4, generator=drawing)
    return model.to(dtype).train()


MODELS = {
    "llama": ("llama", {}),
    "llama-grouped-query": ("llama", {"num_key_value_heads": 2}),
    "qwen2": ("qwen2", {"num_key_value_heads": 1}),
    "qwen3": ("qwen3", {"num_key_value_heads": 2, "head_dim": 8}),
    "gpt2": ("gpt2", {}),
}


def one_by_one(model: nn.Module, prompts: Tensor, responses: Tensor, group: Tensor) -> list[Tensor]:
    """Hidden states before the tokens of each response, each from a forward of its own without padding."""
    found = []
    for response, chosen in zip(responses, group, strict=True):
        prompt, rest = (row[row >= 0] for row in (prompts[chosen], response))
        hidden = model.base_model(torch.cat([prompt, rest])[None], use_cache=False).last_hidden_state[0]
        found.append(hidden[len(prompt) - 1 : -1])
    return found


def gradients(model: nn.Module, hidden: Tensor) -> dict[str, Tensor]:
    """Of a sum with weights that differ from place to place."""
    weights = torch.linspace(-1, 1, hidden.numel(), dtype=torch.float64).to(hidden.dtype).view_as(hidden)
    model.zero_grad()
    (hidden * weights).sum().backward()
    return {name: each.grad for name, each in model.named_parameters() if each.grad is not None}


def assert_same(ours: dict[str, Tensor], theirs: dict[str, Tensor], tolerance: float) -> None:
    assert ours.keys() == theirs.keys()
    for name, gradient in theirs.items():
        assert (ours[name] - gradient).abs().max() <= tolerance * gradient.abs().max().clamp(min=1), name


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize("name", MODELS)
def test_hidden_states_and_gradients_are_those_of_separate_forwards(
    name: str, dtype: torch.dtype, tolerance: float
) -> None:
    family, options = MODELS[name]
    model = tiny(family, dtype=dtype, **options)
    hidden = grouped_hidden(model, prompts=PROMPTS, responses=RESPONSES, group=GROUP)
    assert hidden.shape == (*RESPONSES.shape, 16)
    assert hidden.isfinite().all()
    ours, theirs = hidden[RESPONSES >= 0], torch.cat(one_by_one(model, PROMPTS, RESPONSES, GROUP))
    assert (ours - theirs).abs().max() <= tolerance * theirs.abs().max()
    assert_same(gradients(model, ours), gradients(model, theirs), tolerance)


@pytest.mark.parametrize("name", MODELS)
def test_flex_attention_computes_the_same(name: str) -> None:
    family, options = MODELS[name]
    model = tiny(family, **options)
    with torch.no_grad():
        hidden = grouped_hidden(model, prompts=PROMPTS, responses=RESPONSES, group=GROUP, prefix_attention="flex")
        theirs = torch.cat(one_by_one(model, PROMPTS, RESPONSES, GROUP))
    torch.testing.assert_close(hidden[RESPONSES >= 0], theirs, rtol=0, atol=1e-10)


def test_flex_attention_over_several_blocks() -> None:
    model, drawing = tiny("llama", num_key_value_heads=2, max_position_embeddings=200), torch.Generator().manual_seed(0)
    prompts = torch.randint(VOCABULARY, (2, 140), generator=drawing)
    responses = torch.randint(VOCABULARY, (5, 40), generator=drawing)
    batch = {"prompts": prompts, "responses": responses, "group": torch.tensor([1, 0, 1, 1, 0])}
    with torch.no_grad():
        flex, sdpa = (grouped_hidden(model, **batch, prefix_attention=each) for each in ("flex", "sdpa"))
    torch.testing.assert_close(flex, sdpa, rtol=0, atol=1e-10)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", MODELS)
def test_flex_attention_has_the_same_gradients_on_a_gpu(name: str) -> None:
    family, options = MODELS[name]
    model = tiny(family, dtype=torch.float32, **options).to("cuda")
    batch = {"prompts": PROMPTS.to("cuda"), "responses": RESPONSES.to("cuda"), "group": GROUP.to("cuda")}
    found = []
    for attention in ("flex", "sdpa"):
        hidden = grouped_hidden(model, **batch, prefix_attention=attention)[batch["responses"] >= 0]
        found.append(gradients(model, hidden.cpu()))
    assert_same(*found, 1e-4)


def test_one_response_is_the_ordinary_forward() -> None:
    model, tokens = tiny("llama", num_key_value_heads=2), torch.arange(10)[None] % VOCABULARY
    hidden = grouped_hidden(
        model, prompts=tokens[:, :4], responses=tokens[:, 4:], group=torch.zeros(1, dtype=torch.int64)
    )
    ordinary = model.base_model(tokens, use_cache=False).last_hidden_state[:, 3:-1]
    torch.testing.assert_close(hidden, ordinary, rtol=0, atol=1e-12)
    assert_same(gradients(model, hidden), gradients(model, ordinary), 1e-12)


def test_responses_of_one_token_need_the_prompt_only() -> None:
    model, tokens = tiny("gpt2"), torch.tensor([[1], [5]])
    hidden = grouped_hidden(model, prompts=PROMPTS[1:2], responses=tokens, group=torch.tensor([0, 0]))
    torch.testing.assert_close(hidden[:, 0], torch.cat(one_by_one(model, PROMPTS[1:2], tokens, torch.tensor([0, 0]))))
    assert set(gradients(model, hidden)) == {name for name, _ in model.named_parameters()}


def test_every_token_is_looked_at_once() -> None:
    model, seen = tiny("llama"), list[Tensor]()
    model.get_input_embeddings().register_forward_hook(lambda _, tokens, __: seen.append(tokens[0]))
    grouped_hidden(model, prompts=PROMPTS, responses=RESPONSES, group=GROUP)
    assert [each.tolist() for each in seen] == [[[3, 4, *[1, 2, 3, 5, 1], 7, 0, 2, *[1, 2, 3], 5, 7, 9, *[2, 2, 2]]]]


def test_padding_may_stand_anywhere() -> None:
    model = tiny("qwen3")
    prompts, responses, group = torch.tensor([[3, 4, 5]]), torch.tensor([[1, 2]]), torch.tensor([0])
    expected = grouped_hidden(model, prompts=prompts, responses=responses, group=group)[0]
    for places in itertools.combinations(range(5), 3):
        padded = torch.full((1, 5), -1).index_copy(1, torch.tensor(places), prompts)
        assert torch.equal(grouped_hidden(model, prompts=padded, responses=responses, group=group)[0], expected)
    for places in itertools.combinations(range(4), 2):
        padded = torch.full((1, 4), -1).index_copy(1, torch.tensor(places), responses)
        hidden = grouped_hidden(model, prompts=prompts, responses=padded, group=group)[0]
        assert torch.equal(hidden[list(places)], expected)


def test_order_does_not_matter() -> None:
    model = tiny("llama")
    expected = grouped_hidden(model, prompts=PROMPTS, responses=RESPONSES, group=GROUP)
    drawing = torch.Generator().manual_seed(0)
    for _ in range(3):
        rows, places = torch.randperm(len(GROUP), generator=drawing), torch.randperm(3, generator=drawing)
        hidden = grouped_hidden(
            model, prompts=PROMPTS[places], responses=RESPONSES[rows], group=places.argsort()[GROUP[rows]]
        )
        torch.testing.assert_close(hidden, expected[rows], rtol=0, atol=1e-12)


def test_a_token_changes_nothing_but_what_comes_after_it() -> None:
    model = tiny("llama")
    before = grouped_hidden(model, prompts=PROMPTS, responses=RESPONSES, group=GROUP)
    prompts, responses = PROMPTS.clone(), RESPONSES.clone()
    prompts[0, 3], responses[6, 1] = 9, 9
    changed = grouped_hidden(model, prompts=prompts, responses=responses, group=GROUP) - before
    expected = (GROUP == 0)[:, None] | (
        (torch.arange(len(GROUP)) == 6)[:, None] & (torch.arange(4) > 1)
    )  # hidden states stand before the tokens that they predict
    real = RESPONSES >= 0
    assert torch.equal((changed.abs().amax(-1) > 1e-6)[real], expected[real])


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_changes_nothing(reentrant: bool) -> None:
    model = tiny("llama", num_key_value_heads=2)
    expected = gradients(model, grouped_hidden(model, prompts=PROMPTS, responses=RESPONSES, group=GROUP))
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    model.enable_input_require_grads()
    layer = model.model.layers[0]
    before, runs = layer._gradient_checkpointing_func, list[str]()
    layer.mlp.register_forward_pre_hook(lambda *_: runs.append(model.config._attn_implementation))
    hidden = grouped_hidden(model, prompts=PROMPTS, responses=RESPONSES, group=GROUP)
    assert layer._gradient_checkpointing_func is before
    assert model.config._attn_implementation == "sdpa"
    assert_same(gradients(model, hidden), expected, 1e-12)
    assert model.config._attn_implementation == "sdpa"
    assert len(runs) == 2
    assert "sdpa" not in runs


def test_the_model_is_left_as_it_was_after_an_error() -> None:
    model = tiny("llama")
    model.gradient_checkpointing_enable()
    layer = model.model.layers[1]
    before = layer._gradient_checkpointing_func
    hook = layer.register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(RuntimeError("out of memory")))
    with pytest.raises(RuntimeError, match="out of memory"):
        grouped_hidden(model, prompts=PROMPTS, responses=RESPONSES, group=GROUP)
    hook.remove()
    assert model.config._attn_implementation == "sdpa"
    assert layer._gradient_checkpointing_func is before
    hidden = grouped_hidden(model, prompts=PROMPTS, responses=RESPONSES, group=GROUP)
    theirs = torch.cat(one_by_one(model, PROMPTS, RESPONSES, GROUP))
    torch.testing.assert_close(hidden[RESPONSES >= 0], theirs, rtol=0, atol=1e-12)


def test_half_precision() -> None:
    model = tiny("llama", dtype=torch.bfloat16, num_key_value_heads=2)
    theirs = torch.cat(one_by_one(model.double(), PROMPTS, RESPONSES, GROUP))
    real = RESPONSES >= 0
    hidden = grouped_hidden(model.bfloat16(), prompts=PROMPTS, responses=RESPONSES, group=GROUP)[real]
    assert hidden.dtype == torch.bfloat16
    assert (hidden - theirs).norm() < 0.05 * theirs.norm()
    with torch.autocast("cpu", torch.bfloat16):
        hidden = grouped_hidden(model.float(), prompts=PROMPTS, responses=RESPONSES, group=GROUP)[real]
    assert (hidden - theirs).norm() < 0.05 * theirs.norm()
    assert all(each.isfinite().all() for each in gradients(model, hidden).values())


def test_adapters_of_peft() -> None:
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(tiny("qwen3"), peft.LoraConfig(r=2, lora_dropout=0.0, task_type="CAUSAL_LM")).double()
    with torch.no_grad():
        for name, each in model.named_parameters():
            if "lora_B" in name:
                each.normal_(generator=torch.Generator().manual_seed(1))
    base = model.get_base_model()
    ours = grouped_hidden(base, prompts=PROMPTS, responses=RESPONSES, group=GROUP)[RESPONSES >= 0]
    theirs = torch.cat(one_by_one(base, PROMPTS, RESPONSES, GROUP))
    found = gradients(model, ours)
    assert all("lora" in name for name in found)
    assert_same(found, gradients(model, theirs), 1e-10)
    with pytest.raises(TypeError, match=r"PeftModelForCausalLM; valid: a PreTrainedModel, or get_base_model\(\)"):
        grouped_hidden(model, prompts=PROMPTS, responses=RESPONSES, group=GROUP)


@pytest.mark.parametrize(
    ("family", "options", "message"),
    [
        ("llama", {"attention_dropout": 0.1}, r"layers.0.self_attn.attention_dropout = 0.1 in training mode; valid: 0"),
        ("gpt2", {"resid_pdrop": 0.2}, r"h.0.attn.resid_dropout.p = 0.2 in training mode"),
        (
            "qwen3",
            {"layer_types": ["full_attention", "sliding_attention", "full_attention"], "sliding_window": 4},
            "Qwen3Model has sliding_attention; valid: full_attention in all layers",
        ),
        ("mistral", {"sliding_window": 4}, "MistralModel has sliding_attention"),
        ("gemma2", {"layer_types": ["full_attention"] * 3}, "Gemma2Attention attends with softcap"),
        ("gptj", {"n_layer": 2, "n_embd": 16, "n_head": 2, "rotary_dim": 4}, "does not use transformers' attention"),
    ],
)
def test_other_models_are_refused(family: str, options: dict[str, object], message: str) -> None:
    model = tiny(family, **options)
    with pytest.raises(ValueError, match=message):
        grouped_hidden(model, prompts=PROMPTS, responses=RESPONSES, group=GROUP)
    assert model.config._attn_implementation != "decisionrl_shared_prefix"


def test_dropout_is_no_matter_in_evaluation_mode() -> None:
    model = tiny("llama", attention_dropout=0.1).eval()
    hidden = grouped_hidden(model, prompts=PROMPTS, responses=RESPONSES, group=GROUP)
    theirs = torch.cat(one_by_one(model, PROMPTS, RESPONSES, GROUP))
    torch.testing.assert_close(hidden[RESPONSES >= 0], theirs, rtol=0, atol=1e-12)


def test_a_layer_that_attends_in_its_own_way_is_noticed() -> None:
    class Mean(nn.Module):
        def forward(self, hidden_states: Tensor, **_: object) -> tuple[Tensor, None]:
            return hidden_states.cumsum(1), None

    model = tiny("llama")
    model.model.layers[1].self_attn = Mean()
    with pytest.raises(ValueError, match="LlamaModel attends in 2 of 3 layers"):
        grouped_hidden(model, prompts=PROMPTS, responses=RESPONSES, group=GROUP)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"prompts": PROMPTS.float()}, r"prompts is torch.float32 \[3, 5\]; valid: torch.int64, 2-dimensional"),
        ({"responses": RESPONSES[0]}, r"responses is torch.int64 \[4\]; valid: .* 2-dimensional"),
        ({"responses": RESPONSES[:, :0]}, r"responses is torch.int64 \[7, 0\]; valid: .* not empty"),
        ({"group": GROUP[1:]}, "group has 6 elements; valid: one for each of 7 responses"),
        ({"group": GROUP + 1}, r"group = \[1, 2, 3\]; valid: rows of 3 prompts"),
        ({"group": GROUP - 1}, r"group = \[-1, 0, 1\]; valid"),
        ({"prompts": PROMPTS.where(PROMPTS != 3, -1).where(PROMPTS != 4, -1)}, r"prompts \[0\] are empty"),
    ],
)
def test_what_does_not_fit_is_refused(changed: dict[str, Tensor], message: str) -> None:
    batch = {"prompts": PROMPTS, "responses": RESPONSES, "group": GROUP, **changed}
    with pytest.raises(ValueError, match=message):
        grouped_hidden(tiny("llama"), **batch)


def test_attention_that_cannot_be_is_refused() -> None:
    batch = {"prompts": PROMPTS, "responses": RESPONSES, "group": GROUP}
    with pytest.raises(ValueError, match="prefix_attention = 'eager'; valid: sdpa, flex"):
        grouped_hidden(tiny("llama"), **batch, prefix_attention="eager")
    model = tiny("llama")
    with pytest.raises(ValueError, match=r"prefix_attention = 'flex' on the CPU, .* valid: 'sdpa', or torch\.no_grad"):
        grouped_hidden(model, **batch, prefix_attention="flex")
    assert model.config._attn_implementation == "sdpa"


def test_unique_prompts_are_those_with_equal_tokens() -> None:
    drawing = torch.Generator().manual_seed(0)
    state = torch.randint(-1, 2, (200, 4), generator=drawing)
    prompts, group = unique_prompts(state)
    rows = [tuple(token for token in row if token >= 0) for row in state.tolist()]
    assert [tuple(token for token in row if token >= 0) for row in prompts[group].tolist()] == rows
    assert len(prompts) == len(set(rows))
    assert all(-1 not in row[: row.count(0) + row.count(1)] for row in prompts.tolist())
