"""The adapter for TRL: the stock trainer's numbers with its settings, the library's with the library's methods."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

trl = pytest.importorskip("trl")

from datasets import Dataset  # noqa: E402
from tokenizers import Regex, Tokenizer  # noqa: E402
from tokenizers.models import WordLevel  # noqa: E402
from tokenizers.pre_tokenizers import Split  # noqa: E402
from transformers import (  # noqa: E402
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedTokenizerFast,
    TrainerCallback,
)
from trl import GRPOConfig, GRPOTrainer  # noqa: E402

from decisionrl import checkpoint  # noqa: E402
from decisionrl.experience.trajectories import Trajectories  # noqa: E402
from decisionrl.llm.methods import BEYOND, METHODS, Evaluated, Method, method  # noqa: E402
from decisionrl.llm.trl import REPLACED, STATE_FILE, DecisionRLTrainer  # noqa: E402
from decisionrl.objectives.aggregation import token_mean  # noqa: E402
from decisionrl.objectives.policy_gradient import PolicyGradient  # noqa: E402
from decisionrl.objectives.regularizers import KLPenalty, ValueLoss  # noqa: E402
from decisionrl.objectives.sequence_ratios import SequenceClip  # noqa: E402
from decisionrl.objectives.surrogates import Clip  # noqa: E402
from decisionrl.pipeline.filters import DynamicSampling  # noqa: E402
from decisionrl.pipeline.group_advantages import GroupNormalized  # noqa: E402
from decisionrl.policies.evaluation import Evaluation  # noqa: E402

LENGTH = 6
CHARACTERS = "0123456789+="
PROBLEMS = ["1+2=", "3+14=", "15+92=", "6+5="]


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {token: i for i, token in enumerate(["<pad>", "<eos>", *CHARACTERS])}
    made = Tokenizer(WordLevel(vocabulary, unk_token="<pad>"))
    made.pre_tokenizer = Split(Regex("."), "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", eos_token="<eos>")


def llama() -> LlamaForCausalLM:
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=len(CHARACTERS) + 2,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
        initializer_range=0.3,
    )
    return LlamaForCausalLM(config)


def score(completion: list[int]) -> float:
    """Even digits (tokens 2 to 11 are the digits), in eighths, of which TRL, too, finds the mean without an error."""
    return sum(each in range(2, 12, 2) for each in completion) / 8


def reward(completion_ids: list[list[int]], **others: Any) -> list[float]:
    return [score(each) for each in completion_ids]


def configured(path: Path, **settings: Any) -> GRPOConfig:
    return GRPOConfig(
        **{
            "output_dir": str(path),
            "per_device_train_batch_size": 8,
            "num_generations": 4,
            "max_completion_length": LENGTH,
            "max_steps": 4,
            "learning_rate": 0.05,
            "optim": "sgd",
            "max_grad_norm": 0.0,
            "lr_scheduler_type": "constant",
            "use_cpu": True,
            "bf16": False,
            "gradient_checkpointing": False,
            "report_to": "none",
            "disable_tqdm": True,
            "save_strategy": "no",
            "logging_steps": 1,
            **settings,
        }
    )


def problems(number: int = 4) -> Dataset:
    return Dataset.from_dict({"prompt": PROBLEMS[:number], "problem_id": list(range(number))})


def trainer(path: Path, chosen: str | Method | None = None, *, model: Any = None, **settings: Any) -> GRPOTrainer:
    """Ours with a method, TRL's without."""
    of_trainer = {
        name: settings.pop(name)
        for name in ("callbacks", "rollout_func", "train_dataset", "eval_dataset")
        if name in settings
    }
    more = {"train_dataset": problems(), **of_trainer}
    kind: Any = GRPOTrainer if chosen is None else DecisionRLTrainer
    own = {} if chosen is None else {"method": chosen}
    return kind(model or llama(), reward, configured(path, **settings), processing_class=tokenizer(), **more, **own)


def trained(*args: Any, **settings: Any) -> GRPOTrainer:
    """A trainer seeds the generators where it is made, so one is trained before the next is made."""
    made = trainer(*args, **settings)
    made.train()
    return made


def weights(trained: GRPOTrainer) -> Tensor:
    return torch.cat([each.detach().flatten() for each in trained.model.parameters()])


def with_trl_eps(made: Method) -> Method:
    return dataclasses.replace(made, pipeline=[GroupNormalized(eps=1e-4)])


def gspo_of_trl() -> Method:
    objective = dataclasses.replace(
        method("gspo").objective, surrogate=SequenceClip(low=0.1, high=0.2, token_gradient=False)
    )
    return with_trl_eps(dataclasses.replace(method("gspo"), objective=objective))


IN_PARTS = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
ACROSS_ROLLOUTS = {
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 4,
    "steps_per_generation": 2,
    "num_iterations": 1,
}


def grpo(**options: Any) -> Callable[[], Method]:
    return lambda: method("grpo", **{"eps": 1e-4, **options})


SLOW = pytest.mark.slow
STOCK = [
    pytest.param(grpo(), {"loss_type": "grpo"}, {}, id="grpo", marks=SLOW),
    pytest.param(
        grpo(clip_high=0.28), {"loss_type": "grpo", "epsilon_high": 0.28}, IN_PARTS, id="grpo in parts, two bounds"
    ),
    pytest.param(grpo(aggregate="token-mean"), {"loss_type": "dapo"}, IN_PARTS, id="dapo in parts", marks=SLOW),
    pytest.param(grpo(aggregate="token-mean"), {"loss_type": "bnpo"}, {}, id="bnpo", marks=SLOW),
    pytest.param(
        grpo(scale="none", aggregate="seq-mean-token-sum-norm", length=LENGTH),
        {"loss_type": "dr_grpo", "scale_rewards": "none"},
        IN_PARTS,
        id="dr_grpo in parts",
        marks=SLOW,
    ),
    pytest.param(grpo(dual=1.3), {"loss_type": "grpo", "delta": 1.3}, {}, id="delta", marks=SLOW),
    pytest.param(grpo(scale="batch"), {"loss_type": "grpo", "scale_rewards": "batch"}, {}, id="batch", marks=SLOW),
    pytest.param(lambda: with_trl_eps(method("sapo")), {"loss_type": "sapo"}, {}, id="sapo"),
    pytest.param(
        gspo_of_trl,
        {"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon": 0.1, "epsilon_high": 0.2},
        {},
        id="gspo",
        marks=SLOW,
    ),
    pytest.param(
        grpo(aggregate="token-mean"), {"loss_type": "dapo"}, ACROSS_ROLLOUTS, id="steps across rollouts", marks=SLOW
    ),
]


@pytest.mark.parametrize(("made", "stock", "both"), STOCK)
def test_stock_settings_give_the_stock_weights(
    made: Callable[[], Method], stock: dict[str, Any], both: dict[str, Any], tmp_path: Path
) -> None:
    shared = {"num_iterations": 3, "max_steps": 6, **both}
    theirs = trained(tmp_path, **stock, **shared)
    ours = trained(tmp_path, made(), **shared)
    torch.testing.assert_close(weights(ours), weights(theirs), rtol=0, atol=1e-6)
    assert (weights(ours) - weights(trainer(tmp_path))).abs().max() > 1e-3
    kl = max(each["approx_kl"] for each in ours.state.log_history if "approx_kl" in each)
    assert both == ACROSS_ROLLOUTS or kl > 1e-3


@pytest.mark.parametrize("corrected", [pytest.param(True, marks=pytest.mark.slow), False])
def test_beta_is_the_coefficient_of_the_penalty(corrected: bool, tmp_path: Path) -> None:
    llama().save_pretrained(tmp_path / "model")
    shared = {
        "model": str(tmp_path / "model"),
        "beta": 0.5,
        "learning_rate": 0.01,
        "use_bias_correction_kl": corrected,
        "num_iterations": 2,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "model_init_kwargs": {"dtype": "float32"},
    }
    theirs = trained(tmp_path, loss_type="grpo", **shared)
    ours = trained(tmp_path, method("grpo", eps=1e-4), **shared)
    torch.testing.assert_close(weights(ours), weights(theirs), rtol=0, atol=1e-6)
    assert any("kl_penalty" in each for each in ours.state.log_history)


@pytest.mark.slow
def test_the_loss_of_a_router_is_added(tmp_path: Path) -> None:
    found = []
    for chosen, stock in ((None, {"loss_type": "grpo"}), (method("grpo", eps=1e-4), {})):
        torch.manual_seed(3)
        dense = llama().config
        sizes = {name: getattr(dense, name) for name in ("vocab_size", "hidden_size", "intermediate_size")}
        experts = {"num_local_experts": 4, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2}
        config = MixtralConfig(**sizes, **experts, pad_token_id=0, eos_token_id=1, bos_token_id=None)
        settings = {"model": MixtralForCausalLM(config), "router_aux_loss_coef": 0.5, **IN_PARTS}
        run = trained(tmp_path, chosen, rollout_func=rollout, num_iterations=2, **settings, **stock)
        assert run.aux_loss_enabled
        found.append(weights(run))
    torch.testing.assert_close(*found, rtol=0, atol=1e-6)


def rollout(prompts: list[str], of: Any) -> dict[str, list[Any]]:
    """Random answers, others at every step, with a tool's output in the middle."""
    text, random = tokenizer(), torch.Generator().manual_seed(of.state.global_step)
    lengths = torch.randint(3, LENGTH + 1, (len(prompts),), generator=random).tolist()
    completions = [torch.randint(2, 14, (length,), generator=random).tolist() for length in lengths]
    return {
        "prompt_ids": [text(each)["input_ids"] for each in prompts],
        "completion_ids": completions,
        "logprobs": [[0.0] * len(each) for each in completions],
        "env_mask": [[1, 0] + [1] * (len(each) - 2) for each in completions],
    }


def test_tokens_of_a_tool_are_not_trained(tmp_path: Path) -> None:
    shared = {
        "rollout_func": rollout,
        "num_iterations": 2,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 4,
    }
    theirs = trained(tmp_path, loss_type="dapo", **shared)
    ours = trained(tmp_path, method("grpo", eps=1e-4, aggregate="token-mean"), **shared)
    torch.testing.assert_close(weights(ours), weights(theirs), rtol=0, atol=1e-6)


class Gradients(TrainerCallback):
    """Compares the gradient of every step with the objective's own on the whole rollout."""

    def __init__(self, objective: PolicyGradient, pipeline: list[Any]) -> None:
        self.objective, self.pipeline, self.steps, self.ratios = objective, pipeline, 0, 0
        self.trainer: Any = None
        self.batch: Trajectories | None = None

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        model = self.trainer.model
        if self.steps % args.num_iterations == 0:
            self.batch = self._rollout()
        self.steps += 1
        log_prob, entropy = evaluated(model, self._tokens())
        assert self.batch is not None
        kept = self.batch.extras["row"]
        log_prob, entropy = log_prob[kept], entropy[kept]
        loss = self.objective(Evaluated(Evaluation(log_prob, entropy)), self.batch).value
        parameters = list(model.parameters())
        for own, of_trainer in zip(torch.autograd.grad(loss, parameters), parameters, strict=True):
            assert of_trainer.grad is not None
            torch.testing.assert_close(of_trainer.grad, own, rtol=1e-4, atol=1e-6)
        self.ratios += int((log_prob - self.batch.log_prob)[self.batch.mask].abs().max() > 1e-3)

    def _tokens(self) -> dict[str, Tensor]:
        parts = self.trainer._buffered_inputs
        return {key: torch.cat([part[key] for part in parts]) for key in parts[0] if parts[0][key].ndim > 0}

    def _rollout(self) -> Trajectories:
        """The rollout with advantages of its own making, from the tokens alone."""
        tokens = self._tokens()
        mask = tokens["completion_mask"].bool()
        prompts = [
            bytes(row[there.bool()].tolist())
            for row, there in zip(tokens["prompt_ids"], tokens["prompt_mask"], strict=True)
        ]
        known = [bytes(tokenizer()(each)["input_ids"]) for each in PROBLEMS]
        ids = torch.tensor([known.index(each) for each in prompts])
        rewards = torch.zeros(mask.shape)
        for row, (answer, there) in enumerate(zip(tokens["completion_ids"], mask, strict=True)):
            rewards[row, int(there.sum()) - 1] = score(answer[there].tolist())
        with torch.no_grad():
            log_prob, entropy = evaluated(self.trainer.model, tokens)
        batch = Trajectories(
            observation=tokens["completion_ids"],
            action=tokens["completion_ids"],
            reward=rewards,
            mask=mask,
            log_prob=log_prob,
            terminated=torch.zeros_like(mask),
            truncated=torch.zeros_like(mask),
            entropy=entropy,
            group=ids,
            start_id=ids,
            extras={"row": torch.arange(len(ids))},
        )
        for step in self.pipeline:
            batch = step(batch)
        return batch


def evaluated(model: LlamaForCausalLM, tokens: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Log-probabilities and entropies of the completions, from a plain copy of the network."""
    plain = LlamaForCausalLM(model.config)
    ids = torch.cat([tokens["prompt_ids"], tokens["completion_ids"]], 1)
    there = torch.cat([tokens["prompt_mask"], tokens["completion_mask"]], 1)
    steps = tokens["completion_ids"].shape[1]
    logits = torch.func.functional_call(plain, dict(model.named_parameters()), (ids,), {"attention_mask": there}).logits
    every = logits[:, -steps - 1 : -1].log_softmax(-1)
    log_prob = every.gather(2, tokens["completion_ids"].unsqueeze(2)).squeeze(2)
    return log_prob, -(every.exp() * every).sum(2).detach()


WHOLE = {"per_device_train_batch_size": 8}
PARTS = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("dcpo", PARTS),
        ("sapo", PARTS),
        ("bapo", WHOLE),
        ("hapo", WHOLE),
        ("gspo", PARTS),
        ("rloo", PARTS),
        ("gtpo", PARTS),
        ("dapo", PARTS),
    ],
)
def test_a_methods_gradient_is_that_of_its_objective(name: str, parts: dict[str, Any], tmp_path: Path) -> None:
    own, once = method(name), name in ("rloo", "gtpo")
    check = Gradients(own.objective, list(own.pipeline))
    settings = {"num_iterations": 1 if once else 2, "max_steps": 2 if once else 4, "callbacks": [check], **parts}
    check.trainer = trainer(tmp_path, name, train_dataset=problems(2), **settings)
    check.trainer.train()
    assert check.steps == settings["max_steps"]
    assert check.ratios == (0 if once else 2)


def test_riskpo_centers_over_the_rollout(tmp_path: Path) -> None:
    run = trained(tmp_path, method("riskpo", bundle=2), rollout_func=rollout, max_steps=1, **PARTS)
    advantage, mask = (torch.cat([part[key] for part in run._buffered_inputs]) for key in ("advantages", "loss_mask"))
    torch.testing.assert_close(advantage[mask].mean(), torch.tensor(0.0), rtol=0, atol=1e-6)
    torch.testing.assert_close(advantage[mask].std(), torch.tensor(1.0), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("chosen", "shared", "whole", "parts"),
    [
        ("dcpo", {}, (8, 1, 1), (2, 4, 4)),
        ("dapo", {}, (8, 1, 1), (2, 4, 4)),
        (method("grpo", aggregate="token-mean"), {}, (4, 1, 2), (2, 2, 4)),
    ],
    ids=["sum over answers", "groups left out", "two steps on each rollout"],
)
def test_micro_batches_add_up(
    chosen: str | Method,
    shared: dict[str, Any],
    whole: tuple[int, int, int],
    parts: tuple[int, int, int],
    tmp_path: Path,
) -> None:
    found = []
    for rows, accumulated, split in (whole, parts):
        settings = {
            "per_device_train_batch_size": rows,
            "gradient_accumulation_steps": accumulated,
            "steps_per_generation": split,
            "num_iterations": 2,
        }
        found.append(weights(trained(tmp_path, chosen, rollout_func=rollout, **settings)))
    torch.testing.assert_close(*found, rtol=0, atol=1e-5)


def on_two_processes(rank: int, path: Path) -> None:
    """Half of every rollout on each of two processes; the first writes down the weights."""
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="localhost", MASTER_PORT="29731"
    )
    os.environ.update(TRL_EXPERIMENTAL_SILENCE="1", HF_HUB_OFFLINE="1")

    def half(prompts: list[str], of: Any) -> dict[str, list[Any]]:
        whole = rollout(PROBLEMS[:1] * 4 + PROBLEMS[1:2] * 4, of)
        return {key: each[4 * rank : 4 * rank + 4] for key, each in whole.items()}

    run = trained(
        path, "dcpo", rollout_func=half, **HALVES, per_device_train_batch_size=2, gradient_accumulation_steps=2
    )
    if rank == 0:
        checkpoint.save(path / "weights.safetensors", {"weights": weights(run)})


HALVES: dict[str, Any] = {
    "train_dataset": problems(2),
    "shuffle_dataset": False,
    "num_iterations": 2,
    "num_generations": 4,
}


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(on_two_processes, (tmp_path,), nprocs=2)
    single = trained(tmp_path, "dcpo", rollout_func=rollout, **HALVES)
    torch.testing.assert_close(
        checkpoint.load(tmp_path / "weights.safetensors")["weights"], weights(single), rtol=0, atol=1e-5
    )


def test_groups_of_equal_rewards_leave_the_loss(tmp_path: Path) -> None:
    def never(completion_ids: list[list[int]], **others: Any) -> list[float]:
        return [1.0] * len(completion_ids)

    run = trainer(tmp_path, "dapo", rollout_func=rollout, max_steps=1)
    run.reward_funcs = [never]
    before = weights(run)
    run.train()
    assert torch.equal(weights(run), before)
    assert run.state.log_history[0]["useful_groups"] == 0


def test_answers_that_nobody_scored_are_left_out(tmp_path: Path) -> None:
    run = trainer(tmp_path, method("grpo"), rollout_func=rollout, max_steps=1)
    run.reward_funcs = [lambda completion_ids, **others: [None, *reward(completion_ids)[1:]]]
    run.train()
    (batch,) = run._buffered_inputs
    lost = ~batch["loss_mask"].any(1)
    assert lost.sum() == 1
    assert (batch["advantages"][lost] == 0).all()
    assert torch.isfinite(weights(run)).all()


def test_what_is_remembered_is_in_the_checkpoint(tmp_path: Path) -> None:
    settings = {"rollout_func": rollout, "train_dataset": problems(2), "shuffle_dataset": False}
    straight = trained(tmp_path / "straight", "dcpo", **settings)
    trained(tmp_path / "parts", "dcpo", save_strategy="steps", save_steps=2, **settings)
    saved = tmp_path / "parts" / "checkpoint-2"
    remembered = checkpoint.load(saved / STATE_FILE)["pipeline"]["0 SmoothStandardized"]["memory"]["table"]
    assert remembered[:, 0].tolist() == [2, 2]
    resumed = trainer(tmp_path / "parts", "dcpo", **settings)
    resumed.train(resume_from_checkpoint=str(saved))
    torch.testing.assert_close(weights(resumed), weights(straight), rtol=0, atol=1e-6)
    memory, expected = (each.method.pipeline[0].state_dict()["memory"]["table"] for each in (resumed, straight))
    assert torch.equal(memory, expected)
    other = trainer(tmp_path / "parts", "sapo", **settings)
    with pytest.raises(ValueError, match="pipeline: the saved one has"):
        other.train(resume_from_checkpoint=str(saved))
    (saved / STATE_FILE).unlink()
    with pytest.raises(checkpoint.CheckpointError, match=STATE_FILE):
        trainer(tmp_path / "parts", "dcpo", **settings).train(resume_from_checkpoint=str(saved))


def test_evaluation_is_not_remembered(tmp_path: Path) -> None:
    run = trainer(
        tmp_path, "dcpo", rollout_func=rollout, eval_dataset=problems(2), per_device_eval_batch_size=8, max_steps=1
    )
    run.train()
    before = run.method.pipeline[0].state_dict()["memory"]["table"]
    assert "eval_policy_loss" in run.evaluate()
    assert torch.equal(run.method.pipeline[0].state_dict()["memory"]["table"], before)


def test_ratios_of_vllm_weigh_the_loss(tmp_path: Path) -> None:
    theirs, ours = trainer(tmp_path, loss_type="grpo"), trainer(tmp_path, method("grpo"))
    torch.manual_seed(0)
    inputs = {
        "prompt_ids": torch.randint(2, 14, (4, 3)),
        "prompt_mask": torch.ones(4, 3, dtype=torch.long),
        "completion_ids": torch.randint(2, 14, (4, 5)),
        "completion_mask": torch.ones(4, 5, dtype=torch.long),
        "loss_mask": torch.ones(4, 5, dtype=torch.bool),
        "advantages": torch.randn(4, 5),
        "old_per_token_logps": torch.randn(4, 5) - 3,
        "num_items_in_batch": torch.tensor(20),
    }
    for ratio in (torch.rand(4, 1), torch.rand(4, 5)):
        losses = []
        for each in (theirs, ours):
            each.use_vllm, each.model = True, each.model.eval()
            losses.append(each._compute_loss(each.model, {**inputs, "importance_sampling_ratio": ratio}))
        torch.testing.assert_close(losses[0], losses[1])


def test_metrics_and_advantages_are_the_methods(tmp_path: Path) -> None:
    run = trained(tmp_path, "bapo", rollout_func=rollout, max_steps=1)
    assert {"policy_loss", "clip_low", "clip_high", "positive_share", "entropy"} <= run.state.log_history[0].keys()
    (batch,) = run._buffered_inputs
    by_row = batch["advantages"].sum(1) / batch["loss_mask"].sum(1)
    torch.testing.assert_close(torch.tensor(sorted(run._logs["advantages"])), by_row.sort().values)


def test_errors_name_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown method 'grop'; did you mean 'grpo'"):
        trainer(tmp_path, "grop")
    with pytest.raises(ValueError, match="ppo needs a critic, which only"):
        trainer(tmp_path, "ppo")
    with pytest.raises(ValueError, match="segment_spo needs to generate from within an answer"):
        trainer(tmp_path, "segment_spo")
    with pytest.raises(ValueError, match="at least 2 generations per prompt"):
        trainer(tmp_path, "grpo", num_generations=1)
    with pytest.raises(ValueError, match="length = None; valid with aggregate = 'seq-mean-token-sum-norm'"):
        method("grpo", aggregate="seq-mean-token-sum-norm")
    with pytest.raises(ValueError, match=r"epsilon = 0.3; valid: the default, 0.2, for the method sapo decides"):
        trainer(tmp_path, "sapo", epsilon=0.3)
    with pytest.raises(ValueError, match="num_iterations = 2, steps_per_generation = 1; valid with rloo"):
        trainer(tmp_path, "rloo", num_iterations=2)
    plain = PolicyGradient(surrogate=Clip())
    for objective, message in (
        (dataclasses.replace(plain, value_loss=ValueLoss()), "objective.value_loss is given"),
        (dataclasses.replace(plain, kl=KLPenalty(coefficient=0.1)), "objective.kl is given"),
        (dataclasses.replace(plain, aggregate=lambda loss, mask: loss.sum()), "objective.aggregate = <function"),
    ):
        with pytest.raises(ValueError, match=message):
            trainer(tmp_path, Method(name="mine", pipeline=[GroupNormalized()], objective=objective))


@pytest.mark.parametrize(
    ("column", "message"),
    [(None, "columns prompt; valid"), (["a", "b"], "problem_id = 'a'; valid"), ([-2, 0], "problem_id = -2; valid")],
)
def test_problems_must_be_numbered(column: Any, message: str, tmp_path: Path) -> None:
    data = {"prompt": PROBLEMS[:2], **({} if column is None else {"problem_id": column})}
    run = trainer(tmp_path, "dcpo", train_dataset=Dataset.from_dict(data), rollout_func=rollout, shuffle_dataset=False)
    with pytest.raises(ValueError, match=message):
        run.train()


def test_replaced_arguments_are_arguments() -> None:
    assert set(REPLACED) <= {each.name for each in dataclasses.fields(GRPOConfig)}
    assert not BEYOND.keys() & METHODS.keys()


def test_rows_that_are_dropped_come_back_empty() -> None:
    mask = torch.ones(4, 2, dtype=torch.bool)
    reward = torch.tensor([[0.0, 1.0], [0.0, 1.0], [0.0, 1.0], [0.0, 0.0]])
    batch = Trajectories(
        observation=torch.zeros(4, 2),
        action=torch.zeros(4, 2),
        reward=reward,
        mask=mask,
        log_prob=torch.zeros(4, 2),
        terminated=mask,
        truncated=~mask,
        group=torch.tensor([0, 1, 0, 1]),
        extras={"length": torch.tensor([1, 2, 3, 4])},
    )
    made = Method(
        name="mine",
        pipeline=[DynamicSampling(), GroupNormalized()],
        objective=PolicyGradient(surrogate=Clip(), aggregate=token_mean),
    ).prepare(batch)
    assert made.mask.tolist() == [[False, False], [True, True], [False, False], [True, True]]
    assert made.extras.keys() == {"length"}
    assert made.extras["length"].tolist() == [0, 2, 0, 4]
    assert made.advantage is not None
    torch.testing.assert_close(made.advantage[:, 0], torch.tensor([0.0, 0.5**0.5, 0.0, -(0.5**0.5)]), atol=1e-5, rtol=0)
