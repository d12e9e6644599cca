"""Text tasks as a world: what an episode is, what it is worth, and how sources play it."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from decisionrl.envs.text import TextTaskDefaults, make_task
from decisionrl.envs.text.prompts import PromptTask, RewardFunctionError
from decisionrl.envs.text.tokenizer import character_tokenizer, encode
from decisionrl.evaluation.language import PassEvaluator
from decisionrl.experience.branching import Tree
from decisionrl.experience.episodes import EpisodeSource, Played, Task, evaluated, play
from decisionrl.experience.trajectories import joined
from decisionrl.llm.examples import SolvedExamples
from decisionrl.llm.generation import ContextLengthError, Generated, generate
from decisionrl.llm.record import Provenance
from decisionrl.llm.responses import Demonstrations, responses
from decisionrl.llm.warm_start import warm_start, warm_started
from decisionrl.llm.windows import TokenWindows
from decisionrl.llm.world import TextWorld, padded
from decisionrl.pipeline.advantages import TruncatedGAE
from decisionrl.pipeline.curricula import XRPO, FreshStarts
from decisionrl.pipeline.group_advantages import GroupNormalized
from decisionrl.policies.language import LanguagePolicy
from decisionrl.policies.language_models import tiny_model

pytest.importorskip("transformers")


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@dataclass(frozen=True)
class Echo(TextTaskDefaults):
    """A prompt of index + 1 letters a, to be answered by as many letters b; c asks, and is told d."""

    name = "echo"
    alphabet = "abcd"
    max_tokens = 6
    num_prompts = 5
    best_reward = 1.0
    triggers = "c"

    def prompt(self, index: int, /) -> str:
        return "a" * (index + 1)

    def reward(self, index: int, response: str, /) -> float:
        return float(response.replace("cd", "") == "b" * (index + 1))

    def demonstration(self, index: int, generator: torch.Generator, /) -> str:
        return "cd" + "b" * (index + 1)

    def reply(self, index: int, response: str, noise: int, /) -> str:
        return "a" if noise == 7 else "d"


TOKENIZER = character_tokenizer("abcd")
END = TOKENIZER.eos_token_id


def ids(text: str) -> list[int]:
    return encode(TOKENIZER, text)


@dataclass
class Scripted:
    """An engine that says what it is told to, and keeps what it was asked."""

    lines: list[str]
    asked: list[dict[str, Any]]

    def __call__(
        self, policy: object, context: Tensor, *, max_tokens: Tensor, stop: Sequence[int], **rest: Any
    ) -> Generated:
        self.asked.append({"context": context, "max_tokens": max_tokens, "stop": stop, **rest})
        said, own = [], []
        for row, limit in enumerate(max_tokens.tolist()):
            line, tokens, mine = self.lines.pop(0), [], []
            for token in [END if character == "." else ids(character)[0] for character in line]:
                tokens.append(token)
                mine.append(True)
                answer = rest["reply"](row, tokens) if rest["reply"] else ()
                tokens += answer
                mine += [False] * len(answer)
            said.append(tokens[:limit])
            own.append(mine[:limit])
        token = padded(said)
        return Generated(
            token=token,
            mask=padded(own) > 0,
            log_prob=torch.zeros(token.shape),
            entropy=torch.zeros(token.shape),
            finished=torch.tensor([row[-1] == END for row in said]),
        )


def world(lines: list[str] = (), *, task: Any = None, **options: Any) -> tuple[TextWorld, Scripted]:  # type: ignore[assignment]
    engine = Scripted(list(lines), [])
    return TextWorld(task or Echo(), TOKENIZER, engine=engine, **options), engine


def model() -> LanguagePolicy:
    return LanguagePolicy(tiny_model(len(TOKENIZER), width=16, heads=2, context=32, generator=rng()))


def played(lines: list[str], tasks: list[Task], **options: Any) -> Played:
    made, _ = world(lines)
    return made.play(model(), tasks, generator=None, **options)


def test_an_episode_is_a_response() -> None:
    episodes = played(["bb.", "b.", "bbbbbb"], [Task(1), Task(1), Task(0)])
    assert episodes.state is not None
    assert episodes.state.tolist() == [ids("aa"), ids("aa"), [*ids("a"), -1]]
    assert episodes.action.tolist()[0] == [*ids("bb"), END, 0, 0, 0]
    assert episodes.observation.tolist()[0] == [*ids("abb"), -1, -1, -1]  # type: ignore[union-attr]
    assert episodes.mask.sum(1).tolist() == [3, 2, 6]
    assert episodes.reward.tolist() == [[0, 0, 1, 0, 0, 0], [0] * 6, [0] * 6]
    assert episodes.terminated.long().argmax(1).tolist() == [2, 1, 5]
    assert not episodes.truncated.any()
    assert not episodes.cut.any()
    assert episodes.extras["problem"].tolist() == [1, 1, 0]
    everything = [*ids("aa"), *ids("bb"), END]
    assert [token for token in episodes.final_state[0].tolist() if token >= 0] == everything  # type: ignore[index]


@dataclass(frozen=True)
class Slow(Echo):
    """The environment has more to say."""

    def reply(self, index: int, response: str, noise: int, /) -> str:
        return "dad"[: 3 - index]


@pytest.mark.parametrize(
    ("start", "prefix", "rest"),
    [
        (0, "c", "dad"),
        (0, "bcd", "ad"),
        (0, "cdadc", "dad"),
        (0, "cdad", ""),
        (1, "bcdac", "da"),
        (2, "cdb", ""),
        (0, "b", ""),
    ],
)
def test_a_reply_is_not_lost_where_a_response_was_cut(start: int, prefix: str, rest: str) -> None:
    made = TextWorld(Slow(), TOKENIZER, max_tokens=9)
    task = Task(start, prefix=torch.tensor(ids(prefix)))
    episode = made.play(model(), [task], generator=rng(), more=4)
    mine, said = episode.mask[0].tolist(), TOKENIZER.decode(episode.action[0].tolist(), skip_special_tokens=False)
    assert mine[: len(rest) + 1] == [False] * len(rest) + [True]
    assert said.startswith(rest)


def test_examples_are_in_the_loss_or_only_in_the_sampling() -> None:
    for in_loss in (True, False):
        examples = SolvedExamples(success=1.0, in_loss=in_loss)
        made, engine = world(["bb.", "a.", "b.", "b.", "bb.", "bb."], examples=examples)
        policy = model()
        first = made.play(policy, [Task(1), Task(0)], generator=None)
        assert examples._failed == {0}
        later = made.play(policy, [Task(0), Task(0), Task(1), Task(1)], generator=None)
        alone = [[*ids("a"), -1]] * 2 + [ids("aa")] * 2
        hinted = [[*ids("aabb"), END, *ids("a")]] * 2 + [[*ids("aa"), -1, -1, -1, -1]] * 2
        assert engine.asked[-1]["context"].tolist() == hinted
        assert later.outcome.tolist() == [1, 1, 1, 1]
        batch, both = evaluated(policy, later), joined([evaluated(policy, first), evaluated(policy, later)])
        assert batch.state is not None
        torch.testing.assert_close(batch.log_prob, policy.evaluate(batch).log_prob)
        assert float(examples(batch).metrics["seeded"]) == pytest.approx(2 / 6)
        if in_loss:
            assert batch.state.tolist() == hinted
            assert batch.sampling_state is both.sampling_state is None
        else:
            assert batch.state.tolist() == alone
            assert batch.sampling_state is not None
            assert batch.sampling_state.tolist() == hinted
            assert batch.extras["provenance"].tolist() == [Provenance.HINTED] * 2 + [Provenance.ON_POLICY] * 2
            assert both.sampling_state is not None
            assert both.sampling_state.shape == (6, 6)
            assert later.final_state is not None
            assert later.final_state[0].tolist()[:3] == [*ids("a"), -1, *ids("b")]


def test_log_probabilities_as_sampled_are_not_of_another_prompt() -> None:
    made, _ = world(["b."], examples=SolvedExamples(success=1.0, in_loss=False), log_probs="sampled")
    with pytest.raises(ValueError, match="valid with examples that are not in the loss: 'recomputed'"):
        made.play(model(), [Task(0)], generator=None)


def test_what_is_cut_has_no_reward_and_goes_on_later() -> None:
    cut = played(["bb", "bb.", "b."], [Task(1), Task(1), Task(0)], max_steps=2)
    assert cut.cut.tolist() == [True, True, False]
    assert cut.outcome.tolist() == [0, 0, 1]
    assert cut.truncated.any(1).tolist() == cut.cut.tolist()
    rest = played(["b."], [Task(1, prefix=torch.tensor(ids("b")))])
    assert rest.state is not None
    assert rest.state[0].tolist() == ids("aab")
    assert rest.outcome.tolist() == [1]
    assert rest.observation[0].tolist() == ids("bb")  # type: ignore[index]


def test_a_window_is_so_many_tokens_more() -> None:
    made, engine = world(["bb", "b."])
    made.play(model(), [Task(3, prefix=torch.tensor(ids("bbb"))), Task(0)], generator=None, more=2)
    assert engine.asked[0]["max_tokens"].tolist() == [2, 2]
    made, engine = world(["b", "b."])
    made.play(model(), [Task(3, prefix=torch.tensor(ids("bbbbb"))), Task(0)], generator=None, more=2)
    assert engine.asked[0]["max_tokens"].tolist() == [1, 2]  # of six in all


def test_what_the_environment_says_is_no_step_of_the_policy() -> None:
    episodes = played(["cbb.", "cbb."], [Task(1), Task(1, noise=7)])
    assert episodes.action[0].tolist() == [*ids("cdbb"), END]
    assert episodes.mask[0].tolist() == [True, False, True, True, True]
    assert episodes.action[1].tolist() == [*ids("cabb"), END]
    assert episodes.outcome.tolist() == [1, 0]


def test_responses_are_written_so_many_at_a_time() -> None:
    made, engine = world(["b."] * 5, num_envs=2)
    assert made.play(model(), [Task(0)] * 5, generator=None).outcome.tolist() == [1] * 5
    assert [len(asked["context"]) for asked in engine.asked] == [2, 2, 1]


def test_some_of_the_prompts() -> None:
    made, _ = world(["bbbb.", "bb."], prompts=torch.tensor([3, 1]))
    assert made.num_starts == 2
    assert made.prompt(0) == ids("aaaa")
    assert made.play(model(), [Task(0), Task(1)], generator=None).outcome.tolist() == [1, 1]


def test_a_source_meets_every_prompt_before_any_again() -> None:
    policy, task = model(), Echo()
    source = EpisodeSource(
        TextWorld(task, TOKENIZER),
        policy,  # type: ignore[arg-type]
        starts=FreshStarts(groups=5, group_size=3),
        pipeline=[GroupNormalized()],
    )
    orders = []
    for _ in range(3):
        batch = source.sample()
        assert batch.group is not None
        problem = batch.extras["problem"].view(5, 3)
        assert (problem == problem[:, :1]).all()
        assert sorted(problem[:, 0].tolist()) == list(range(5))
        orders.append(problem[:, 0].tolist())
        torch.testing.assert_close(batch.log_prob, policy.evaluate(batch).log_prob)
        assert source.steps_per_sample == int(batch.mask.sum())
    assert orders[0] != orders[1] or orders[1] != orders[2]


def test_log_probabilities_may_be_those_of_the_sampling() -> None:
    policy = model()
    sources = [
        EpisodeSource(
            TextWorld(Echo(), TOKENIZER, log_probs=log_probs),
            policy,
            starts=FreshStarts(groups=5, group_size=8),
        )
        for log_probs in ("recomputed", "sampled")
    ]
    one, other = (source.sample() for source in sources)
    assert torch.equal(one.action, other.action)
    assert one.entropy is not None
    assert other.entropy is not None
    torch.testing.assert_close(one.log_prob[one.mask], other.log_prob[one.mask], atol=1e-5, rtol=0)
    torch.testing.assert_close(one.entropy[one.mask], other.entropy[one.mask], atol=1e-5, rtol=0)
    critic = LanguagePolicy(policy.model, value="shared")
    with pytest.raises(ValueError, match="log_probs = 'sampled'; valid with a critic: 'recomputed'"):
        TextWorld(Echo(), TOKENIZER, log_probs="sampled").play(critic, [Task(0)], generator=None)
    with pytest.raises(ValueError, match="log_probs = 'guessed'"):
        TextWorld(Echo(), TOKENIZER, log_probs="guessed")  # type: ignore[arg-type]


def test_batches_of_different_lengths_are_joined_by_what_is_no_token() -> None:
    policy = model()
    short, long = played(["b."], [Task(0)]), played(["bbbb."], [Task(4)])
    both = joined([evaluated(policy, short), evaluated(policy, long)])  # type: ignore[arg-type]
    assert both.state is not None
    assert both.state.tolist() == [[*ids("a"), -1, -1, -1, -1], ids("aaaaa")]
    assert both.observation[0].tolist() == [*ids("ab"), -1, -1, -1]  # type: ignore[index]
    torch.testing.assert_close(policy.evaluate(both).log_prob, both.log_prob)


def test_play_asks_the_world() -> None:
    made, _ = world(["b."])
    assert play(made, model(), [Task(0)], generator=None).outcome.tolist() == [1]  # type: ignore[arg-type]


def test_demonstrations_are_right_and_marked() -> None:
    made, _ = world()
    batch = Demonstrations(world=made, size=20)(rng())
    there = batch.observation >= 0  # type: ignore[operator]
    for state, action, mask, present in zip(batch.state, batch.action, batch.mask, there, strict=True):  # type: ignore[arg-type]
        index = int((state >= 0).sum()) - 1
        assert action[present].tolist() == [*ids("cd" + "b" * (index + 1)), END]
        assert mask[present].tolist() == [True, False, *[True] * (index + 2)]
    rows = responses([ids("a")], [ids("bd")], [[True, False]])
    assert rows.mask.tolist() == [[True, False]]
    assert rows.terminated.tolist() == [[False, True]]


def test_demonstrations_may_follow_others() -> None:
    made, _ = world()
    batch = Demonstrations(world=made, size=64, examples=2)(rng())
    assert batch.state is not None
    shown = []
    for state, action, mask in zip(batch.state, batch.action, batch.mask, strict=True):
        text = TOKENIZER.decode(state[state >= 0].tolist(), skip_special_tokens=True)
        assert (state == END).sum() == text.count("cd")
        *before, prompt = re.split("(?<=b)(?=a)", text)
        assert all(re.fullmatch(r"(a+)cd(b+)", each) and each.count("a") == each.count("b") for each in before)
        assert action[mask].tolist().count(ids("b")[0]) == len(prompt)
        shown.append(len(before))
    assert set(shown) == {0, 1, 2}
    alone = Demonstrations(world=made, size=64)(rng())
    assert torch.equal(alone.action, batch.action), "the prompts are the same"


def test_a_reward_function_that_fails_is_named() -> None:
    def careless(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
        raise KeyError("answer")

    task = PromptTask(rows=[{"prompt": "ab"}], reward_functions=[careless], max_tokens=4)
    with pytest.raises(RewardFunctionError, match=r"careless, rows 0: KeyError: 'answer'") as failed:
        world(["b."], task=task)[0].play(model(), [Task(0)], generator=None)
    assert failed.value.responses == [(0, "b")]


@dataclass
class Sandbox:
    """Rewards that fail while it is broken, and an engine that counts how often it writes."""

    broken: bool = False
    written: int = 0

    def reward(self, prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
        if self.broken:
            raise TimeoutError("no sandbox")
        return [float("b" in each) for each in completions]

    def write(self, *arguments: Any, **options: Any) -> Generated:
        self.written += 1
        return generate(*arguments, **options)


def test_a_reward_function_that_fails_does_not_lose_the_responses() -> None:
    sandbox = Sandbox()

    def source() -> EpisodeSource:
        policy = model()
        task = PromptTask(rows=[{"prompt": each} for each in ("ab", "cb", "a")], reward_functions=[sandbox.reward])
        playing = TextWorld(task, TOKENIZER, num_envs=4, max_tokens=4, engine=sandbox.write)
        return EpisodeSource(playing, policy, starts=FreshStarts(groups=2, group_size=4), seed=3)

    wanted = source()
    first, second = wanted.sample(), wanted.sample()
    assert sandbox.written == 4
    failing = source()
    assert torch.equal(failing.sample().action, first.action)
    sandbox.broken = True
    for _ in range(2):
        with pytest.raises(RewardFunctionError, match="TimeoutError: no sandbox"):
            failing.sample()
    assert sandbox.written == 8
    sandbox.broken = False
    again = failing.sample()
    assert sandbox.written == 8
    assert torch.equal(again.action, second.action)
    assert torch.equal(again.reward, second.reward)
    assert torch.equal(failing.sample().action, wanted.sample().action)


def test_examples_that_were_heard_of_in_a_failed_batch_are_forgotten() -> None:
    calls: list[int] = []
    broken = -1

    def sometimes(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
        calls.append(len(prompts))
        if len(calls) == broken:
            raise TimeoutError("no sandbox")
        return [float("b" in each) for each in completions]

    def source() -> EpisodeSource:
        calls.clear()
        examples = SolvedExamples(success=1.0)
        prompts = ("ab", "cb", "a", "bc", "ca", "aa")
        task = PromptTask(rows=[{"prompt": each} for each in prompts], reward_functions=[sometimes])
        playing = TextWorld(task, TOKENIZER, num_envs=8, max_tokens=2, examples=examples)
        starts = XRPO(num_starts=6, groups=6, budget=24, base=1, phases=2)
        return EpisodeSource(playing, model(), starts=starts, pipeline=[GroupNormalized(), examples], seed=3)

    wanted = [each for each in [source()] for each in (each.sample(), each.sample())]
    assert len(calls) > 2
    failing = source()
    broken = 2
    with pytest.raises(RewardFunctionError, match="TimeoutError: no sandbox"):
        failing.sample()
    for expected in wanted:
        again = failing.sample()
        assert torch.equal(again.action, expected.action)
        assert again.state is not None
        assert expected.state is not None
        assert torch.equal(again.state, expected.state)
        assert again.metrics["seeded"] == expected.metrics["seeded"]


def test_windows_of_a_reward_function_that_fails_are_written_once() -> None:
    sandbox = Sandbox()

    def source() -> TokenWindows:
        task = PromptTask(rows=[{"prompt": each} for each in ("ab", "cb", "a")], reward_functions=[sandbox.reward])
        policy = LanguagePolicy(tiny_model(len(TOKENIZER), width=16, heads=2, generator=rng()), value="shared")
        playing = TextWorld(task, TOKENIZER, num_envs=4, max_tokens=4, engine=sandbox.write)
        return TokenWindows(playing, policy, horizon=2)

    wanted, failing = source(), source()
    for batch in range(4):
        expected = wanted.sample()
        sandbox.broken = True
        with pytest.raises(RewardFunctionError, match="TimeoutError: no sandbox"):
            failing.sample()
        sandbox.broken = False
        again = failing.sample()
        assert sandbox.written == 2 * batch + 2
        assert torch.equal(again.action, expected.action)
        assert torch.equal(again.reward, expected.reward)


def test_windows_meet_every_prompt_before_any_again() -> None:
    policy = LanguagePolicy(tiny_model(len(TOKENIZER), width=16, heads=2, context=32, generator=rng()), value="shared")
    begun: list[int] = []

    class Noted(TextWorld):
        def play(self, policy: Any, tasks: Any, **options: Any) -> Any:
            begun.extend(task.seed for task in tasks if not task.played)
            return super().play(policy, tasks, **options)

    source = TokenWindows(Noted(Echo(), TOKENIZER, num_envs=3), policy, horizon=6, seed=1)
    for _ in range(5):
        source.sample()
    turns = [begun[at : at + 5] for at in (0, 5, 10)]
    assert [sorted(turn) for turn in turns] == [[0, 1, 2, 3, 4]] * 3
    assert len({tuple(turn) for turn in turns}) > 1


def test_a_world_is_checked_before_it_is_played() -> None:
    made, _ = world()
    made.check(model())
    small = LanguagePolicy(tiny_model(len(TOKENIZER), width=16, heads=2, context=10, generator=rng()))
    message = "echo: prompt 4 has 5 tokens, and a response up to 6; valid: at most 10 in all"
    with pytest.raises(ContextLengthError, match=message):
        made.check(small)
    with pytest.raises(ContextLengthError, match=message):
        made.play(small, [Task(0), Task(4)], generator=None)
    few = LanguagePolicy(tiny_model(len(TOKENIZER) - 1, width=16, heads=2, context=32, generator=rng()))
    assert TOKENIZER.convert_tokens_to_ids("d") == 6
    world(task=PromptTask(rows=[{"prompt": "abc"}], reward_functions=[len], max_tokens=4))[0].check(few)
    task = PromptTask(rows=[{"prompt": "abc"}, {"prompt": "dab"}], reward_functions=[len], max_tokens=4)
    with pytest.raises(
        ValueError, match=r"prompt 1 has token 6; valid: a tokenizer that belongs to the model, .* 0 to 5"
    ):
        world(task=task)[0].check(few)
    valued = LanguagePolicy(tiny_model(len(TOKENIZER), width=16, heads=2, context=32, generator=rng()), value="shared")
    with pytest.raises(ValueError, match="log_probs = 'sampled'; valid with a critic: 'recomputed'"):
        world(log_probs="sampled")[0].check(valued)


def test_examples_leave_room_for_the_prompt_and_the_response() -> None:
    for context, fits in ((11, True), (10, False)):
        policy = LanguagePolicy(tiny_model(len(TOKENIZER), width=16, heads=2, context=context, generator=rng()))
        made, engine = world(["b.", "aa.", "a."], task=Echo(), max_tokens=6, examples=SolvedExamples(success=1.0))
        made.play(policy, [Task(0), Task(1)], generator=None)  # "a" is solved with b and the end: 3 tokens
        made.play(policy, [Task(1)], generator=None)
        shown = [*ids("ab"), END] if fits else []
        assert engine.asked[-1]["context"].tolist() == [shown + ids("aa")]


def test_right_is_what_earns_so_much_in_the_precision_of_the_rewards() -> None:
    @dataclass(frozen=True)
    class Worth(Echo):
        best_reward = 0.7

        def reward(self, index: int, response: str, /) -> float:
            return 0.7 * super().reward(index, response)

    task = Worth()
    examples = SolvedExamples(success=0.7)
    made, _ = world(["b.", "a."], task=task, examples=examples)
    made.play(model(), [Task(0), Task(1)], generator=None)
    assert examples._failed == {1}
    evaluate = PassEvaluator(make_world=lambda: world(["b."] * 40, task=task)[0], success=0.7)
    assert evaluate(model(), episodes=40)["pass_1"] == pytest.approx(0.2), "one of five prompts"


def test_evaluations_have_as_many_responses_as_asked_for() -> None:
    def evaluate(episodes: int) -> dict[str, Any]:
        return PassEvaluator(make_world=lambda: TextWorld(Echo(), TOKENIZER), success=1.0)(model(), episodes=episodes)

    assert [evaluate(asked)["episodes"] for asked in (2, 16, 40, 1000)] == [8, 16, 40, 1000]


def test_reward_functions_see_the_tokens() -> None:
    seen = {}

    def long_enough(
        prompts: list[str], completions: list[str], completion_ids: list[list[int]], **columns: Any
    ) -> list[float]:
        seen.update(prompts=prompts, completions=completions, ids=completion_ids)
        return [float(len(each)) for each in completion_ids]

    task = PromptTask(rows=[{"prompt": "ab"}], reward_functions=[long_enough], max_tokens=4)
    episodes = world(["bb."], task=task)[0].play(model(), [Task(0)], generator=None)
    assert episodes.outcome.tolist() == [3]
    assert seen == {"prompts": ["ab"], "completions": ["bb"], "ids": [[*ids("bb"), END]]}


def test_a_warm_start_reaches_its_target(tmp_path: Any) -> None:
    task = make_task("text/modular-addition", modulus=5)
    tokenizer = character_tokenizer(task.alphabet or "")
    policy = LanguagePolicy(tiny_model(len(tokenizer), width=32, context=16, generator=rng()))
    shares: list[float] = []
    share = warm_start(
        policy, TextWorld(task, tokenizer), target=0.5, progress=lambda update, share: shares.append(share)
    )
    assert shares[0] < 0.3
    assert shares[-1] == share >= 0.5
    assert all((256 * share) % 1 for share in shares if share), "shares of 275 responses, as there are but 25 prompts"
    made = warm_started(task, tmp_path / "model", seed=0)
    assert made == tmp_path / "model" == warm_started(task, tmp_path / "model", seed=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


def test_what_has_no_meaning_is_refused() -> None:
    with pytest.raises(ValueError, match="num_envs = 0; valid: a whole number >= 1"):
        world(num_envs=0)
    with pytest.raises(ValueError, match="max_tokens = 0"):
        world(max_tokens=0)
    with pytest.raises(ValueError, match="prompts is empty"):
        world(prompts=torch.tensor([], dtype=torch.int64))
    with pytest.raises(ValueError, match="tasks is empty"):
        world()[0].play(model(), [], generator=None)
    with pytest.raises(ValueError, match=r"target = 0\.0; valid: above 0"):
        warm_start(model(), world()[0], target=0.0)


def test_branches_go_on_from_what_was_said_by_either() -> None:
    """A tree of two segments of two tokens: the second goes on from the question and the answer to it."""
    made, engine = world(["cb", "bb.", "bb."])
    source = EpisodeSource(
        made,
        model(),  # type: ignore[arg-type]
        starts=FreshStarts(groups=1, group_size=1),
        tree=Tree(branching=(1, 2), steps=2),
    )
    batch = source.sample()
    start = int(batch.extras["problem"][0])
    assert engine.asked[1]["context"].tolist() == [ids("a" * (start + 1) + "cd")] * 2
    assert batch.extras["leaf_reward"].isnan().tolist() == [True, False, False]
    assert batch.state is not None
    assert batch.state[0].tolist() == [*ids("a" * (start + 1)), -1, -1]


def test_windows_go_on_where_they_ended() -> None:
    task, policy = (
        Echo(),
        LanguagePolicy(tiny_model(len(TOKENIZER), width=16, heads=2, context=32, generator=rng()), value="shared"),
    )
    made = TextWorld(task, TOKENIZER, num_envs=8)
    source = TokenWindows(made, policy, horizon=2, pipeline=[TruncatedGAE()], gamma=0.5)
    pool: list[list[int]] = [[] for _ in range(8)]
    finished = 0
    said: list[list[float]] = [[] for _ in range(8)]
    for _ in range(6):
        batch = source.sample()
        assert batch.state is not None
        assert batch.returns is not None
        kept, valued = batch.extras["kept"], batch.extras["valued"]
        windows = kept.any(1)
        assert windows.tolist() == [True] * 8 + [False] * (len(windows) - 8)
        assert torch.equal(kept | valued, batch.mask)
        assert source.steps_per_sample == int(kept.sum())
        texts = []
        for row in range(8):
            there = batch.observation[row] >= 0  # type: ignore[index]
            before = [token for token in batch.state[row].tolist() if token >= 0]
            if pool[row]:
                assert before == pool[row], "the row goes on"
            now = before + batch.action[row][there].tolist()
            assert len(now) - len(before) <= 2
            texts.append(now)
        over = [texts[row] for row in range(8) if batch.terminated[row].any()]
        whole = [
            [token for token in state.tolist() if token >= 0] + action[seen >= 0].tolist()
            for state, action, seen in zip(batch.state[8:], batch.action[8:], batch.observation[8:], strict=True)  # type: ignore[index]
        ]
        assert whole == over
        finished += len(over)
        ended = [row for row in range(8) if batch.terminated[row].any()]
        for row in range(8):
            said[row] += batch.log_prob[row, batch.mask[row]].tolist()
        for place, row in enumerate(ended, start=8):
            assert batch.log_prob[place, batch.mask[place]].tolist() == pytest.approx(said[row], abs=1e-6)
        said = [said[row] for row in range(8) if row not in ended] + [[] for _ in ended]
        with torch.no_grad():  # what was said of earlier tokens is not what the policy says now
            policy.head.weight.mul_(1.2)
        for row in range(8, len(batch.mask)):
            own = batch.mask[row].nonzero()[:, 0].tolist()
            reward = batch.reward[row].sum().item()
            expected = [reward * 0.5 ** (len(own) - 1 - place) for place in range(len(own))]
            assert batch.returns[row, own].tolist() == pytest.approx(expected)
        pool = [texts[row] for row in range(8) if not batch.terminated[row].any()]
        pool += [[] for _ in range(8 - len(pool))]
    assert finished > 4


def test_responses_of_all_lengths_count_among_the_last() -> None:
    policy = LanguagePolicy(tiny_model(len(TOKENIZER), width=16, heads=2, context=32, generator=rng()), value="shared")
    source = TokenWindows(TextWorld(Echo(), TOKENIZER, num_envs=2500), policy, horizon=2, pipeline=[TruncatedGAE()])
    for _ in range(3):
        batch = source.sample()
    lengths = batch.extras["valued"].sum(1)
    lengths = lengths[lengths > 0].float()
    assert len(lengths) > 500
    assert lengths[-100:].mean() <= 2, "those begun in the window stand last"
    assert batch.metrics["episode_length"] == pytest.approx(lengths.mean().item(), abs=0.5)
    assert lengths.mean() > 2.5


def test_windows_are_saved() -> None:
    def made() -> TokenWindows:
        policy = LanguagePolicy(
            tiny_model(len(TOKENIZER), width=16, heads=2, context=32, generator=rng()), value="shared"
        )
        return TokenWindows(TextWorld(Echo(), TOKENIZER, num_envs=4), policy, horizon=2, pipeline=[TruncatedGAE()])

    source, other = made(), made()
    source.sample()
    other.load_state_dict(source.state_dict())
    for one, two in [(source.sample(), other.sample()) for _ in range(8)]:
        assert torch.equal(one.action, two.action)
        assert torch.equal(one.mask, two.mask)
        assert torch.equal(one.log_prob, two.log_prob)
        assert torch.equal(one.extras["valued"], two.extras["valued"])
