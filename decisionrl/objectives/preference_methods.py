"""Published preference methods as settings of the pairwise and the point-wise loss, by name.

In the formulas: L(y) = sum_t log pi_t over the steps of a sequence that count, rho(y) = L(y) - L_ref(y), both with a
bar for the mean over these steps; Delta = rho(y+) - rho(y-); K(y) = sum_t KL(ref || pi); eps as named.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from decisionrl.names import pick
from decisionrl.objectives.preference import Cloning, PairwisePreference
from decisionrl.objectives.preference_adaptive import (
    AdaptiveMargin,
    DynamicScale,
    GapStatistics,
    GuidedSelection,
    LikelihoodMargin,
    PolicyLikelihood,
    SequentialKLMargin,
    TeacherMargin,
)
from decisionrl.objectives.preference_links import (
    AnchoredDown,
    AnchoredUp,
    BinaryClassifier,
    DiscoPOP,
    Hinge,
    NoiseContrastive,
    ReverseKL,
    SelfPlay,
    SelfPlaySoft,
    Squared,
)
from decisionrl.objectives.preference_pointwise import (
    Classifier,
    MismatchedShift,
    PointwisePreference,
    Prospect,
    RunningShift,
)
from decisionrl.objectives.preference_scores import (
    LengthDesensitized,
    Power,
    SequenceScore,
    Transform,
    Transported,
    jensen_shannon,
    log_odds,
)
from decisionrl.reference import Reference
from decisionrl.seeding import generator

PreferenceObjective = PairwisePreference | PointwisePreference
Divergence = Literal["reverse_kl", "forward_kl", "jensen_shannon", "alpha"]


def cpl(*, alpha: float = 0.1, bias: float = 0.5, gamma: float = 1.0) -> PairwisePreference:
    """-log sigmoid(S+ - lambda S-), S = sum_t gamma^t alpha log pi_t."""
    return PairwisePreference(score=SequenceScore(scale=alpha, discount=gamma), bias=bias)


def cpl_bc(*, alpha: float = 0.1, beta: float = 1.0, gamma: float = 1.0) -> PairwisePreference:
    """CPL with lambda = 1, and beta times the mean of -log pi over all steps of both sequences."""
    return PairwisePreference(
        score=SequenceScore(scale=alpha, discount=gamma), terms={"cloning_loss": Cloning(weight=beta, of="all")}
    )


def cpl_kl(*, alpha: float = 0.1, bias: float = 0.75, gamma: float = 1.0) -> PairwisePreference:
    """CPL of log (pi / mu), mu the policy after pre-training. alpha is 0.1 in the paper, 0.2 in its release."""
    return PairwisePreference(score=SequenceScore(scale=alpha, discount=gamma, relative=True), bias=bias)


def dpo(*, beta: float = 0.1) -> PairwisePreference:
    """-log sigmoid(beta Delta)."""
    return PairwisePreference(score=_relative(beta))


def step_dpo(*, beta: float = 0.4) -> PairwisePreference:
    """DPO on single reasoning steps: the steps before them belong to the prompt, where the mask is off."""
    return dpo(beta=beta)


def cdpo(*, beta: float = 0.1, epsilon: float = 0.1) -> PairwisePreference:
    """-(1 - eps) log sigmoid(beta Delta) - eps log sigmoid(-beta Delta)."""
    return PairwisePreference(score=_relative(beta), smoothing=epsilon)


def robust_dpo(*, beta: float = 0.1, epsilon: float = 0.1) -> PairwisePreference:
    """[-(1 - eps) log sigmoid(beta Delta) + eps log sigmoid(-beta Delta)] / (1 - 2 eps)."""
    return PairwisePreference(score=_relative(beta), correction=epsilon)


def ipo(*, tau: float = 0.1, normalized: bool = True) -> PairwisePreference:
    """(Delta - 1 / (2 tau))^2; normalized: of the means over steps, which releases use and the paper does not."""
    return PairwisePreference(score=SequenceScore(relative=True, normalized=normalized), link=Squared(1 / (2 * tau)))


def rso_hinge(*, beta: float = 0.1) -> PairwisePreference:
    """max(0, 1 - beta Delta)."""
    return PairwisePreference(score=_relative(beta), link=Hinge())


def slic(*, delta: float = 1.0, weight: float = 0.1) -> PairwisePreference:
    """max(0, delta - L(y+) + L(y-)) - weight L(y+)."""
    return PairwisePreference(
        score=SequenceScore(), link=Hinge(delta), terms={"cloning_loss": Cloning(weight=weight, average="sums")}
    )


def exo(*, beta: float = 0.1, epsilon: float = 1e-3) -> PairwisePreference:
    """q log(q / (1 - eps)) + (1 - q) log((1 - q) / eps), q = sigmoid(beta Delta)."""
    return PairwisePreference(score=_relative(beta), link=ReverseKL(epsilon))


def nca(*, beta: float = 0.1) -> PairwisePreference:
    """-log sigmoid(r+) - 1/2 log sigmoid(-r+) - 1/2 log sigmoid(-r-), r = beta rho."""
    return PairwisePreference(score=_relative(beta), link=NoiseContrastive())


def bco_pair(*, beta: float = 0.1) -> PairwisePreference:
    """-log sigmoid(r+) - log sigmoid(-r-), r = beta rho."""
    return PairwisePreference(score=_relative(beta), link=BinaryClassifier())


def bco(*, beta: float = 0.1) -> PointwisePreference:
    """-log sigmoid(r - delta) if desirable, else -log sigmoid(delta - r); delta the running mean of r = beta rho."""
    return PointwisePreference(score=_relative(beta), link=Classifier(), shift=RunningShift())


def kto(
    *,
    beta: float = 0.1,
    desirable: float = 1.0,
    undesirable: float = 1.0,
    baseline: Literal["mismatched", "zero"] = "mismatched",
) -> PointwisePreference:
    """desirable (1 - sigmoid(r - z)) or undesirable (1 - sigmoid(z - r)), r = beta rho.

    baseline: z is the mean of r over mismatched sequences, or 0, which paired data needs.
    """
    if baseline not in ("mismatched", "zero"):
        raise ValueError(f"baseline = {baseline!r}; valid: mismatched, zero")
    return PointwisePreference(
        score=_relative(beta),
        link=Prospect(desirable=desirable, undesirable=undesirable),
        shift=MismatchedShift() if baseline == "mismatched" else None,
    )


def apo_zero(*, beta: float = 0.1) -> PairwisePreference:
    """1 - sigmoid(r+) + sigmoid(r-), r = beta rho."""
    return PairwisePreference(score=_relative(beta), link=AnchoredUp())


def apo_down(*, beta: float = 0.1) -> PairwisePreference:
    """sigmoid(r+) + 1 - sigmoid(beta Delta), r = beta rho."""
    return PairwisePreference(score=_relative(beta), link=AnchoredDown())


def sppo_hard(*, beta: float = 1e-3) -> PairwisePreference:
    """(rho+ - 1 / (2 beta))^2 + (rho- + 1 / (2 beta))^2, the reference being the previous iterate."""
    return PairwisePreference(score=_relative(1.0), link=SelfPlay(1 / (2 * beta)))


def sppo_soft(*, beta: float = 1e-3) -> PairwisePreference:
    """1/2 sum over both of (rho - (p - 1/2) / beta)^2, p = extras["win_probability"] [n]."""
    return PairwisePreference(score=_relative(1.0), link=SelfPlaySoft(beta))


def aot(*, beta: float = 0.1, epsilon: float = 0.0) -> PairwisePreference:
    """cDPO of d = sort(L(y+) - L(y-)) - sort(L_ref(y+) - L_ref(y-)) over the batch."""
    return PairwisePreference(score=Transported(scale=beta, paired=True), smoothing=epsilon)


def aot_unpaired(*, beta: float = 0.1, epsilon: float = 0.0) -> PairwisePreference:
    """cDPO of d = sort(rho(y+)) - sort(rho(y-)) over the batch."""
    return PairwisePreference(score=Transported(scale=beta, paired=False), smoothing=epsilon)


def discopop(*, beta: float = 0.05, tau: float = 0.05) -> PairwisePreference:
    """(1 - s) (-log sigmoid(u)) + s exp(-u), u = beta Delta, s = sigmoid(u / tau)."""
    return PairwisePreference(score=_relative(beta), link=DiscoPOP(tau))


def ln_dpo(*, beta: float = 5.0) -> PairwisePreference:
    """-log sigmoid(beta (mean rho+ - mean rho-)), means over steps."""
    return PairwisePreference(score=SequenceScore(scale=beta, relative=True, normalized=True))


def simpo(*, beta: float = 2.0, gamma: float = 1.0) -> PairwisePreference:
    """-log sigmoid(beta (mean L+ - mean L-) - gamma), means over steps."""
    return PairwisePreference(score=_mean(beta), margin=gamma)


def alphapo(*, beta: float = 2.0, gamma: float = 1.0, alpha: float = 0.25) -> PairwisePreference:
    """SimPO with (1 - p^-alpha) / alpha instead of log p, p = exp(mean L)."""
    return PairwisePreference(score=_mean(beta, Power(-alpha)), margin=gamma)


def cpo(*, beta: float = 0.1, cpo_alpha: float = 1.0) -> PairwisePreference:
    """-log sigmoid(beta (L(y+) - L(y-))) + cpo_alpha NLL(y+), the mean over all steps."""
    cloning = {"cloning_loss": Cloning(weight=cpo_alpha)} if cpo_alpha else {}
    return PairwisePreference(score=SequenceScore(scale=beta), terms=cloning)


def orpo(*, beta: float = 0.1) -> PairwisePreference:
    """NLL(y+) - beta log sigmoid(log odds(y+) - log odds(y-)), odds = p / (1 - p), p = exp(mean L).

    For discrete actions only. The NLL is of the steps that count; some releases add the prompt's.
    """
    return PairwisePreference(score=_mean(1.0, log_odds), coefficient=beta, terms={"cloning_loss": Cloning()})


def rpo(*, beta: float = 0.1, alpha: float = 1.0) -> PairwisePreference:
    """-log sigmoid(beta Delta) - alpha mean L(y+), the mean over steps within each sequence."""
    cloning = Cloning(weight=alpha, average="sequences")
    return PairwisePreference(score=_relative(beta), terms={"cloning_loss": cloning})


def dpop(*, beta: float = 0.3, strength: float = 50.0) -> PairwisePreference:
    """-log sigmoid(beta (Delta - strength max(0, -rho(y+))))."""
    return PairwisePreference(score=_relative(beta), margins=(LikelihoodMargin(beta=beta, strength=strength),))


def length_dpo(*, beta: float = 0.1, alpha: float = 0.01) -> PairwisePreference:
    """-log sigmoid(beta Delta + alpha (|y+| - |y-|)), whose optimum is that of the reward r - alpha |y|."""
    return PairwisePreference(score=SequenceScore(scale=beta, relative=True, length_bonus=alpha))


def f_dpo(*, beta: float = 0.1, divergence: Divergence = "reverse_kl", alpha: float = 0.5) -> PairwisePreference:
    """-log sigmoid(beta (g(rho+) - g(rho-))): g = rho, -exp(-rho), log sigmoid(rho), or
    exp((alpha - 1) rho) / (alpha - 1), up to constants."""
    transforms: dict[str, Transform] = {
        "reverse_kl": Power(0.0),
        "forward_kl": Power(-1.0),
        "jensen_shannon": jensen_shannon,
        "alpha": Power(alpha - 1),
    }
    transform = pick("divergence", divergence, transforms)
    return PairwisePreference(score=SequenceScore(scale=beta, relative=True, transform=transform))


def wpo(*, beta: float = 0.1, key: str | None = "log_expected_prob") -> PairwisePreference:
    """DPO times min(1, w(y+) w(y-)), w = exp(mean_t log pi_t - log sum_v p_v^2), the latter extras[key] [n, t].

    key = None leaves the latter out, for densities of continuous actions.
    """
    return PairwisePreference(score=_relative(beta), weights=(PolicyLikelihood(key=key),))


def ld_dpo(*, beta: float = 0.1, alpha: float = 0.5) -> PairwisePreference:
    """DPO with steps beyond the length of the shorter sequence counting alpha."""
    return PairwisePreference(score=LengthDesensitized(scale=beta, alpha=alpha))


def alpha_dpo(
    *, beta: float = 2.5, gamma: float = 1.5, alpha: float = 0.2, momentum: float = 0.9
) -> PairwisePreference:
    """-log sigmoid(beta (mean L+ - mean L- - alpha z) - gamma), z the standardized difference of mean rho.

    Standardized by running moments; the releases start these at 0, here the first batch sets them.
    """
    statistics = GapStatistics(normalized=True, momentum=momentum)
    return PairwisePreference(
        score=_mean(beta),
        margin=gamma,
        margins=(AdaptiveMargin(statistics=statistics, beta=beta, alpha=alpha),),
        statistics=statistics,
    )


def beta_dpo(
    *, beta: float = 0.1, alpha: float = 0.6, kept: float = 0.8, momentum: float = 0.9, seed: int = 0
) -> PairwisePreference:
    """DPO with beta <- max(1e-3, beta (1 + alpha (mean Delta - M))) on a share of the pairs near the running mean M."""
    statistics = GapStatistics(momentum=momentum)
    score = DynamicScale(score=_relative(beta), statistics=statistics, alpha=alpha, floor=1e-3 / beta)
    random = generator(seed, "preference_selection")
    selection = GuidedSelection(statistics, kept=kept, generator=random) if kept < 1 else None
    return PairwisePreference(score=score, statistics=statistics, selection=selection)


def odpo(*, beta: float = 0.1, alpha: float = 1.0) -> PairwisePreference:
    """-log sigmoid(beta Delta - alpha log(score+ - score-)), scores of the batch's teacher."""
    return PairwisePreference(score=_relative(beta), margins=(TeacherMargin(alpha=alpha),))


def tdpo1(*, beta: float = 0.1) -> PairwisePreference:
    """-log sigmoid(beta (Delta - (K- - K+))), the step KLs from extras["forward_kl"] [n, t], with their graph."""
    return PairwisePreference(score=_relative(beta), margins=(SequentialKLMargin(beta=beta, detached=False),))


def tdpo2(*, beta: float = 0.1, alpha: float = 0.5) -> PairwisePreference:
    """-log sigmoid(beta (Delta - alpha (K- - K+))) with no gradient through K+."""
    return PairwisePreference(score=_relative(beta), margins=(SequentialKLMargin(beta=beta, alpha=alpha),))


@dataclass(frozen=True)
class Method:
    """A named method.

    Attributes:
        title: its name in print.
        source: its arXiv id, or another address where there is none.
        make: its settings, from keyword arguments; defaults are the paper's or release's where these give one.
        limit: what it equals where.
    """

    title: str
    source: str
    make: Callable[..., PreferenceObjective]
    limit: str


METHODS: Mapping[str, Method] = {
    "cpl": Method("Contrastive preference learning", "2310.13639", cpl, "bias 1: cpo with cpo_alpha 0"),
    "cpl_bc": Method("CPL with behavior cloning", "2310.13639", cpl_bc, "beta 0: cpl with bias 1"),
    "cpl_kl": Method("CPL with a KL constraint", "2310.13639", cpl_kl, "bias 1: dpo"),
    "dpo": Method("Direct preference optimization", "2305.18290", dpo, "cpl_kl with bias 1"),
    "step_dpo": Method("Step-DPO", "2406.18629", step_dpo, "whole answers: dpo"),
    "tr_dpo": Method("Trust-region DPO", "2404.09656", dpo, "with a periodic Reference; a frozen one: dpo"),
    "cdpo": Method("Conservative DPO", "https://ericmitchell.ai/cdpo.pdf", cdpo, "epsilon 0: dpo"),
    "robust_dpo": Method("Robust DPO (rDPO)", "2403.00409", robust_dpo, "epsilon 0: dpo"),
    "ipo": Method("Identity preference optimization", "2310.12036", ipo, "one step: normalized or not is the same"),
    "rso_hinge": Method("Rejection sampling optimization", "2309.06657", rso_hinge, "slic relative to a reference"),
    "slic": Method("Sequence likelihood calibration", "2305.10425", slic, "weight 0, no reference: rso_hinge"),
    "exo": Method("Efficient exact optimization", "2402.00856", exo, "same optimum as cdpo"),
    "nca": Method("Noise contrastive alignment", "2402.05369", nca, "chosen part optimal at a score of ln 2"),
    "bco_pair": Method("Binary classifier optimization, pairs", "2404.04656", bco_pair, "bco with shift 0, times 2"),
    "bco": Method("Binary classifier optimization", "2404.04656", bco, "shift 0 on pairs: half of bco_pair"),
    "kto": Method("Kahneman-Tversky optimization", "2402.01306", kto, "baseline zero on pairs: half of apo_zero"),
    "apo_zero": Method("Anchored preference optimization, zero", "2408.06266", apo_zero, "kto without its baseline"),
    "apo_down": Method("Anchored preference optimization, down", "2408.06266", apo_down, "both scores 0: 1"),
    "sppo_hard": Method("Self-play preference optimization", "2405.00675", sppo_hard, "p 1 and 0: 2 sppo_soft"),
    "sppo_soft": Method("Self-play preference optimization, soft", "2405.00675", sppo_soft, "p 1 and 0: sppo_hard / 2"),
    "aot": Method("Alignment via optimal transport, paired", "2406.05882", aot, "one pair: dpo"),
    "aot_unpaired": Method("Alignment via optimal transport", "2406.05882", aot_unpaired, "one pair: dpo"),
    "discopop": Method("Discovered preference optimization", "2406.08414", discopop, "gap far below 0: dpo"),
    "ln_dpo": Method("Length-normalized DPO", "2411.15124", ln_dpo, "equal lengths T: dpo with beta / T"),
    "simpo": Method("Simple preference optimization", "2405.14734", simpo, "alpha_dpo with alpha 0"),
    "alphapo": Method("AlphaPO", "2501.03884", alphapo, "alpha 0: simpo"),
    "cpo": Method("Contrastive preference optimization", "2401.08417", cpo, "cpo_alpha 0: cpl with bias 1"),
    "orpo": Method("Odds ratio preference optimization", "2403.07691", orpo, "beta to 0: cloning of the chosen"),
    "rpo": Method("DPO + NLL of iterative reasoning", "2404.19733", rpo, "alpha 0: dpo"),
    "dpop": Method("DPO-positive", "2402.13228", dpop, "strength 0: dpo"),
    "length_dpo": Method("Length-regularized DPO (R-DPO)", "2403.19159", length_dpo, "alpha 0: dpo"),
    "f_dpo": Method("f-DPO", "2309.16240", f_dpo, "reverse_kl: dpo"),
    "wpo": Method("Weighted preference optimization", "2406.11827", wpo, "weights of 1: dpo"),
    "ld_dpo": Method("Length-desensitized DPO", "2409.06411", ld_dpo, "alpha 1: dpo"),
    "alpha_dpo": Method("alpha-DPO", "2410.10148", alpha_dpo, "alpha 0: simpo"),
    "beta_dpo": Method("beta-DPO", "2407.08639", beta_dpo, "alpha 0, kept 1: dpo"),
    "odpo": Method("DPO with an offset", "2402.10571", odpo, "alpha 0: dpo"),
    "tdpo1": Method("Token-level DPO, first", "2404.11999", tdpo1, "equal KLs: dpo"),
    "tdpo2": Method("Token-level DPO, second", "2404.11999", tdpo2, "alpha 0: dpo"),
}  # fmt: skip
"""Names that others also use: ``rpo`` is not relative, ``apo`` not accelerated, ``sppo`` not token-level."""


def build(name: str, *, reference: Reference[Any] | None = None, **overrides: Any) -> PreferenceObjective:
    """The objective of a method.

    reference: the reference policy of methods with one, unless batches bring its log-probabilities.
    overrides: arguments of the method (``METHODS[name].make``), or fields of the objective it makes.

    Raises:
        UnknownNameError: there is no such method.
        ValueError: an override that the method does not have.
    """
    method = pick("preference method", name, METHODS)
    own = set(inspect.signature(method.make).parameters)
    objective = method.make(**{key: value for key, value in overrides.items() if key in own})
    rest = {key: value for key, value in overrides.items() if key not in own}
    fields = {each.name for each in dataclasses.fields(objective)}
    if unknown := sorted(set(rest) - fields):
        raise ValueError(
            f"{name} has no {', '.join(unknown)}; valid: {', '.join(sorted(own | fields - {'reference'}))}"
        )
    return dataclasses.replace(objective, reference=reference, **rest)


def _relative(scale: float) -> SequenceScore:
    """r = scale rho."""
    return SequenceScore(scale=scale, relative=True)


def _mean(scale: float, transform: Transform | None = None) -> SequenceScore:
    """scale g(mean L)."""
    return SequenceScore(scale=scale, normalized=True, transform=transform)
