"""Published systems as named compositions of the library's parts."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any, cast

from decisionrl.experiment import Experiment
from decisionrl.names import pick

RECIPES = {
    "hdpo": "decisionrl.recipes.hdpo",
    "reinforce": "decisionrl.recipes.reinforce",
    "ppo": "decisionrl.recipes.ppo",
    "grpo": "decisionrl.recipes.grpo",
    "rloo": "decisionrl.recipes.rloo",
    "dapo": "decisionrl.recipes.dapo",
    "gspo": "decisionrl.recipes.gspo",
    "sapo": "decisionrl.recipes.sapo",
    "bapo": "decisionrl.recipes.bapo",
    "dcpo": "decisionrl.recipes.dcpo",
    "capo": "decisionrl.recipes.capo",
    "d3s": "decisionrl.recipes.d3s",
    "remax": "decisionrl.recipes.remax",
    "spo": "decisionrl.recipes.spo",
    "segment_spo": "decisionrl.recipes.segment_spo",
    "hapo": "decisionrl.recipes.hapo",
    "tppo": "decisionrl.recipes.tppo",
    "riskpo": "decisionrl.recipes.riskpo",
    "vade": "decisionrl.recipes.vade",
    "xrpo": "decisionrl.recipes.xrpo",
    "gtpo": "decisionrl.recipes.gtpo",
    "ares": "decisionrl.recipes.ares",
    "dr_rpo": "decisionrl.recipes.dr_rpo",
    "dr_lsvi_ucb": "decisionrl.recipes.dr_lsvi_ucb",
    "lsvi_ucb": "decisionrl.recipes.lsvi_ucb",
    "pevi": "decisionrl.recipes.pevi",
    "drpvi": "decisionrl.recipes.drpvi",
    "va_drpvi": "decisionrl.recipes.va_drpvi",
    "r2pvi": "decisionrl.recipes.r2pvi",
    "bc": "decisionrl.recipes.bc",
    "sft": "decisionrl.recipes.sft",
    "cpl": "decisionrl.recipes.cpl",
    "cpl_bc": "decisionrl.recipes.cpl_bc",
    "cpl_kl": "decisionrl.recipes.cpl_kl",
    "dpo_control": "decisionrl.recipes.dpo_control",
    "iql": "decisionrl.recipes.iql",
    "p_iql": "decisionrl.recipes.p_iql",
    "dt": "decisionrl.recipes.dt",
    "oppo": "decisionrl.recipes.oppo",
    "oppo_human": "decisionrl.recipes.oppo_human",
    "diffusion_policy": "decisionrl.recipes.diffusion_policy",
    "ptp": "decisionrl.recipes.ptp",
    "ad": "decisionrl.recipes.ad",
    "dpt": "decisionrl.recipes.dpt",
    "dicp": "decisionrl.recipes.dicp",
}
"""Recipe name -> module that holds a function of that name and METADATA; imported when used."""

LINEAR_MDPS = ("dr_rpo", "dr_lsvi_ucb", "lsvi_ucb", "pevi", "drpvi", "va_drpvi", "r2pvi")
"""The recipes on linear MDPs."""

ON_RECORDED_DATA = ("bc", "sft", "cpl", "cpl_bc", "cpl_kl", "dpo_control", "iql", "p_iql", "dt", "oppo", "oppo_human")
"""The recipes on recorded data, preferences among it."""

ON_DEMONSTRATIONS = ("diffusion_policy", "ptp")
"""The recipes on demonstrations."""

ON_HISTORIES = ("ad", "dpt", "dicp")
"""The recipes on learning histories."""

ON_ENVIRONMENTS = tuple(
    name for name in RECIPES if name not in ("hdpo", *LINEAR_MDPS, *ON_RECORDED_DATA, *ON_DEMONSTRATIONS, *ON_HISTORIES)
)
"""The recipes on any environment."""


def recipe(name: str) -> Callable[..., Experiment]:
    """The recipe's function; UnknownNameError with the nearest name if there is none."""
    module = importlib.import_module(pick("recipe", name, RECIPES))
    return cast(Callable[..., Experiment], getattr(module, name))


def metadata(name: str) -> Mapping[str, Any]:
    """Title, arXiv id, what the recipe changes and what it equals in its limit."""
    return cast(Mapping[str, Any], importlib.import_module(pick("recipe", name, RECIPES)).METADATA)
