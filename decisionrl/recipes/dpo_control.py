"""DPO and its relatives on segments of control (arXiv 2305.18290; CPL of arXiv 2310.13639 is the general case)."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, Unpack

from gymnasium import spaces

from decisionrl.experiment import Experiment
from decisionrl.names import pick
from decisionrl.objectives.preference_methods import METHODS, build
from decisionrl.recipes.control import own_options
from decisionrl.recipes.offline import PreferenceOptions, Preferences
from decisionrl.recipes.offline_presets import tuned_offline
from decisionrl.reference import Reference

METADATA = {
    "title": "Direct preference optimization and its relatives, on control",
    "arxiv": "2305.18290",
    "changes": "the sum of log-ratios to the cloned policy is the reward that preferences compare",
    "limit": "segments that begin in one state, method = dpo: cpl_kl with bias = 1",
    "kinds": "recorded segments with preferences",
}

UNKNOWN_HERE = {
    "sppo_soft": "how often each segment wins",
    "tdpo1": "the KL divergence of every step, with its graph",
    "tdpo2": "the KL divergence of every step, with its graph",
}
"""Method -> what it needs that recorded segments do not say."""


@tuned_offline
def dpo_control(
    *,
    method: str = "dpo",
    settings: dict[str, Any] | None = None,
    cloning_steps: int = 200_000,
    warmup: int = 10_000,
    follow_every: int | None = None,
    follow_rate: float = 0.6,
    **common: Unpack[PreferenceOptions],
) -> Experiment:
    """Behavior cloning to the reference policy, then a method of ``objectives/preference_methods.py``.

    method: a name in its table METHODS, but not sppo_soft, tdpo1 and tdpo2, which need more than recorded segments say;
    kto needs ``settings.baseline=zero``, wpo ``settings.key=null``, odpo ``pairs=null`` and orpo discrete actions.
    settings: arguments of that method (``--set settings.beta=0.05``).
    follow_every, follow_rate: every so many updates the reference is moved toward the policy (TR-DPO); None: never.
    Segments that begin in different states have different partition functions, which only methods without the DPO
    derivation, such as cpl, have no need to cancel.
    """
    options = own_options(locals())
    offline = Preferences(**common)
    _check(method, settings or {}, offline)
    policy = offline.policy()
    reference = Reference(policy, every=follow_every, rate=follow_rate)
    objective = build(method, reference=reference, **(settings or {}))
    learner = offline.learner(
        policy, objective, warmup=warmup, components=objective.components(), after_update=[reference.follow]
    )
    return offline.experiment(
        "dpo_control",
        learner=offline.pretrained(learner, updates=cloning_steps, begin=reference.snapshot),
        draw=offline.draw,
        metadata=METADATA,
        options=options,
    )


def _check(method: str, settings: Mapping[str, Any], offline: Preferences) -> None:
    """Raise ValueError where the method cannot learn, or nothing sensible, from these segments."""
    for name, parameter in inspect.signature(pick("preference method", method, METHODS).make).parameters.items():
        value = settings.get(name, parameter.default)
        if isinstance(parameter.default, float) and not isinstance(value, int | float):
            raise ValueError(f"settings.{name} = {value!r}; valid: a number")
    if method in UNKNOWN_HERE:
        raise ValueError(
            f"method = {method!r} needs {UNKNOWN_HERE[method]}, which recorded segments do not say; "
            f"valid: another but {', '.join(UNKNOWN_HERE)}"
        )
    if method == "kto" and settings.get("baseline") != "zero":
        raise ValueError("method = 'kto' needs mismatched prompts and answers for its baseline; valid: baseline = zero")
    if method == "wpo" and settings.get("key", "") is not None:
        raise ValueError(
            "method = 'wpo' needs the probabilities of all actions; valid: key = null, which leaves them out"
        )
    if method == "odpo" and offline.pairs is not None:
        raise ValueError(f"method = 'odpo', pairs = {offline.pairs}; valid: pairs = null, as pairs have no scores")
    if method == "orpo" and isinstance(space := offline.episodes.action_space, spaces.Box):
        raise ValueError(f"method = 'orpo', actions in {space}; valid: discrete actions, whose probabilities have odds")
