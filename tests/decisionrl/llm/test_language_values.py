"""Published and worked-out numbers of the methods, on responses of a language model and through its recipes.

The task pays what it is told to, the engine writes what it is told to; everything behind them is what training uses.
Where a value hangs on probabilities or entropies, the model is a table: each token's row of logits is for what comes
after it. Prompts and responses have unequal lengths, the environment speaks in some, and padding stands on either side.
"""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from decisionrl.envs.text.task import TextTaskDefaults
from decisionrl.envs.text.tokenizer import character_tokenizer, encode
from decisionrl.experience.episodes import EpisodeSource
from decisionrl.experience.trajectories import Trajectories
from decisionrl.experiment import Experiment
from decisionrl.llm import methods
from decisionrl.llm.generation import Generated
from decisionrl.llm.world import padded
from decisionrl.objectives.heterogeneous import HeterogeneousClip
from decisionrl.objectives.regularizers import Estimator, KLPenalty
from decisionrl.objectives.terms import Terms
from decisionrl.pipeline.advantages import GAE, TruncatedGAE
from decisionrl.pipeline.curricula import FreshStarts
from decisionrl.pipeline.group_advantages import GroupNormalized
from decisionrl.policies.language import LanguagePolicy
from decisionrl.policies.language_models import tiny_model
from decisionrl.recipes import recipe

pytest.importorskip("transformers")

LETTERS = "abcdefghijklm"
TOKENIZER = character_tokenizer(LETTERS)
END = TOKENIZER.eos_token_id
WIDTH = len(TOKENIZER)
"""Tokens, and features of the model: a table needs one for each."""


def ids(text: str) -> list[int]:
    return encode(TOKENIZER, text)


@dataclass(frozen=True)
class Told(TextTaskDefaults):
    """Pays the next of ``worth`` for every response; to m the environment answers l."""

    prompts: Sequence[str] = ("a", "cba", "gd", "bbbbe")
    worth: list[float] = field(default_factory=list)
    name = "told"
    alphabet = LETTERS
    max_tokens = 10
    best_reward = 1.0
    triggers = "m"

    @property
    def num_prompts(self) -> int:
        return len(self.prompts)

    def prompt(self, index: int, /) -> str:
        return self.prompts[index]

    def reward(self, index: int, response: str, /) -> float:
        return self.worth.pop(0)

    def demonstration(self, index: int, generator: torch.Generator, /) -> str:
        return "b"

    def reply(self, index: int, response: str, noise: int, /) -> str:
        return "l"


class Script:
    """An engine that writes the next of these lines, "." for the end, with these log-probabilities and entropies."""

    def __init__(self, lines: Sequence[str], log_prob: Sequence[Any], entropy: Sequence[Any]) -> None:
        self.lines, self.log_prob, self.entropy = list(lines), list(log_prob), list(entropy)

    def __call__(self, policy: object, context: Tensor, *, max_tokens: Tensor, reply: Any, **rest: Any) -> Generated:
        said, own = [], []
        for row, limit in enumerate(max_tokens.tolist()):
            tokens: list[int] = []
            mine: list[bool] = []
            for character in self.lines.pop(0):
                tokens.append(END if character == "." else ids(character)[0])
                answer = list(reply(row, tokens))
                tokens, mine = tokens + answer, [*mine, True, *[False] * len(answer)]
            assert len(tokens) <= limit
            said.append(tokens)
            own.append(mine)
        token, mask = padded(said), padded(own) > 0

        def numbers(rows: list[Any]) -> Tensor:
            values = torch.zeros(token.shape, dtype=torch.float64)
            given, rows[: len(said)] = [each for row in rows[: len(said)] for each in row], []
            return values.masked_scatter(mask, torch.tensor(given, dtype=torch.float64)) if given else values

        finished = torch.tensor([row[-1] == END for row in said])
        return Generated(
            token=token, mask=mask, log_prob=numbers(self.log_prob), entropy=numbers(self.entropy), finished=finished
        )


def save_model(folder: Path, *, scale: float = 10.0) -> Path:
    """A small transformer and its tokenizer, whose logits differ from each other and depend on all that was read."""
    model: Any = tiny_model(WIDTH, width=WIDTH, heads=2, context=32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(scale)
    model.save_pretrained(folder)
    TOKENIZER.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(params=["right", "left"])
def left(request: pytest.FixtureRequest) -> bool:
    return bool(request.param == "left")


def text(name: str, folder: Path, *, task: Told | None = None, table: Tensor | None = None, **given: Any) -> Any:
    """The recipe on the task, its policy in float64."""
    experiment: Any = recipe(name)(env=task or Told(), model=str(folder), **given)
    experiment.policy.double()
    if table is not None:
        make_table(experiment.policy, table)
    return experiment


def make_table(policy: LanguagePolicy, table: Tensor) -> None:
    """Have the logits after a token be its row: nothing is added to embeddings, which are one-hot."""
    with torch.no_grad():
        for name, parameter in policy.model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                parameter.zero_()
        for module in policy.model.modules():
            if hasattr(module, "variance_epsilon"):
                module.variance_epsilon = 0.0
        root = math.sqrt(WIDTH)
        policy.causal_model.get_input_embeddings().weight.copy_(root * torch.eye(WIDTH))
        policy.head.weight.copy_(table.T / root)


def told(
    experiment: Experiment,
    lines: Sequence[str],
    worth: Sequence[float] = (),
    *,
    left: bool = False,
    log_prob: Sequence[Any] = (),
    entropy: Sequence[Any] = (),
) -> Trajectories:
    """The experiment's next batch, from these responses; padding is put on the wanted side before the pipeline."""
    source: Any = experiment.source
    source.world.engine = Script(lines, log_prob, entropy)
    source.world.task.worth[:] = worth or [0.0] * len(lines)
    pipeline, source.pipeline = source.pipeline, ()
    batch = source.sample()
    source.pipeline = pipeline
    assert not source.world.engine.lines
    batch = leftward(batch) if left else batch
    for step in pipeline:
        batch = step(batch)
    return batch


def leftward(batch: Trajectories) -> Trajectories:
    """The same rows, padded on the left."""
    assert isinstance(batch.observation, Tensor)
    assert batch.state is not None
    shape, order = batch.mask.shape, (batch.observation >= 0).long().argsort(dim=1, stable=True)
    state = batch.state.gather(1, (batch.state >= 0).long().argsort(dim=1, stable=True))
    moved = batch.replace(state=None).map(lambda each: each.gather(1, order) if each.shape == shape else each)
    return moved.replace(state=state)


def own(values: Tensor | None, batch: Trajectories) -> list[list[float]]:
    """Row by row, at the policy's own tokens."""
    assert values is not None
    return [row[mine].tolist() for row, mine in zip(values, batch.mask, strict=True)]


def flat(rows: Sequence[Sequence[float]]) -> list[float]:
    return list(itertools.chain.from_iterable(rows))


def by_row(values: Tensor | None, batch: Trajectories) -> list[float]:
    """What all own tokens of a row share."""
    rows = own(values, batch)
    assert all(len(set(row)) == 1 for row in rows)
    return [row[0] for row in rows]


def near(*expected: float) -> Any:
    return pytest.approx(list(expected), abs=1e-6)


def objective(experiment: Any) -> Any:
    return experiment.learner.learner._objective


def terms(experiment: Any, batch: Trajectories) -> Terms:
    with torch.no_grad():
        assert batch.advantage is not None
        return Terms(experiment.policy.evaluate(batch), batch, batch.advantage, batch.mask)


def at_ratios(experiment: Any, batch: Trajectories, ratios: Sequence[float]) -> Trajectories:
    """As if the policy had moved by these ratios, token by token, since it wrote the responses."""
    now = experiment.policy.evaluate(batch).log_prob.detach()
    moved = torch.zeros_like(now).masked_scatter(batch.mask, torch.tensor(ratios, dtype=now.dtype).log())
    return batch.replace(log_prob=now - moved)


def gradient(experiment: Any, loss: Callable[..., Any], batch: Trajectories) -> Tensor:
    parts = torch.autograd.grad(
        loss(experiment.policy, batch).value,
        experiment.policy.trainable_parameters(),
        allow_unused=True,
        materialize_grads=True,
    )
    return torch.cat([each.flatten() for each in parts])


LINES = ["bcd.", "b.", "mfg.", "ceeeee.", "d.", "e.", "mmb.", "fg."]
"""Two groups of four; the environment speaks in the third and the seventh."""


def test_group_advantages(folder: Path, left: bool) -> None:
    """Unbiased with verl's and TRL's eps, and of the population."""
    worth = [1.0, 0, 0, 1, 1, 0, 0, 0]
    experiment = text("grpo", folder, groups=2, group_size=4)
    batch = told(experiment, LINES, worth, left=left)
    assert batch.mask.sum(1).tolist() == [4, 2, 4, 7, 2, 2, 4, 3]
    expected = near(0.8660239, -0.8660239, -0.8660239, 0.8660239, 1.499997, -0.499999, -0.499999, -0.499999)
    assert by_row(batch.advantage, batch) == expected
    assert not batch.advantage[~batch.mask].any()  # type: ignore[index]
    of_trl = methods.grpo(eps=1e-4).prepare(batch)
    assert by_row(of_trl.advantage, batch)[:4] == near(0.8658754, -0.8658754, -0.8658754, 0.8658754)
    of_population = GroupNormalized(population=True)(batch)
    expected = near(0.999998, -0.999998, -0.999998, 0.999998, 1.7320468, -0.5773489, -0.5773489, -0.5773489)
    assert by_row(of_population.advantage, batch) == expected
    without = told(text("grpo", folder, groups=2, group_size=4, scale="none"), LINES, worth)
    assert by_row(without.advantage, without) == near(0.5, -0.5, -0.5, 0.5, 0.75, -0.25, -0.25, -0.25)
    one_out = told(text("rloo", folder, groups=2, group_size=4), LINES, worth)
    assert by_row(one_out.advantage, one_out) == near(2 / 3, -2 / 3, -2 / 3, 2 / 3, 1, -1 / 3, -1 / 3, -1 / 3)


def test_hapo_averages_over_tokens(folder: Path, left: bool) -> None:
    """2 and 6 own tokens; what the environment says is none."""
    experiment = text("hapo", folder, groups=1, group_size=2)
    batch = told(experiment, ["b.", "cmdef."], [1.0, 0.0], left=left)
    assert batch.mask.sum(1).tolist() == [2, 6]
    sigma = 0.4330127
    assert by_row(batch.advantage, batch) == near(*(a * sigma / (sigma + 1e-6) for a in (1.7320508, -0.5773503)))
    assert abs(batch.advantage.sum()) < 1e-12  # type: ignore[union-attr]


ENTROPIES = [0.01, 0.05, 0.2, 0.5, 1.0, 1.5, 2.0, 0.02, 0.3, 0.8]


def of_entropies(entropies: Sequence[float]) -> Tensor:
    """A table whose letters a, b, c, ... are followed by distributions of these entropies."""
    table = torch.zeros(WIDTH, WIDTH, dtype=torch.float64)
    for token, entropy in zip(ids(LETTERS), entropies, strict=False):
        low, high = 0.0, 60.0
        for _ in range(100):
            table[token, END] = (low + high) / 2
            log_softmax = table[token].log_softmax(0)
            low, high = (
                ((low + high) / 2, high)
                if -(log_softmax.exp() @ log_softmax) > entropy
                else (low, table[token, END].item())
            )
    return table


def test_hapo_signal_of_the_model_s_entropies(folder: Path, left: bool) -> None:
    """The letters a to j come before one token each; k is followed by the entropy of the pivot."""
    task = Told(prompts=("a", "kf"))
    experiment = text("hapo", folder, task=task, table=of_entropies(ENTROPIES), groups=2, group_size=1, tau=0.0)
    batch = told(experiment, ["bcde.", "ghij."], [1.0, 0.0], left=left)
    if batch.state[0].max() == ids("k")[0]:  # type: ignore[index]
        batch = batch.rows(torch.tensor([1, 0]))
    seen = terms(experiment, batch)
    measured = flat(own(seen.entropy, batch))
    assert sorted(measured) == pytest.approx(sorted(ENTROPIES), abs=1e-9)
    surrogate = objective(experiment).surrogate
    assert isinstance(surrogate, HeterogeneousClip)

    def signal(**changes: Any) -> dict[float, float]:
        values = flat(own(replace(surrogate, **changes).signal(seen), batch))
        return {round(entropy, 6): value for entropy, value in zip(measured, values, strict=True)}

    intended = [-1, -0.650515, -0.349485, -0.150515, 0, 0.584963, 1, -0.849485, -0.261439, -0.048455]
    assert signal() == pytest.approx(dict(zip(ENTROPIES, intended, strict=True)), abs=1e-6)
    released = [abs(each) for each in intended]
    assert signal(released_sign=True) == pytest.approx(dict(zip(ENTROPIES, released, strict=True)), abs=1e-6)


@pytest.mark.parametrize(
    ("estimator", "values"),
    [("k1", [-0.5, 0.5, 0.0]), ("k2", [0.125, 0.125, 0.0]), ("k3", [0.1487213, 0.1065307, 0.0])],
)
def test_kl_penalty(folder: Path, left: bool, estimator: Estimator, values: list[float]) -> None:
    """log-ratios to the reference of -0.5, 0.5 and 0, in responses of two tokens and of one."""
    experiment = text("grpo", folder, groups=1, group_size=2, kl_coefficient=0.1)
    batch = told(experiment, ["b.", "."], left=left)
    torch.testing.assert_close(
        batch.extras["reference_log_prob"][batch.mask], batch.log_prob[batch.mask].float(), atol=1e-5, rtol=0
    )
    away = torch.zeros_like(batch.log_prob).masked_scatter(batch.mask, torch.tensor([-0.5, 0.5, 0.0]).double())
    batch = batch.replace(extras={"reference_log_prob": batch.log_prob - away})
    kl = KLPenalty(coefficient=0.1, estimator=estimator)
    metrics = replace(objective(experiment), kl=kl)(experiment.policy, batch).metrics
    assert float(metrics["kl_penalty"]) == pytest.approx(0.1 * ((values[0] + values[1]) / 2 + values[2]) / 2, abs=1e-8)
    assert own(kl(terms(experiment, batch)), batch) == [
        near(*(0.1 * each for each in values[:2])),
        near(0.1 * values[2]),
    ]
    if estimator == "k3":
        assert objective(experiment).kl == kl


def test_remax_subtracts_the_greedy_response(folder: Path, left: bool) -> None:
    """One more response to each of the prompts, the last three lines here."""
    experiment = text("remax", folder, episodes=3)
    batch = told(experiment, ["bcd.", "mf.", "b.", "c.", "d.", "e."], [1.0, 0.0, 1.0, 0.25, 1.0, 0.0], left=left)
    assert batch.num_sequences == 3
    assert by_row(batch.advantage, batch) == near(0.75, -1.0, 1.0)
    assert experiment.source.steps_per_sample == 4 + 3 + 2 + 2 + 2 + 2


def test_vade_counts_successes(folder: Path) -> None:
    """Two prompts are chosen for what is to be learned from them; the third fades."""
    experiment = text("vade", folder, num_starts=3, groups=2, group_size=8)
    starts = experiment.source.starts
    before = torch.tensor([[0.1, 2.7, 9.0], [8.4, 5.3, 0.2]], dtype=torch.float64)
    starts.load_state_dict({"alpha": before[0], "beta": before[1], "proposed": False})
    worth = [float(i < right) for right in (1, 4) for i in range(8)]
    batch = told(experiment, ["b.", "cd.", "mf.", "."] * 4, worth)
    assert batch.start_id.tolist() == [0] * 8 + [1] * 8, "else the rewards are others"  # type: ignore[union-attr]
    assert starts.alpha.tolist() == near(1.02, 4.54, 8.991)
    assert starts.beta.tolist() == near(8.68, 5.06, 0.1998)


@pytest.mark.parametrize(
    ("given", "low", "high", "share"),
    [
        ({"target": 0.58, "low_start": 0.6, "high_start": 1.2}, 0.6, 1.8, 3.2 / 5.5),
        ({"target": 0.0, "low_start": 0.6, "high_start": 1.2}, 0.6, 1.2, 2.4 / 4.7),
        ({"low_start": 0.9, "low_end": 0.9, "high_start": 1.2, "high_end": 1.2}, 0.9, 1.2, 0.4615385),
        ({"low_start": 0.6, "low_end": 0.6, "high_start": 1.5, "high_end": 1.5}, 0.6, 1.5, 0.5576923),
        ({"low_start": 0.9, "low_end": 0.9, "high_start": 1.5, "high_end": 1.5}, 0.9, 1.5, 0.5087719),
        ({"low_start": 0.6, "low_end": 0.6, "high_start": 3.0}, 0.6, 3.0, 0.6290323),
        ({"low_start": 0.9, "low_end": 0.9, "high_start": 3.0}, 0.9, 3.0, 0.5820896),
        ({"contribution": "active_gradient", "low_end": 0.6, "high_start": 1.5, "high_end": 1.5}, 0.6, 1.5, 0.4516129),
        (
            {"contribution": "active_gradient", "low_start": 0.9, "high_start": 1.5, "high_end": 1.5},
            0.9,
            1.5,
            0.5833333,
        ),
        ({"contribution": "active_gradient", "low_end": 0.6, "high_start": 3.0}, 0.6, 3.0, 0.6964286),
        ({"contribution": "active_gradient", "low_start": 0.9, "high_start": 3.0}, 0.9, 3.0, 0.7959184),
    ],
)
def test_bapo_finds_its_bounds(
    folder: Path, left: bool, given: Mapping[str, Any], low: float, high: float, share: float
) -> None:
    """Ratios .5, .7 and 1 in a bad response, 1.4 and 2.5 in a good one; groups divide all advantages alike."""
    experiment = text("bapo", folder, groups=1, group_size=2, old_probability=False, **{"target": 1.0, **given})
    batch = told(experiment, ["bm.", "d."], [0.0, 1.0], left=left)
    assert by_row(batch.advantage, batch) == near(-0.7071058, 0.7071058)
    metrics = objective(experiment)(experiment.policy, at_ratios(experiment, batch, [0.5, 0.7, 1, 1.4, 2.5])).metrics
    found = [float(metrics[name]) for name in ("clip_low", "clip_high", "positive_share")]
    assert found == near(low, high, share)


def test_spo_tracks_each_prompt(folder: Path) -> None:
    """Beta(4, 4) and a success at rho = 0.9; and what the policy's own updates make of rho."""
    given = {"num_starts": 4, "episodes": 2, "prior": 8.0}
    experiment = text("spo", folder, rho_min=0.9, rho_max=0.9, **given)
    (tracker,) = experiment.source.pipeline
    batch = told(experiment, ["bmc.", "d."], [1.0, 0.0])
    assert tracker.value(batch.start_id).tolist() == near(0.5609756, 0.4390244)
    assert by_row(batch.advantage, batch) == near(0.7071068, -0.7071068)

    tracker.initialize(torch.arange(4), torch.tensor([0.0, 0.1, 0.25, 0.5]))
    assert tracker.weights(torch.arange(4)).tolist() == near(0.05, 0.35, 0.4830127, 0.55)

    experiment = text("spo", folder, rho_min=0.1, rho_max=0.99, half_life=0.5, learning_rate=0.01, **given)
    experiment.policy.float()
    (tracker,) = experiment.source.pipeline
    value, weight, kl = torch.full((4,), 0.5).double(), torch.full((4,), 8.0).double(), torch.zeros(4).double()
    moved, decays = 0.0, []
    for worth in ([1.0, 0.0], [1.0, 1.0], [0.0, 1.0], [0.5, 0.25]):
        batch = told(experiment, ["bmc.", "d."], worth)
        assert batch.start_id is not None
        for start, outcome in zip(batch.start_id.tolist(), worth, strict=True):
            rho = min(max(2 ** -((moved - kl[start].item()) / 0.5), 0.1), 0.99)
            decays.append(rho)
            value[start] += (outcome - value[start]) / (rho * weight[start] + 1)
            weight[start], kl[start] = rho * weight[start] + 1, moved
        torch.testing.assert_close(tracker.value(torch.arange(4)), value)
        update = experiment.learner.update(batch)
        experiment.source.observe(update)
        with torch.no_grad():
            further = (experiment.policy.evaluate(batch).log_prob - batch.log_prob)[batch.mask].double()
        moved += float((further.exp() - 1 - further).mean())
    assert any(0.1 < rho < 0.99 for rho in decays)


@pytest.mark.parametrize(
    ("lines", "weights"),
    [
        (["ceg.", "cfg."], [[2, 1, 2, 2], [0, 1, 0, 0]]),
        (["ceg.", "cfdg."], [[2, 1, 2, 2], [0, 1, 1, 0, 0]]),
        (["ceg.", "ceg."], [[4, 4, 4, 4], [0, 0, 0, 0]]),
        (["cmg.", "cfg."], [[2, 1, 2, 2], [0, 1, 0, 0]]),
    ],
)
def test_gtpo_s_conflicts(folder: Path, left: bool, lines: list[str], weights: list[list[float]]) -> None:
    """Between a good and a bad response; in the last, what the environment says is no position."""
    batch = told(text("grpo", folder, groups=1, group_size=2), lines, [1.0, 0.0], left=left)
    prepared = methods.gtpo(entropy_weight=0.0, entropy_threshold=math.inf).prepare(batch)
    assert own(prepared.extras["weight"], prepared) == weights
    experiment = text("gtpo", folder, groups=1, group_size=2, entropy_weight=0.0, entropy_threshold=math.inf)
    batch = told(experiment, lines, [1.0, 0.0], left=left)
    assert own(batch.extras["weight"], batch) == weights


def test_gtpo_s_conflicts_are_of_rewards(folder: Path, left: bool) -> None:
    """Whoever is good is so before entropy is taken into account, which here leaves nothing of either advantage."""
    experiment = text("gtpo", folder, groups=1, group_size=2, entropy_threshold=0.0, log_probs="sampled")
    experiment.source.pipeline[1].initial_entropy = torch.tensor(0.0)
    batch = told(experiment, ["ceg.", "cfg."], [1.0, 0.0], left=left, entropy=[[0.9] * 4, [0.9] * 4])
    assert by_row(batch.advantage, batch) == near(0.0, 0.0)
    assert own(batch.extras["weight"], batch) == [[2, 1, 2, 2], [0, 1, 0, 0]]


def test_gtpo_shapes_by_entropy(folder: Path, left: bool) -> None:
    """gamma = 0.1; <H> of 0.5, 0.3, 0.9 and 0.1, of which one is above ln 2; and all count if the first policy was."""
    entropy = [[0.4, 0.6], [0.3], [1.2, 0.9, 0.6], [0.1]]
    experiment = text("gtpo", folder, groups=1, group_size=4, log_probs="sampled")
    batch = told(experiment, ["b.", ".", "mc.", "."], [1.0, 0, 1, 0], entropy=entropy, left=left)
    assert by_row(batch.advantage, batch) == near(0.45, -0.53, 0.0, -0.51)
    experiment = text("gtpo", folder, groups=1, group_size=4, log_probs="sampled")
    batch = told(experiment, ["b.", ".", "mc.", "."], [1.0, 0, 1, 0], entropy=[[9.0] * len(row) for row in entropy])
    assert by_row(batch.advantage, batch) == near(-0.4, -1.4, -0.4, -1.4)


@pytest.mark.parametrize(
    ("before", "after", "penalty"),
    [
        ([0.0, 0, 0, 0], [0.0, 1, 0, 0], [0, 0, 0, 0.3428570]),
        ([1.0, 1, 0, 0], [0.0, 1, 1, 0], [1.0285710, 0, 0, 0.3428570]),
        ([1.0, 1, 1, 0], [0.0, 1, 1, 1], [1.0285710, 0, 0, 0]),
    ],
)
def test_ares_windows_and_penalty(
    folder: Path, left: bool, before: list[float], after: list[float], penalty: list[float]
) -> None:
    """Hard, medium and easy prompts, windows of two own tokens, over what the environment says.

    The threshold is 1, each row's largest entropy. At first every row has one window, then they have 4, 2, 1 and 0:
    lambda = (7 / 4 - 1) / (35 / 16 + 1e-6), for wrong rows alone.
    """
    experiment = text("ares", folder, groups=1, group_size=4, log_probs="sampled", window=2, quantile=1.0)
    experiment.source.pipeline = experiment.source.pipeline[:-1]
    lines = ["bmc.", "b.", "md.", "cd."]
    entropy = [[0.0, 1, 1, 0], [0.0, 1], [1.0, 1, 0], [0.0, 0, 1]]
    batch = told(experiment, lines, before, entropy=entropy, left=left)
    high, inside = own(batch.extras["high_entropy"], batch), own(batch.extras["in_window"], batch)
    assert high == [[False, True, False, False], [False, True], [True, False, False], [False, False, True]]
    assert inside == [[False, True, True, False], [False, True], [True, True, False], [False, False, True]]
    assert batch.reward.sum(1).tolist() == before
    entropy = [[1.0, 1, 1, 1], [1.0, 1], [1.0, 1, 0], [0.0, 1, 0]]
    batch = told(experiment, lines, after, entropy=entropy, left=left)
    assert [sum(row) for row in own(batch.extras["high_entropy"], batch)] == [4, 2, 1, 0]
    expected = [worth - less for worth, less in zip(after, penalty, strict=True)]
    assert [row[-1] for row in own(batch.reward, batch)] == near(*expected)
    assert batch.reward.sum(1).tolist() == near(*expected)


def test_sapo_s_gate(folder: Path, left: bool) -> None:
    """f and its slope w, at tau = 1 in the good response and 1.05 in the bad one."""
    experiment = text("sapo", folder, groups=1, group_size=2)
    batch = told(experiment, ["bmcd.", "ce."], [1.0, 0.0], left=left)
    ratios = [1.5, 0.5, 2.0, 5.0, 1.0, 1.0, 1.5, 2.0]
    batch = at_ratios(experiment, batch, ratios)
    evaluation = experiment.policy.evaluate(batch)
    loss = objective(experiment).surrogate(Terms(evaluation, batch, batch.advantage, batch.mask))  # type: ignore[arg-type]
    (slope,) = torch.autograd.grad(loss.sum(), evaluation.log_prob)
    good, bad = own(-loss / batch.advantage, batch)
    assert (good[:2], good[4], bad[0]) == (near(2.489837, 1.510163), pytest.approx(2), pytest.approx(1.904762))
    weight = [w / r for w, r in zip(flat(own(-slope / batch.advantage, batch)), ratios, strict=True)]
    assert weight == near(0.940015, 0.940015, 0.786448, 0.070651, 1, 1, 0.934140, 0.768110)


def valued(policy: Any, values: Mapping[str, float]) -> None:
    """Have V be a table of the last token."""
    make_table(policy, torch.zeros(WIDTH, WIDTH).double())
    with torch.no_grad():
        for letter, value in values.items():
            policy.critic.weight[0, ids(letter)[0]] = value / math.sqrt(WIDTH)


VALUES = {"a": 0.2, "b": 0.5, "c": 0.4, "d": 0.6}


@pytest.mark.parametrize(
    ("line", "advantage", "whitened"),
    [("bcd", [0.205, -0.1, 0], [1.0933661, -0.8682613, -0.2251048]), ("bc.", [0.7465, 0.47, 0.6], None)],
)
def test_tppo_s_truncated_advantages(
    folder: Path, left: bool, line: str, advantage: list[float], whitened: list[float] | None
) -> None:
    """V = .2, .5, .4, of a window that goes on and of one that ends with a reward of 1."""
    experiment = text("tppo", folder, task=Told(prompts=("a",)), num_envs=1, horizon=3, gamma=1.0)
    valued(experiment.policy, VALUES)
    (recipe_s,) = experiment.source.pipeline
    experiment.source.pipeline = (replace(recipe_s, estimator=replace(recipe_s.estimator, whiten=False)),)
    batch = told(experiment, [line], [1.0], left=left)
    assert own(batch.value, batch)[0] == near(0.2, 0.5, 0.4)
    assert own(batch.advantage, batch)[0] == near(*advantage)
    if whitened is None:
        assert batch.extras["kept"].any(1).tolist() == [True, False]
        assert batch.returns is not None
        return
    assert not batch.extras["valued"].any(), "nothing is known of what it is worth"
    experiment = text("tppo", folder, task=Told(prompts=("a",)), num_envs=1, horizon=3, gamma=1.0)
    valued(experiment.policy, VALUES)
    batch = told(experiment, [line], left=left)
    assert own(batch.advantage, batch)[0] == near(*whitened)


def test_tppo_without_news(folder: Path, left: bool) -> None:
    """A constant V and no reward yet: nothing to learn, of whatever length."""
    experiment = text("tppo", folder, num_envs=3, horizon=3, gamma=1.0)
    make_table(experiment.policy, torch.zeros(WIDTH, WIDTH).double())
    with torch.no_grad():
        experiment.policy.critic.bias.fill_(0.7)
    batch = told(experiment, ["bcd", "ab", "e"], left=left)
    assert own(batch.value, batch) == [near(0.7, 0.7, 0.7), near(0.7, 0.7), near(0.7)]
    assert flat(own(batch.advantage, batch)) == near(*[0.0] * 6)


def test_truncated_responses_with_a_value_of_what_comes(folder: Path) -> None:
    """V = .2, .5, .4 and .6 behind the end."""
    experiment = text("ppo", folder, task=Told(prompts=("a",)), num_envs=1)
    valued(experiment.policy, VALUES)
    world: Any = experiment.source.world
    world.engine = Script(["bcd"], [], [])
    source = EpisodeSource(
        world,
        experiment.policy,
        starts=FreshStarts(groups=1, group_size=1),
        max_steps=3,
        pipeline=[GAE(gamma=1.0, lam=0.95)],
    )
    batch = source.sample()
    assert batch.truncated.tolist() == [[False, False, True]]
    assert own(batch.advantage, batch) == [near(0.3855, 0.09, 0.2)]
    assert own(TruncatedGAE(estimator=GAE(gamma=1.0, lam=0.95))(batch).advantage, batch) == [near(0.3855, 0.09, 0.2)]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"form": "release-constant"}, [-5, -2, -4 / 3, -2 / 3, 0, 0]),
        ({"form": "release"}, [-3, 0, 2 / 3, 4 / 3, 2, 2]),
        ({}, [-4.5, -3, -2, -1, 0, 0]),
        ({"omega": 0.0}, [-4, -3, -2, -1, 0, 0]),
        ({"alpha": 0.0, "omega": 3.0}, [-4, -3, -2, -1, 0, 0]),
    ],
)
def test_riskpo_weighs_by_quantiles(folder: Path, left: bool, given: Mapping[str, Any], expected: list[float]) -> None:
    """Rewards 0 to 5, quantiles 1 and 4; without its extra weight, and without the tail, CVaR."""
    experiment = text("riskpo", folder, episodes=6, bundle=1, rate=0.0, **given)
    experiment.source.pipeline[1].load_state_dict({"quantiles": torch.tensor([1.0, 4.0]), "generator": None})
    batch = told(experiment, ["bcd.", "b.", "mfg.", "ceeee.", "d.", "."], [0.0, 1, 2, 3, 4, 5], left=left)
    assert by_row(batch.advantage, batch) == near(*expected)


def test_riskpo_of_the_mean(folder: Path) -> None:
    """alpha = 0 and beta = 1: rewards less the largest one."""
    experiment = text("riskpo", folder, episodes=4, bundle=1, alpha=0.0, beta=1.0)
    batch = told(experiment, ["bcd.", "b.", "mfg.", "."], [0.0, 2.0, 0.5, 1.0])
    assert by_row(batch.advantage, batch) == near(-2.0, 0.0, -1.5, -1.0)


def test_riskpo_adds_up_bundles(folder: Path, left: bool) -> None:
    """One response each to two prompts: every bundle earns 1 + 2, one less than the upper quantile."""
    batch = told(text("grpo", folder, groups=2, group_size=4), LINES, [1.0] * 4 + [2.0] * 4, left=left)
    method = methods.riskpo(bundle=2, center=False, rate=0.0)
    risk: Any = method.pipeline[1]
    risk.quantiles = torch.tensor([1.0, 4.0])
    prepared = method.prepare(batch)
    assert by_row(prepared.advantage, prepared) == near(*[-1.0] * 8)
    experiment = text("riskpo", folder, episodes=8, bundle=4, rate=0.0)
    experiment.source.pipeline[1].load_state_dict(
        {**experiment.source.pipeline[1].state_dict(), "quantiles": torch.tensor([2.0, 6.0])}
    )
    batch = told(experiment, LINES, [1.0] * 8, left=left)
    assert by_row(batch.advantage, batch) == near(*[-2.0] * 8), "every bundle earns 4"
    assert text("riskpo", folder).source.pipeline[1].bundle == 5, "as in the paper"


def test_riskpo_follows_the_quantiles(folder: Path) -> None:
    """q <- q + 0.1 (s - share below q); the first batch sets q to its own quantiles."""
    experiment = text("riskpo", folder, episodes=4, bundle=1, alpha=0.25, beta=0.75, rate=0.1)
    risk = experiment.source.pipeline[1]
    for worth, expected in (
        ([0.0, 1, 0, 1], (0.0, 1.0)),
        ([0.0, 0, 0, 1], (0.025, 1.0)),
        ([0.0, 0, 1, 1], (0.0, 1.025)),
    ):
        told(experiment, ["bm.", "b.", ".", "cd."], worth)
        assert risk.quantiles.tolist() == near(*expected)


def test_dcpo_s_advantages_over_visits(folder: Path, left: bool) -> None:
    """Three visits to one prompt, the second with equal rewards."""
    experiment = text("dcpo", folder, num_starts=1, groups=1, group_size=4)
    for worth, expected in (
        ([1.0, 0, 0, 0], [1.5, -0.5, -0.5, -0.5]),
        ([1.0, 1, 1, 1], [0.3638034] * 4),
        ([1.0, 1, 0, 1], [0.5496291, 0.5496291, -1.3651813, 0.5496291]),
    ):
        batch = told(experiment, ["bcd.", "b.", "mfg.", "."], worth, left=left)
        assert batch.start_id.tolist() == [0] * 4  # type: ignore[union-attr]
        assert by_row(batch.advantage, batch) == near(*expected)


DYNAMIC = {
    1.0: (0.8, 1.1708204),
    0.9: (0.7687420, 1.1871843),
    0.64: (0.5, 1.25),
    0.5: (0.5, 1.3062258),
    0.1: (0.5, 2.0),
    0.01: (0.5, 5.0),
    0.001: (0.5, 10.0),
    0.0001: (0.5, 10.0),
}


def test_dcpo_s_bounds(folder: Path, left: bool) -> None:
    """A chain of letters, each of which is followed by the next one with a probability of its own."""
    table = torch.full((WIDTH, WIDTH), -80.0, dtype=torch.float64)
    chain = [*ids("abcdefgh"), END]
    for q, token, following in zip(DYNAMIC, chain[:-1], chain[1:], strict=True):
        table[token, following] = math.log(q)
        table[token, ids("k")[0]] = math.log(1 - q) if q < 1 else -80.0
    given = {"num_starts": 1, "groups": 1, "group_size": 2}
    experiment = text("dcpo", folder, task=Told(prompts=("a",)), table=table, **given)
    batch = told(experiment, ["bcdefgh.", "bcd."], left=left)
    lower, upper = (own(each, batch) for each in objective(experiment).surrogate.bounds(batch.log_prob))
    assert lower[0] == near(*(low for low, _ in DYNAMIC.values()))
    assert upper[0] == near(*(high for _, high in DYNAMIC.values()))
    assert (lower[1], upper[1]) == ([*lower[0][:3], 0.5], [*upper[0][:3], 10.0])


def test_values_reach_across_what_the_environment_says(folder: Path) -> None:
    experiment = text("ppo", folder, task=Told(prompts=("a",)), num_envs=1, gamma=1.0, gae_lambda=0.95)
    valued(experiment.policy, {**VALUES, "m": 0.1, "l": 0.9})
    batch = told(experiment, ["bmc."], [1.0])
    assert own(batch.advantage, batch) == [near(0.743175, 0.4665, 0.07, 0.6)]
