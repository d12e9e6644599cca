"""LanguagePolicy: a padded batch at once equals one row after the other through the model's own logits."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("transformers")
pytest.importorskip("peft")

import peft
import transformers

from decisionrl import checkpoint
from decisionrl.experience.trajectories import Trajectories
from decisionrl.learner import GradientLearner
from decisionrl.objectives.curvature import CurvatureMask
from decisionrl.objectives.policy_gradient import PolicyGradient
from decisionrl.objectives.regularizers import ValueLoss
from decisionrl.objectives.surrogates import Clip, Reinforce
from decisionrl.policies.language import LanguagePolicy, predicted_rows
from decisionrl.policies.language_models import add_lora, tiny_model
from decisionrl.reference import Reference

VOCABULARY = 29
FAMILIES = ("llama", "gpt2", "qwen3")
PAD = -1

PROMPTS = [[3, 1], [7], [4, 0, 11, 2], [], [28, 28, 5]]
ANSWERS = [[5, 6, 2, 2], [9], [1, 0, 3], [], [8, 4]]
OWN = [[1, 0, 0, 1], [1], [1, 1, 1], [], [0, 1]]
"""Whether the policy chose a token; others came from the environment."""


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def lively(family: str = "llama", *, dtype: torch.dtype = torch.float64, lora: bool = False, **options: Any) -> Any:
    """A tiny model whose logits differ from each other and depend on all that was read."""
    model: Any = tiny_model(VOCABULARY, width=16, heads=2, context=16, family=family, generator=rng(), dtype=dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(10)
    if not lora:
        return model.eval()
    model = add_lora(model, rank=2, generator=rng(1))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.2, generator=rng(2))
    return model.eval()


def padded(rows: list[list[int]], columns: int, side: str) -> Tensor:
    """-1 on one side, or one after each token and the rest on the right."""
    if side == "between":
        rows = [[each for token in row for each in (token, PAD)] for row in rows]
    fill = [[PAD] * (columns - len(row)) for row in rows]
    return torch.tensor([a + b if side == "left" else b + a for a, b in zip(fill, rows, strict=True)])


def make_batch(prompt_side: str = "left", side: str = "right", **changes: Any) -> Trajectories:
    """The rows above; what stands at padding is nonsense."""
    before = [[*prompt, *answer][len(prompt) - 1 : -1] for prompt, answer in zip(PROMPTS, ANSWERS, strict=True)]
    before = [row if answer else [] for row, answer in zip(before, ANSWERS, strict=True)]
    observation = padded(before, 9, side)
    action = padded(ANSWERS, 9, side).masked_fill(observation < 0, 10**6)
    shape = observation.shape
    generator = rng(3)
    batch = Trajectories(
        observation=observation,
        action=action,
        reward=torch.zeros(shape),
        mask=padded(OWN, 9, side) == 1,
        log_prob=torch.zeros(shape, dtype=torch.float64),
        terminated=torch.zeros(shape, dtype=torch.bool),
        truncated=torch.zeros(shape, dtype=torch.bool),
        state=padded(PROMPTS, 9, prompt_side),
        advantage=torch.randn(shape, generator=generator, dtype=torch.float64),
    )
    return batch.replace(**changes)


def plain(model: nn.Module, temperature: float = 1.0) -> tuple[list[Tensor], list[Tensor]]:
    """log_prob and entropy of the answers, from all logits of one row after the other."""
    log_probs, entropies = [], []
    for prompt, answer in zip(PROMPTS, ANSWERS, strict=True):
        if not answer:
            log_probs.append(torch.zeros(0, dtype=torch.float64))
            entropies.append(torch.zeros(0, dtype=torch.float64))
            continue
        logits = model(input_ids=torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
        log_softmax = torch.log_softmax(logits / temperature, -1)
        log_probs.append(torch.stack([log_softmax[t, token] for t, token in enumerate(answer)]))
        entropies.append(-(log_softmax.exp() * log_softmax).sum(-1))
    return log_probs, entropies


def rows_of(values: Tensor, batch: Trajectories) -> list[Tensor]:
    assert isinstance(batch.observation, Tensor)
    assert not values[batch.observation < 0].any()
    return [row[there] for row, there in zip(values, batch.observation >= 0, strict=True)]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_equal_to_one_row_after_the_other(family: str, lora: bool, temperature: float) -> None:
    model = lively(family, lora=lora)
    policy = LanguagePolicy(model, temperature=temperature, chunk=40)
    expected = plain(model, temperature)
    assert len({round(each, 3) for each in torch.cat(expected[0]).tolist()}) == 10
    for prompt_side in ("left", "right", "between"):
        for side in ("left", "right", "between"):
            batch = make_batch(prompt_side, side)
            evaluation = policy.evaluate(batch)
            assert evaluation.entropy is not None
            assert evaluation.value is None
            for values, rows in zip((evaluation.log_prob, evaluation.entropy), expected, strict=True):
                for ours, theirs in zip(rows_of(values, batch), rows, strict=True):
                    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)


def test_rows_do_not_depend_on_each_other() -> None:
    policy, batch = LanguagePolicy(lively(), value="separate"), make_batch()
    nn.init.normal_(policy.critic.weight, generator=rng())
    whole = policy.evaluate(batch)
    for i in range(len(PROMPTS)):
        alone = policy.evaluate(batch.rows(slice(i, i + 1)))
        for a, b in ((whole.log_prob, alone.log_prob), (whole.value, alone.value), (whole.entropy, alone.entropy)):
            torch.testing.assert_close(a[i : i + 1], b, rtol=0, atol=1e-10)


def test_where_tokens_are_predicted() -> None:
    rows = predicted_rows(make_batch("between", "between"))
    assert rows.rows.ids.tolist() == [
        [3, 1, 5, 6, 2, 2, 0],
        [7, 9, 0, 0, 0, 0, 0],
        [4, 0, 11, 2, 1, 0, 3],
        [0, 0, 0, 0, 0, 0, 0],
        [28, 28, 5, 8, 4, 0, 0],
    ]
    assert rows.rows.attention_mask.sum(1).tolist() == [6, 2, 7, 1, 5]
    assert rows.rows.position_ids[2].tolist() == list(range(7))
    places = [rows.place[rows.row == i].tolist() for i in range(5)]
    assert places == [[1, 2, 3, 4], [0], [3, 4, 5], [], [2, 3]]
    assert torch.equal(rows.there, make_batch("between", "between").observation >= 0)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_are_those_of_all_logits(family: str, lora: bool, checkpointing: bool) -> None:
    model = lively(family, lora=lora)
    log_prob, entropy = (torch.cat(each) for each in plain(model))
    weights = torch.randn(2, len(log_prob), generator=rng(4), dtype=torch.float64)
    policy = LanguagePolicy(model, chunk=40, gradient_checkpointing=checkpointing)
    trained = policy.trainable_parameters()
    assert lora == (len(trained) < len(list(model.parameters())))
    expected = torch.autograd.grad((weights * torch.stack([log_prob, entropy])).sum(), trained)
    batch = make_batch()
    evaluation = policy.evaluate(batch)
    ours = torch.stack([torch.cat(rows_of(each, batch)) for each in (evaluation.log_prob, evaluation.entropy)])
    for a, b in zip(torch.autograd.grad((weights * ours).sum(), trained), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8)
    assert any(each.abs().max() > 0.1 for each in expected)


def test_checkpointing_computes_layers_again_and_has_no_dropout() -> None:
    """GPT-2's configuration has dropout; transformers checkpoints only layers in training mode."""
    policy = LanguagePolicy(lively("gpt2"), gradient_checkpointing=True)
    calls = []
    policy.backbone.h[0].attn.register_forward_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    first = policy.evaluate(make_batch()).log_prob
    assert len(calls) == 1
    first.sum().backward()
    assert len(calls) == 2
    assert torch.equal(first, policy.eval().evaluate(make_batch()).log_prob)


def test_dropout_is_off_unless_asked_for() -> None:
    batch = make_batch()
    plainly = LanguagePolicy(lively("gpt2"))
    assert plainly.training
    dropping = LanguagePolicy(lively("gpt2"), dropout=True)
    expected = plainly.eval().evaluate(batch).log_prob
    assert torch.equal(plainly.train().evaluate(batch).log_prob, expected)
    assert (dropping.evaluate(batch).log_prob - expected).abs().max() > 0.1
    assert torch.equal(dropping.eval().evaluate(batch).log_prob, expected)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("lora", "checkpointing"), [(False, False), (True, False), (True, True)])
def test_ratio_is_1_at_first(family: str, lora: bool, checkpointing: bool) -> None:
    """Probabilities worked out by a copy of the policy, on rows padded on the other side, in float32."""
    policy = LanguagePolicy(
        lively(family, dtype=torch.float32, lora=lora), gradient_checkpointing=checkpointing, temperature=0.9
    )
    sampler = Reference(policy).module
    before = sampler.evaluate(make_batch("right")).log_prob
    assert not before.requires_grad
    after = policy.evaluate(make_batch("left")).log_prob
    assert after.dtype == torch.float32
    assert ((after - before).exp() - 1).abs().max() <= 1e-6
    torch.testing.assert_close(after, before)


def test_policy_gradient_trains_and_begins_as_reinforce() -> None:
    policy = LanguagePolicy(lively())
    batch = make_batch()
    batch = batch.replace(log_prob=policy.evaluate(batch).log_prob.detach())

    def gradient(surrogate: Any) -> tuple[Tensor, ...]:
        return torch.autograd.grad(
            PolicyGradient(surrogate=surrogate)(policy, batch).value, policy.trainable_parameters()
        )

    for a, b in zip(gradient(Clip()), gradient(Reinforce()), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)
    objective = PolicyGradient(surrogate=Clip())
    learner = GradientLearner(policy, objective, torch.optim.SGD(policy.trainable_parameters(), 1e-3))
    metrics = learner.update(batch).metrics
    assert abs(metrics["approx_kl"]) < 1e-12
    assert objective(policy, batch).value < metrics["loss"] - 1e-6


def test_tokens_of_the_environment_are_read_and_not_trained() -> None:
    policy, batch = LanguagePolicy(lively()), make_batch()
    objective = PolicyGradient(surrogate=Reinforce())
    loss = objective(policy, batch).value
    log_prob = policy.evaluate(batch).log_prob
    assert batch.advantage is not None
    own = [-batch.advantage[i, t] * log_prob[i, t] for i in range(5) for t in range(9) if batch.mask[i, t]]
    torch.testing.assert_close(loss, torch.stack(own).mean())
    action, observation = batch.action.clone(), batch.observation.clone()
    action[0, 1] = observation[0, 2] = 20  # what a tool says in the middle of the first row
    changed = policy.evaluate(batch.replace(action=action, observation=observation)).log_prob
    assert changed[0, 0] == log_prob[0, 0]
    assert changed[0, 3] != log_prob[0, 3]
    assert torch.equal(changed[1:], log_prob[1:])


@pytest.mark.parametrize("critic", ["shared", "separate"])
def test_value_is_that_of_the_text_before_the_token(critic: Any) -> None:
    policy = LanguagePolicy(lively(), value=critic)
    batch = make_batch()
    assert torch.equal(policy.evaluate(batch).value, torch.zeros(5, 9, dtype=torch.float64))
    nn.init.normal_(policy.critic.weight, generator=rng(5))
    if policy.critic_backbone is not None:
        with torch.no_grad():
            policy.critic_backbone.norm.weight.mul_(torch.rand(16, generator=rng(6)))
    backbone = policy.critic_backbone or policy.backbone
    values = rows_of(policy.evaluate(batch).value, batch)
    for prompt, answer, row in zip(PROMPTS, ANSWERS, values, strict=True):
        for t in range(len(answer)):
            text = torch.tensor([prompt + answer[:t]])
            expected = policy.critic(backbone(input_ids=text).last_hidden_state[0, -1]).squeeze()
            torch.testing.assert_close(row[t], expected, rtol=0, atol=1e-10)
            held = torch.cat([torch.full((1, 2), PAD), text, torch.full((1, 1), PAD)], 1)
            torch.testing.assert_close(policy.value(text[:, -1], held), expected.unsqueeze(0), rtol=0, atol=1e-10)


def test_what_the_value_loss_trains() -> None:
    batch = make_batch()
    for critic, trained in (("shared", True), ("separate", False)):
        policy = LanguagePolicy(lively(), value=critic)
        nn.init.normal_(policy.critic.weight, generator=rng(5))
        objective = PolicyGradient(surrogate=Reinforce(), value_loss=ValueLoss())
        objective(
            policy, batch.replace(advantage=torch.zeros(5, 9), returns=torch.ones(5, 9), value=torch.zeros(5, 9))
        ).value.backward()
        norms = [p.grad.abs().sum().item() for p in policy.backbone.parameters() if p.grad is not None]
        assert (sum(norms) > 0) == trained
        if policy.critic_backbone is not None:
            assert all(p.grad is not None for p in policy.critic_backbone.parameters())


def test_no_critic() -> None:
    policy = LanguagePolicy(lively())
    assert policy.value(torch.zeros(1), torch.ones(1, 1, dtype=torch.int64)) is None
    assert policy.initial_state(3) is None


def test_bfloat16_is_near_float32() -> None:
    exact = LanguagePolicy(lively(dtype=torch.float32), value="shared")
    half = LanguagePolicy(lively(dtype=torch.bfloat16), value="shared")
    batch = make_batch()
    ours, theirs = half.evaluate(batch), exact.evaluate(batch)
    assert ours.log_prob.dtype == ours.value.dtype == torch.float32
    torch.testing.assert_close(ours.log_prob, theirs.log_prob, rtol=0.1, atol=0.1)
    torch.testing.assert_close(ours.entropy, theirs.entropy, rtol=0.1, atol=0.1)
    (ours.log_prob.sum() + ours.value.sum()).backward()
    assert all(parameter.grad.isfinite().all() for parameter in half.trainable_parameters())


def test_only_padding() -> None:
    batch = make_batch()
    nothing = batch.replace(observation=torch.full_like(batch.observation, PAD), mask=torch.zeros_like(batch.mask))
    policy = LanguagePolicy(lively(), value="shared")
    evaluation = policy.evaluate(nothing)
    for each in (evaluation.log_prob, evaluation.entropy, evaluation.value):
        assert torch.equal(each, torch.zeros(5, 9, dtype=torch.float64))
    evaluation.log_prob.sum().backward()


def gemma2() -> Any:
    config = transformers.Gemma2Config(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        final_logit_softcapping=2.0,
    )
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float64)
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(20)
    return model


def test_capped_logits() -> None:
    model = gemma2()
    policy, batch = LanguagePolicy(model, temperature=0.5), make_batch()
    assert model(torch.tensor([[1, 2, 3]])).logits.abs().max() > 1.5
    for ours, theirs in zip(rows_of(policy.evaluate(batch).log_prob, batch), plain(model, 0.5)[0], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)


@pytest.mark.parametrize("make", [lively, gemma2])
def test_head_is_the_derivative_in_its_outputs(make: Any) -> None:
    policy, batch = LanguagePolicy(make(), temperature=0.8), make_batch()
    head = policy.evaluate(batch).head
    assert head is not None
    there = batch.observation >= 0
    outputs = (head.hidden[there] @ policy.head.weight.T).detach().requires_grad_()
    z = outputs if policy.softcap is None else policy.softcap * torch.tanh(outputs / policy.softcap)
    log_softmax = torch.log_softmax(z / 0.8, 1)
    log_prob = log_softmax.gather(1, batch.action[there][:, None]).squeeze(1)
    torch.testing.assert_close(log_prob, policy.evaluate(batch).log_prob[there])
    (score,) = torch.autograd.grad(log_prob.sum(), outputs, retain_graph=True)
    torch.testing.assert_close(head.score[there], score)
    assert not head.score[~there].any()
    # F = sum over actions of pi(a) v(a) v(a)^T
    u = torch.randn(*there.shape, VOCABULARY, generator=rng(7), dtype=torch.float64)
    expected = torch.zeros_like(score)
    for a in range(VOCABULARY):
        (v,) = torch.autograd.grad(log_softmax[:, a].sum(), outputs, retain_graph=True)
        expected += log_softmax[:, a, None].exp().detach() * v * (v * u[there]).sum(1, keepdim=True)
    torch.testing.assert_close(head.fisher(u)[there], expected)


def test_curvature_mask_leaves_steps_out() -> None:
    policy, batch = LanguagePolicy(lively()), make_batch()
    kept = []
    for bound in (1e9, 0.5, 1e-12):
        harmless = CurvatureMask(delta_fisher=bound, delta_hessian=bound, learning_rate=0.1)
        metrics = PolicyGradient(surrogate=Reinforce(), filters=(harmless,))(policy, batch).metrics
        kept.append(float(metrics["kept_fraction"]))
    assert kept == pytest.approx([1, 3 / 7, 0])


@pytest.mark.parametrize("lora", [False, True])
def test_weights_through_files(lora: bool, tmp_path: Path) -> None:
    """GPT-2's output layer is its embedding: one parameter under two names."""
    policy = LanguagePolicy(lively("gpt2", lora=lora), value="separate")
    assert policy.head.weight is policy.causal_model.get_input_embeddings().weight
    checkpoint.save_weights(policy, tmp_path / "policy.safetensors")
    other = LanguagePolicy(tiny_like(policy), value="separate")
    batch = make_batch()
    assert not torch.equal(other.evaluate(batch).log_prob, policy.evaluate(batch).log_prob)
    checkpoint.load_weights(other, tmp_path / "policy.safetensors")
    assert torch.equal(other.evaluate(batch).log_prob, policy.evaluate(batch).log_prob)
    assert other.head.weight is other.causal_model.get_input_embeddings().weight


def tiny_like(policy: LanguagePolicy) -> Any:
    model = copy.deepcopy(policy.model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(generator=rng(9))
    return model


def test_training_goes_on_from_a_checkpoint(tmp_path: Path) -> None:
    batch = make_batch()

    def learner() -> GradientLearner:
        policy = LanguagePolicy(lively("gpt2", lora=True))
        optimizer = torch.optim.AdamW(policy.trainable_parameters(), 1e-2)
        return GradientLearner(policy, PolicyGradient(surrogate=Reinforce()), optimizer)

    first, second = learner(), learner()
    first.update(batch)
    checkpoint.save(tmp_path / "state.safetensors", {"learner": first.state_dict()})
    second.load_state_dict(checkpoint.load(tmp_path / "state.safetensors")["learner"])
    for each in (first, second):
        each.update(batch)
    for a, b in zip(first.policy.parameters(), second.policy.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_copy_has_weights_of_its_own() -> None:
    policy = LanguagePolicy(lively("gpt2"), value="shared", gradient_checkpointing=True)
    twin = copy.deepcopy(policy)
    assert twin.head.weight is twin.causal_model.get_input_embeddings().weight
    batch = make_batch()
    expected = policy.evaluate(batch).log_prob
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    assert torch.equal(policy.evaluate(batch).log_prob, expected)
    assert not torch.equal(twin.evaluate(batch).log_prob, expected)
    twin.evaluate(batch).log_prob.sum().backward()


# What is refused.


def test_rows_without_a_prompt() -> None:
    batch, policy = make_batch(), LanguagePolicy(lively(), value="shared")
    state = batch.state.clone()
    state[2] = PAD
    with pytest.raises(ValueError, match=r"row 2 has no prompt; valid: at least one token to begin with"):
        policy.evaluate(batch.replace(state=state))
    with pytest.raises(ValueError, match=r"row 0 has no prompt"):
        policy.evaluate(batch.replace(state=None))
    with pytest.raises(ValueError, match=r"row 2 has no prompt"):
        policy.value(batch.observation[:, 0], state)
    with pytest.raises(ValueError, match=r"state = None"):
        policy.value(batch.observation[:, 0])


def test_rows_that_are_too_long() -> None:
    batch = make_batch(state=torch.ones(5, 14, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"a row has 18 tokens; valid: at most the model's 16 positions"):
        LanguagePolicy(lively()).evaluate(batch)


def test_tokens_that_do_not_exist() -> None:
    batch = make_batch()
    action = batch.action.clone()
    action[1, 0] = VOCABULARY
    with pytest.raises(ValueError, match=r"token = 29; valid: 0 to 28"):
        LanguagePolicy(lively()).evaluate(batch.replace(action=action))


def test_observations_in_a_dict() -> None:
    batch = make_batch()
    with pytest.raises(TypeError, match="observations are dicts"):
        LanguagePolicy(lively()).evaluate(batch.replace(observation={"text": batch.observation}))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, r"temperature = 0.0; valid: a positive number"),
        ({"value": "both"}, r"value = 'both'; valid: separate, shared, None"),
        ({"chunk": 0}, r"chunk = 0; valid: at least 1"),
    ],
)
def test_options_without_a_valid_value(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LanguagePolicy(lively(), **options)


def test_models_that_scale_their_logits() -> None:
    config = transformers.CohereConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        pad_token_id=None,
    )
    with pytest.raises(ValueError, match=r"the logits of CohereForCausalLM are not its last layer's outputs"):
        LanguagePolicy(transformers.AutoModelForCausalLM.from_config(config))


def test_tokens_that_peft_puts_before_a_row() -> None:
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    with pytest.raises(ValueError, match=r"the logits of LlamaForCausalLM are not its last layer's outputs"):
        LanguagePolicy(peft.get_peft_model(lively(), config))


def test_adapters_on_the_last_layer() -> None:
    config = peft.LoraConfig(r=2, target_modules=["lm_head"])
    with pytest.raises(ValueError, match=r"the model's last layer is Linear; valid: torch's Linear, without adapter"):
        LanguagePolicy(peft.get_peft_model(lively(), config))


def test_checkpointing_that_would_turn_dropout_on() -> None:
    config = transformers.OPTConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        ffn_dim=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        word_embed_proj_dim=16,
    )
    model = transformers.AutoModelForCausalLM.from_config(config)
    with pytest.raises(ValueError, match=r"gradient_checkpointing = True: OPTDecoderLayer has dropout = 0.1; valid"):
        LanguagePolicy(model, gradient_checkpointing=True)
    assert LanguagePolicy(model, gradient_checkpointing=True, dropout=True).training


def test_checkpointing_without_layers_for_it() -> None:
    model = lively()
    model.model.layers = nn.ModuleList()
    with pytest.raises(ValueError, match=r"gradient_checkpointing = True; LlamaForCausalLM has no layers for it"):
        LanguagePolicy(model, gradient_checkpointing=True)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("critic", [None, "shared"])
def test_prompts_that_are_shared_are_read_once(family: str, lora: bool, critic: Any) -> None:
    """Three times the rows; norms of Llama's kind round to float32."""
    batch = make_batch("between").rows(torch.tensor([0, 2, 4, 1, 3, 0, 1, 4, 2, 0, 4, 3]))
    batch = batch.replace(action=batch.action.roll(1, 0).where(batch.action.roll(1, 0) < VOCABULARY, 1))
    gradients = []
    for shared in (False, True):
        policy = LanguagePolicy(lively(family, lora=lora), value=critic, share_prompts=shared)
        found = policy.evaluate(batch)
        assert found.entropy is not None
        total = (found.log_prob * torch.arange(9)).sum() + found.entropy.square().sum()
        if found.value is not None:
            total = total + (found.value + 1).square().sum()
        total.backward()
        gradients.append([found.log_prob, found.entropy, *(each.grad for each in policy.trainable_parameters())])
    tolerance = 1e-10 if family == "gpt2" else 1e-5
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, atol=tolerance, rtol=tolerance)


def test_shared_prompts_of_no_row() -> None:
    policy = LanguagePolicy(lively(), share_prompts=True)
    found = policy.evaluate(make_batch().rows(torch.tensor([3, 3])))
    assert not found.log_prob.any()
