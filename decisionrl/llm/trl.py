"""The library's methods inside TRL's ``GRPOTrainer``, which generates, scores, evaluates and updates as ever.

>>> trainer = DecisionRLTrainer(model, reward, GRPOConfig(...), method="dcpo", train_dataset=problems)
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from decisionrl import checkpoint
from decisionrl.experience.trajectories import Trajectories
from decisionrl.llm import methods
from decisionrl.llm.methods import Evaluated, Method
from decisionrl.objectives.aggregation import (
    Aggregation,
    only_token_mean,
    seq_mean_token_mean,
    seq_mean_token_sum,
    seq_mean_token_sum_norm,
    token_mean,
)
from decisionrl.objectives.policy_gradient import PolicyGradient
from decisionrl.objectives.regularizers import KLPenalty
from decisionrl.objectives.step_filters import BatchWeight
from decisionrl.objectives.surrogates import Reinforce
from decisionrl.objectives.terms import Terms
from decisionrl.pipeline import load_states, states
from decisionrl.pipeline.returns import final_step
from decisionrl.pipeline.rewards import add_to_last_step
from decisionrl.policies.evaluation import Evaluation

try:
    from trl import GRPOConfig, GRPOTrainer
except ImportError as error:
    raise ImportError("TRL is not installed: pip install 'decisionrl[trl]'") from error

PROBLEM_COLUMN = "problem_id"
"""The column of the data set with a whole number >= 0 for every problem, for methods that remember problems."""

STATE_FILE = "decisionrl.safetensors"
"""What the method remembers, beside the model in each of the trainer's checkpoints."""

REPLACED = (
    "loss_type",
    "importance_sampling_level",
    "epsilon",
    "epsilon_high",
    "delta",
    "sapo_temperature_pos",
    "sapo_temperature_neg",
    "scale_rewards",
    "multi_objective_aggregation",
    "top_entropy_quantile",
    "off_policy_mask_threshold",
    "entropy_coef",
    "use_adaptive_entropy",
)
"""Fields of ``GRPOConfig`` in whose place the method decides."""

COUNTS: dict[Callable[..., Tensor], Callable[[Tensor], Tensor] | None] = {
    token_mean: lambda mask: mask.sum(),
    seq_mean_token_mean: lambda mask: mask.any(1).sum(),
    seq_mean_token_sum: lambda mask: mask.any(1).sum(),
    seq_mean_token_sum_norm: lambda mask: mask.new_tensor(len(mask), dtype=torch.int64),
    only_token_mean: None,
}
"""What an aggregation divides by, in terms of the mask; None: by nothing that grows with the batch."""

_EXTRA = "extras."


class DecisionRLTrainer(GRPOTrainer):  # type: ignore[misc]
    """``GRPOTrainer`` with another method's advantages and loss.

    A rollout goes through the method's pipeline as a whole, on every process, before TRL shuffles and splits it: with
    groups, the weighted sum of the rewards at the last token, and, for methods that need them, the entropies at
    collection and the data set's column ``problem_id``. Answers that no reward function scored are left out.

    The loss of a step of the optimizer is the objective's on all of its micro-batches and processes together, whose
    masks are known beforehand. Only two things are not: what an objective itself works out over a minibatch (BAPO's
    bounds, HAPO's quantiles, filters, ``normalize_advantage``) is of a micro-batch; and where a step of the optimizer
    does not lie within one rollout (``steps_per_generation`` not a multiple of ``gradient_accumulation_steps``), its
    number of tokens is extrapolated from the rollout at hand, as in TRL.

    ``beta`` of the arguments is the coefficient of the KL penalty, vLLM's importance ratios weigh the loss, and the
    router's loss of a mixture of experts is added, as in ``GRPOTrainer``. Evaluation leaves the method's memory as it
    was. Checkpoints hold that memory in ``decisionrl.safetensors``.

    Args:
        model, reward_funcs, args, others: those of ``GRPOTrainer``.
        method: a name of ``llm.methods``, or a Method.

    Raises:
        ValueError: TRL cannot run the method, or arguments of TRL in whose place the method decides are not at their
            defaults.
    """

    def __init__(
        self,
        model: Any,
        reward_funcs: Any = None,
        args: GRPOConfig | None = None,
        *,
        method: str | Method,
        **others: Any,
    ) -> None:
        self.method = methods.method(method) if isinstance(method, str) else method
        _check_objective(self.method.objective)
        if args is not None:
            _check_arguments(args, self.method)
        super().__init__(model, reward_funcs, args, **others)
        self._objective = self.method.objective
        if self.beta:
            penalty = CorrectedKLPenalty if self.args.use_bias_correction_kl else KLPenalty
            self._objective = dataclasses.replace(self._objective, kl=penalty(coefficient=self.beta))

    def _calculate_rewards(self, *args: Any) -> Tensor:
        """Rewards of all processes, [rows, functions]; kept for the pipeline."""
        rewards: Tensor = super()._calculate_rewards(*args)
        self._rewards = rewards
        return rewards

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """TRL's rollout with the method's advantages [batch, step], mask and extras."""
        output: dict[str, Any] = super()._generate_and_score_completions(inputs)
        return {**output, **self._prepared(self._rollout(inputs, output))}

    def _prepare_inputs(self, generation_batch: Any) -> dict[str, Any]:
        """TRL's next micro-batch, with its share of the loss of a step of the optimizer."""
        inputs: dict[str, Any] = super()._prepare_inputs(generation_batch)
        return {**inputs, "share": self._share(inputs)} if self.model.training else inputs

    def _compute_loss(self, model: nn.Module, inputs: dict[str, Any]) -> Tensor:
        log_prob, entropy, router_loss = self._forward(model, inputs, compute_aux_loss=self.aux_loss_enabled)
        old_log_prob = inputs.get("old_per_token_logps")
        extras = {key.removeprefix(_EXTRA): each for key, each in inputs.items() if key.startswith(_EXTRA)}
        objective = self._objective
        if "importance_sampling_ratio" in inputs:
            extras["importance_sampling_ratio"] = inputs["importance_sampling_ratio"]
            weights = (*objective.weights, BatchWeight(key="importance_sampling_ratio"))
            objective = dataclasses.replace(objective, weights=weights)
        if "ref_per_token_logps" in inputs:
            extras["reference_log_prob"] = inputs["ref_per_token_logps"]
        batch = answers(
            inputs,
            mask=inputs["loss_mask"],
            log_prob=log_prob.detach() if old_log_prob is None else old_log_prob,
            advantage=inputs["advantages"],
            extras=extras,
        )
        result = objective(Evaluated(Evaluation(log_prob, entropy)), batch)
        self._report(result.metrics)
        loss: Tensor = result.value * inputs.get("share", 1.0)
        if self.aux_loss_enabled:
            steps = self.current_gradient_accumulation_steps if self.model.training else 1
            loss = loss + self.router_aux_loss_coef * router_loss / steps
        return loss

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        if self.args.should_save:
            folder = Path(self._get_output_dir(trial=trial)) / f"checkpoint-{self.state.global_step}"
            checkpoint.save(folder / STATE_FILE, {"pipeline": states(self.method.pipeline)})

    def _load_optimizer_and_scheduler(self, checkpoint_folder: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint_folder)
        if checkpoint_folder is not None:
            load_states(self.method.pipeline, checkpoint.load(Path(checkpoint_folder) / STATE_FILE)["pipeline"])

    def _rollout(self, inputs: list[dict[str, Any]], output: Mapping[str, Any]) -> Trajectories:
        """This process's answers as the pipeline sees them. Log-probabilities that nobody worked out are NaN."""
        rows = len(inputs)
        first = rows * self.accelerator.process_index
        rewards = self._rewards[first : first + rows]
        mask = output["completion_mask"] * output.get("tool_mask", 1)
        log_prob, entropy = output.get("old_per_token_logps"), None
        if "entropy" in self.method.rollout_needs:
            size = self.args.per_device_train_batch_size
            with torch.no_grad():
                log_prob, entropy, _ = self._forward(self.model, output, batch_size=size)
        generations = self.num_generations if self.model.training else self.num_generations_eval
        batch = answers(
            output,
            mask=mask.bool() & ~rewards.isnan().all(1, keepdim=True),
            log_prob=torch.full(mask.shape, torch.nan, device=mask.device) if log_prob is None else log_prob,
            entropy=entropy,
            group=torch.arange(first, first + rows, device=mask.device) // generations,
            start_id=_problem_ids(inputs, mask.device) if "start_id" in self.method.rollout_needs else None,
        )
        return add_to_last_step(batch, (rewards * self.reward_weights.to(rewards)).nansum(1))

    def _prepared(self, batch: Trajectories) -> dict[str, Tensor]:
        """What the pipeline, which sees the rows of all processes, has to say of this one's.

        Evaluation does not change what the method remembers.
        """
        remembered = None if self.model.training else states(self.method.pipeline)
        everyone = self.method.prepare(batch.map(self._gathered))
        if remembered is not None:
            load_states(self.method.pipeline, remembered)
        assert everyone.advantage is not None
        self._report(everyone.metrics)
        self._log_advantages(everyone.advantage.sum(1) / everyone.mask.sum(1).clamp(min=1))
        found = {"advantages": everyone.advantage, "loss_mask": everyone.mask}
        found.update({_EXTRA + key: each for key, each in everyone.extras.items()})
        first = batch.num_sequences * self.accelerator.process_index
        own = slice(first, first + batch.num_sequences)
        return {key: each[own, : batch.num_columns] if each.ndim > 1 else each[own] for key, each in found.items()}

    def _log_advantages(self, advantage: Tensor) -> None:
        """Put these in the place of the latest in TRL's table of completions, which keeps only so many."""
        logged = self._logs["advantages"]
        for _ in range(min(len(advantage), len(logged))):
            logged.pop()
        logged.extend(advantage.tolist())

    def _gathered(self, tensor: Tensor) -> Tensor:
        """The rows of all processes, padded to one length; padding of tokens is -1."""
        padding = -1 if tensor.dtype == torch.int64 else 0
        sent = tensor.byte() if tensor.dtype == torch.bool else tensor
        sent = self.accelerator.pad_across_processes(sent, dim=1, pad_index=padding)
        return self.accelerator.gather(sent).to(tensor.dtype)  # type: ignore[no-any-return]

    def _forward(self, model: nn.Module, inputs: Mapping[str, Any], **options: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Log-probabilities and entropies of the answers, [batch, step], and the router's loss."""
        evaluate = self._get_per_token_logps_and_entropies
        images = {key: inputs[key] for key in inspect.signature(evaluate).parameters if key in inputs}
        tokens = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
        there = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1)
        steps = inputs["completion_ids"].shape[1]
        evaluated: tuple[Tensor, Tensor, Tensor] = evaluate(
            model, tokens, there, steps, compute_entropy=True, **images, **options
        )
        return evaluated

    def _share(self, inputs: Mapping[str, Any]) -> Tensor | int:
        """What the aggregate of this micro-batch counts in the aggregate over a step of the optimizer.

        Processes average their gradients, so that each counts as many times as there are processes.
        """
        count = COUNTS[_function(self.method.objective.aggregate)]
        processes: int = self.accelerator.num_processes
        if count is None:
            return processes
        steps, window = self.args.steps_per_generation, self.current_gradient_accumulation_steps
        known = self._buffered_inputs
        if steps % window == 0:
            first = self._step % steps // window * window
            known = known[first : first + window]
        total: Tensor = self.accelerator.reduce(torch.stack([count(each["loss_mask"]) for each in known]).sum())
        expected: Tensor = total.clamp(min=1) * (window / len(known))
        return count(inputs["loss_mask"]) * processes / expected

    def _report(self, metrics: Mapping[str, Tensor]) -> None:
        """Add to TRL's metrics the mean over processes."""
        if metrics:
            values = torch.stack([each.detach().float() for each in metrics.values()])
            reported = self._metrics["train" if self.model.training else "eval"]
            for name, value in zip(metrics, self.accelerator.reduce(values, "mean").tolist(), strict=True):
                reported[name].append(value)


@dataclass(frozen=True, kw_only=True)
class CorrectedKLPenalty(KLPenalty):
    """The penalty times the ratio r, whose gradient is that of the KL of the current policy also off policy.

    Source: DeepSeek-V3.2, arXiv 2512.02556; TRL's ``use_bias_correction_kl``, on by default.
    """

    def __call__(self, terms: Terms) -> Tensor:
        return terms.ratio * super().__call__(terms)


def answers(
    tokens: Mapping[str, Tensor],
    *,
    mask: Tensor,
    log_prob: Tensor,
    extras: Mapping[str, Tensor] | None = None,
    **more: Any,
) -> Trajectories:
    """Prompts [batch, P] and completions [batch, step] of TRL as trajectories without rewards.

    An answer is an episode, whatever ended it. ``observation`` is the token before the action, -1 at padding, and
    ``state`` the prompt, -1 at its padding.

    Args:
        tokens: has ``prompt_ids``, ``prompt_mask``, ``completion_ids`` and ``completion_mask``.
        mask: the policy's own tokens that count, [batch, step].
        log_prob: at collection, [batch, step].
        extras, more: further fields of the trajectories.
    """
    action, there = tokens["completion_ids"], tokens["completion_mask"].bool()
    before = torch.cat([tokens["prompt_ids"][:, -1:], action[:, :-1]], 1)
    return Trajectories(
        observation=torch.where(there, before, -1),
        action=action,
        reward=torch.zeros(mask.shape, device=mask.device),
        mask=mask,
        log_prob=log_prob,
        terminated=final_step(mask),
        truncated=torch.zeros_like(mask),
        state=torch.where(tokens["prompt_mask"].bool(), tokens["prompt_ids"], -1),
        extras=extras or {},
        **more,
    )


def _check_objective(objective: PolicyGradient) -> None:
    """Raise a ValueError if TRL cannot run it."""
    if objective.value_loss is not None:
        raise ValueError("objective.value_loss is given; valid with TRL, whose models have no value head: None")
    if objective.kl is not None:
        raise ValueError("objective.kl is given; valid with TRL: None, and its coefficient as beta of the arguments")
    _function(objective.aggregate)


def _check_arguments(args: GRPOConfig, chosen: Method) -> None:
    """Raise a ValueError if TRL's arguments say something that the method decides, or cannot do."""
    defaults = {each.name: each.default for each in dataclasses.fields(args)}
    for name in REPLACED:
        if getattr(args, name) != defaults[name]:
            raise ValueError(
                f"{name} = {getattr(args, name)!r}; valid: the default, {defaults[name]!r}, "
                f"for the method {chosen.name} decides in its place"
            )
    rounds = args.num_iterations * args.steps_per_generation
    if isinstance(chosen.objective.surrogate, Reinforce) and args.gradient_accumulation_steps % rounds:
        raise ValueError(
            f"num_iterations = {args.num_iterations}, steps_per_generation = {args.steps_per_generation}; valid with "
            f"{chosen.name}, which takes one step on each rollout: 1, and gradient_accumulation_steps = "
            f"{args.gradient_accumulation_steps}"
        )


def _function(aggregate: Aggregation) -> Callable[..., Tensor]:
    """Which of the aggregations it is; ValueError if it is another."""
    function = aggregate.func if isinstance(aggregate, partial) else aggregate
    if function not in COUNTS:
        raise ValueError(f"objective.aggregate = {aggregate}; valid: those of decisionrl.objectives.aggregation")
    return function


def _problem_ids(inputs: list[dict[str, Any]], device: torch.device) -> Tensor:
    """The column of problems as start ids.

    Raises:
        ValueError: there is none, or it holds something else than whole numbers.
    """
    if PROBLEM_COLUMN not in inputs[0]:
        raise ValueError(
            f"the data set has the columns {', '.join(sorted(inputs[0]))}; valid for a method that remembers problems: "
            f"also {PROBLEM_COLUMN!r}, a whole number >= 0 for every problem, or -1 for one that does not come back"
        )
    ids = [each[PROBLEM_COLUMN] for each in inputs]
    for each in ids:
        if not isinstance(each, int) or each < -1:
            raise ValueError(f"{PROBLEM_COLUMN} = {each!r}; valid: a whole number >= 0, or -1")
    return torch.tensor(ids, device=device)
