"""Learners: what improves a policy from one batch.

A :class:`GradientLearner` is an objective and a torch optimizer. Anything else with ``policy``, ``update``
and a state, such as a least-squares solver, is a :class:`Learner` too; the Trainer cannot tell them apart.
"""

import contextlib
import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass(frozen=True)
class Loss:
    """What an objective returns.

    Attributes:
        value: the scalar to minimize, with its graph.
        metrics: named scalar tensors to report. ``loss`` and ``gradient_norm`` are the learner's own names.
        carry: handed back to the source after the update: the final simulator states of a continuing rollout,
            per-sample scores for a curriculum. The objective detaches what must not hold on to this graph.
    """

    value: Tensor
    metrics: Mapping[str, Tensor] = field(default_factory=dict)
    carry: Any = None


@dataclass(frozen=True)
class Update:
    """What one update reports: detached scalar tensors (to read one is to wait for the device), and carry."""

    metrics: dict[str, Tensor]
    carry: Any = None


class Objective(Protocol):
    """``objective(policy, batch) -> Loss``, for the batch type of the source it is paired with.

    Pure: no optimizer, no environment, and no state that training would lose.
    """

    def __call__(self, policy: Any, batch: Any, /) -> Loss: ...


class Stateful(Protocol):
    """Anything whose state is saved with a checkpoint."""

    def state_dict(self) -> Mapping[str, Any]: ...

    def load_state_dict(self, state: Any, /) -> Any: ...


class Learner(Protocol):
    """Improves its policy from each batch.

    ``state_dict`` raises rather than returns the state after a failed update, so that no checkpoint holds it.
    """

    @property
    def policy(self) -> nn.Module: ...

    def update(self, batch: Any, /) -> Update: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Mapping[str, Any], /) -> None: ...


class NonFiniteError(ArithmeticError):
    """An update met NaN or infinity. The weights are still those before it.

    Attributes:
        step: which update of the learner it was, counted from 1.
        component: ``loss``, a metric that explains it, or the parameter whose gradient is not finite.
    """

    def __init__(self, step: int, component: str) -> None:
        super().__init__(f"update {step}: {component} is not finite; the weights were left unchanged")
        self.step = step
        self.component = component


@dataclass(frozen=True)
class _Watched:
    """The scalars of one update, still on the device: ``norms`` [parameters with a gradient]."""

    step: int
    loss: Tensor
    metrics: dict[str, Tensor]
    names: Sequence[str]
    norms: Tensor

    def culprit(self) -> str | None:
        """What is not finite, the loss first; None if all is well."""
        bad_metrics = [name for name, value in self.metrics.items() if not value.isfinite().all()]
        if not self.loss.isfinite():
            return f"loss (through metric {bad_metrics[0]!r})" if bad_metrics else "loss"
        bad = (~self.norms.isfinite()).nonzero().flatten().tolist()
        return f"gradient of parameter {self.names[bad[0]]!r}" if bad else None


class _LossModule(nn.Module):
    """Policy and objective as one module, so that data parallelism sees one forward for each backward."""

    def __init__(self, policy: nn.Module, objective: Objective) -> None:
        super().__init__()
        self.policy = policy
        self.objective = objective

    def forward(self, batch: Any) -> tuple[Tensor, dict[str, Tensor], Any]:
        loss = self.objective(self.policy, batch)
        return loss.value, dict(loss.metrics), loss.carry


class GradientLearner:
    """One optimizer step on ``objective(policy, batch)`` per update.

    A fused optimizer, such as ``torch.optim.Adam(parameters, fused=True)``, is the fastest for small policies
    and, on an accelerator, the one that lets non-finite values be caught without waiting for the device.

    Args:
        policy: the module under training.
        objective: what to minimize. An ``nn.Module`` objective with weights of its own is named in
            ``components`` as well, to have them saved.
        optimizer: holds the parameters to train. Its learning rate may be scheduled by a callback.
        clip_norm: the largest total gradient norm; larger gradients are scaled down to it.
        ema_decay: d in ``ema <- d ema + (1 - d) weights`` after every update; ``ema_policy`` is the average,
            which starts as a copy of the policy.
        amp_dtype: run the objective under autocast. float16 would need loss scaling and is refused.
        accelerator: a Hugging Face Accelerator for device placement and data parallelism (DDP; each process
            holds all weights). Each process gives its own share of the batch: equal shares of a loss that is
            a mean over samples give the gradient of the whole batch. Metrics are averaged over processes.
            A script ends with ``accelerator.free_memory()`` and ``accelerator.end_training()``.
        components: named objects with state across batches (trackers, reference policies), saved along.
        after_update: called after every optimizer step: the ``step`` of a torch learning-rate scheduler, the
            ``follow`` of a :class:`~decisionrl.reference.Reference`. What has state is named in ``components`` too.
        clip_each_group: ``clip_norm`` bounds the norm of each of the optimizer's parameter groups by itself.
        check_every: on how many updates together non-finite values are looked for. 1 reads two scalars each
            update. More needs a fused optimizer: a flag on the device holds the weights from the first bad
            update on, until the next look or the next ``state_dict`` raises. Default: 1 on the CPU or with an
            optimizer that is not fused, otherwise 100.

    Raises:
        NonFiniteError: from ``update`` or ``state_dict``; names the update and the component.
    """

    def __init__(
        self,
        policy: nn.Module,
        objective: Objective,
        optimizer: torch.optim.Optimizer,
        *,
        clip_norm: float | None = None,
        ema_decay: float | None = None,
        amp_dtype: torch.dtype | None = None,
        accelerator: "Accelerator | None" = None,
        components: Mapping[str, Stateful] | None = None,
        after_update: Sequence[Callable[[], object]] = (),
        clip_each_group: bool = False,
        check_every: int | None = None,
    ) -> None:
        if clip_norm is not None and not clip_norm > 0:
            raise ValueError(f"clip_norm is {clip_norm}; it must be positive, or None")
        if ema_decay is not None and not 0 <= ema_decay < 1:
            raise ValueError(f"ema_decay is {ema_decay}; it must be in [0, 1), or None")
        mixed_precision = None if accelerator is None else accelerator.mixed_precision
        if amp_dtype == torch.float16 or mixed_precision == "fp16":
            raise ValueError("float16 autocast needs loss scaling; use bfloat16")

        self.policy = policy
        self.optimizer = optimizer
        self.components = dict(components or {})
        self.steps = 0
        self._clip_norm = clip_norm
        self._clip_each_group = clip_each_group
        self._after_update = tuple(after_update)
        self._accelerator = accelerator
        self._objective = objective
        self._module: nn.Module | None = None
        if accelerator is not None:
            self._module = accelerator.prepare_model(_LossModule(policy, objective))

        self._parameters: list[Tensor] = [p for group in optimizer.param_groups for p in group["params"]]
        if not self._parameters:
            raise ValueError("the optimizer holds no parameter")
        self._names = self._parameter_names()
        self._device = self._parameters[0].device
        self._several_devices = any(parameter.device != self._device for parameter in self._parameters)
        self._autocast = (
            contextlib.nullcontext()
            if amp_dtype is None
            else torch.autocast(self._device.type, amp_dtype, cache_enabled=True)
        )

        self.ema_policy: nn.Module | None = None
        self._ema_decay = ema_decay
        if ema_decay is not None:
            self.ema_policy = copy.deepcopy(policy).requires_grad_(False)
            pairs = zip(policy.parameters(), self.ema_policy.parameters(), strict=True)
            trained = [(weight, average) for weight, average in pairs if weight.requires_grad]
            self._weights = [weight.detach() for weight, _ in trained]
            self._averages: list[Tensor] = [average for _, average in trained]
            self._has_buffers = next(policy.buffers(), None) is not None

        fused = bool(getattr(optimizer, "_step_supports_amp_scaling", False))  # what GradScaler asks, too
        self._scales_gradients = fused and all(parameter.dtype == torch.float32 for parameter in self._parameters)
        if check_every is None:
            check_every = 100 if fused and self._device.type != "cpu" else 1
        if check_every < 1:
            raise ValueError(f"check_every is {check_every}; it must be at least 1")
        if check_every > 1 and not fused:
            raise ValueError(f"check_every={check_every} needs an optimizer made with fused=True")
        self._check_every = check_every
        self._watched: list[_Watched] = []
        self._bad: Tensor | None = None
        if check_every > 1:
            self._bad = torch.zeros((), device=self._device)
            optimizer.found_inf = self._bad  # type: ignore[attr-defined]  # a fused step does nothing where it is 1

    def update(self, batch: Any, /) -> Update:
        """Take one optimizer step on one batch."""
        for parameter in self._parameters:
            parameter.grad = None
        with self._autocast:
            if self._module is None:
                loss = self._objective(self.policy, batch)
                value, metrics, carry = loss.value, loss.metrics, loss.carry
            else:
                value, metrics, carry = self._module(batch)
        if self._accelerator is None:
            value.backward()  # type: ignore[no-untyped-call]
        else:
            self._accelerator.backward(value)

        named = {name: metric.detach() for name, metric in metrics.items()}
        named["loss"] = value.detach()
        if self._accelerator is not None and self._accelerator.num_processes > 1:
            named = self._averaged(named)
        norms, norm = self._gradient_norms()
        self.steps += 1
        clip = self._watch(named, norms, norm)
        named["gradient_norm"] = norm
        self._clip(norm, clip)
        self.optimizer.step()
        if self._ema_decay is not None:
            self._average_weights(self._ema_decay)
        for follow in self._after_update:
            follow()
        return Update(named, carry)

    def check(self) -> None:
        """Raise if an update since the last look was not finite."""
        if self._bad is None or not self._watched:
            return
        if self._bad.item():
            for watched in self._watched:
                if (culprit := watched.culprit()) is not None:
                    raise NonFiniteError(watched.step, culprit)
            raise NonFiniteError(self._watched[0].step, "total gradient norm")
        self._watched.clear()

    def state_dict(self) -> dict[str, Any]:
        """Policy, optimizer, average and components; references to the live tensors, as in torch.

        Raises:
            NonFiniteError: an update since the last look was not finite.
        """
        self.check()
        return {
            "steps": self.steps,
            "policy": self.policy.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "ema": None if self.ema_policy is None else self.ema_policy.state_dict(),
            "components": {name: component.state_dict() for name, component in self.components.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        """Continue from the ``state_dict`` of an equally built learner."""
        if (state["ema"] is None) != (self.ema_policy is None):
            raise ValueError("ema_decay: only one of the saved and this learner average their weights")
        if set(state["components"]) != set(self.components):
            raise ValueError(
                f"components: the saved learner has {sorted(state['components'])}, this one has "
                f"{sorted(self.components)}"
            )
        self.steps = state["steps"]
        self._watched.clear()
        if self._bad is not None:
            self._bad.zero_()
        self.policy.load_state_dict(state["policy"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.ema_policy is not None:
            self.ema_policy.load_state_dict(state["ema"])
        for name, component in self.components.items():
            component.load_state_dict(state["components"][name])

    def _gradient_norms(self) -> tuple[Tensor, Tensor]:
        """The norm of each gradient [parameters with a gradient], and that of all of them together."""
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        if not gradients:
            raise RuntimeError("no parameter of the optimizer received a gradient from the loss")
        each = torch._foreach_norm(gradients)
        norms = torch.stack([norm.to(self._device) for norm in each] if self._several_devices else each)
        return norms, torch.linalg.vector_norm(norms)

    def _watch(self, metrics: dict[str, Tensor], norms: Tensor, norm: Tensor) -> bool:
        """Raise on, or on the device remember, a loss or gradient that is not finite.

        Returns whether the gradient may need clipping, as far as is known without waiting for the device.
        """
        loss = metrics["loss"]
        if self._bad is None and math.isfinite(loss.item()) and math.isfinite(value := norm.item()):
            return self._clip_norm is not None and value + 1e-5 > self._clip_norm
        names = [n for n, p in zip(self._names, self._parameters, strict=True) if p.grad is not None]
        others = {name: metric for name, metric in metrics.items() if name != "loss"}
        watched = _Watched(self.steps, loss, others, names, norms)
        if self._bad is None:
            raise NonFiniteError(self.steps, watched.culprit() or "total gradient norm")
        torch.maximum(self._bad, ~(loss.isfinite() & norm.isfinite()), out=self._bad)
        self._watched.append(watched)
        if self.steps % self._check_every == 0:
            self.check()
        return self._clip_norm is not None

    def _clip(self, norm: Tensor, needed: bool) -> None:
        """Scale the gradients down to ``clip_norm``; a fused optimizer does it in its own pass over them."""
        if self._clip_norm is None:
            return
        if self._clip_each_group:
            if needed:
                for group in self.optimizer.param_groups:
                    nn.utils.clip_grad_norm_(group["params"], self._clip_norm)
            return
        if self._scales_gradients:  # what GradScaler hands over: gradients are divided by it
            scale = ((norm + 1e-6) / self._clip_norm).clamp(min=1.0) if needed else None
            self.optimizer.grad_scale = scale  # type: ignore[attr-defined]
        elif needed:
            nn.utils.clip_grads_with_norm_(self._parameters, self._clip_norm, norm)

    def _parameter_names(self) -> list[str]:
        """The name of each of the optimizer's parameters, for errors."""
        modules = {"": self.policy, "objective": self._objective, **self.components}
        names: dict[int, str] = {}
        for prefix, module in modules.items():
            if isinstance(module, nn.Module):
                for name, parameter in module.named_parameters(prefix):
                    names.setdefault(id(parameter), name)
        return [names.get(id(p), f"optimizer parameter {i}") for i, p in enumerate(self._parameters)]

    def _average_weights(self, decay: float) -> None:
        """ema <- decay ema + (1 - decay) weights; buffers, often averages themselves, are copied."""
        torch._foreach_lerp_(self._averages, self._weights, 1 - decay)
        if self._has_buffers:
            assert self.ema_policy is not None
            for average, buffer in zip(self.ema_policy.buffers(), self.policy.buffers(), strict=True):
                average.copy_(buffer)

    def _averaged(self, metrics: dict[str, Tensor]) -> dict[str, Tensor]:
        """Mean over processes, in one collective: all of them then raise on, or report, the same values."""
        assert self._accelerator is not None
        stacked = torch.stack([value.to(self._device, torch.float32) for value in metrics.values()])
        mean = self._accelerator.reduce(stacked, reduction="mean")
        return dict(zip(metrics, mean.unbind(), strict=True))
