"""Text tasks: what all of them promise, and answers that are found again by trying everything."""

from __future__ import annotations

import itertools
import re

import pytest
import torch

from decisionrl.envs.text import TASKS, TextTask, make_task, own_characters, split
from decisionrl.envs.text.countdown import Countdown
from decisionrl.envs.text.mod_chain import ModChain
from decisionrl.envs.text.modular_addition import ModularAddition
from decisionrl.envs.text.sorting import Sorting
from decisionrl.envs.text.stop_vote import StopVote
from decisionrl.envs.text.task import success_of


def indices(task: TextTask) -> range:
    return range(0, 10_000, 97) if task.num_prompts is None else range(0, task.num_prompts, 1 + task.num_prompts // 100)


@pytest.mark.parametrize("name", TASKS)
def test_what_every_task_promises(name: str) -> None:
    task, again = make_task(name), make_task(name)
    assert isinstance(task, TextTask)
    assert task.name == name
    assert len(set(task.alphabet)) == len(task.alphabet)
    generator = torch.Generator().manual_seed(0)
    seen = set()
    for index in indices(task):
        prompt, response = task.prompt(index), task.demonstration(index, generator)
        assert prompt == again.prompt(index)
        assert set(prompt + response) <= set(task.alphabet)
        assert 1 <= len(response) < task.max_tokens
        assert task.reward(index, response) == task.best_reward
        for wrong in ("", response + response[-1], " " + response, response + "\n", "?"):
            assert task.reward(index, wrong) == 0, wrong
        seen.add(prompt)
    assert len(seen) > 1
    some = list(indices(task))[:5]
    responses = [task.demonstration(index, generator) for index in some[:3]] + ["", "?"]
    assert task.rewards(some, responses) == [1, 1, 1, 0, 0]


@pytest.mark.parametrize("name", [name for name in TASKS if name != "text/stop-vote"])
def test_longest_responses_are_as_long_as_is_said(name: str) -> None:
    task, generator = make_task(name), torch.Generator().manual_seed(0)
    longest = max(len(task.demonstration(index, generator)) for index in range(min(task.num_prompts or 2000, 2000)))
    assert longest + 1 == task.max_tokens
    assert task.triggers == ""
    assert own_characters(task, 0, "123") == [True] * 3


@pytest.mark.parametrize("name", [name for name in TASKS if make_task(name).num_prompts is not None])
def test_prompts_of_finite_tasks_differ_and_end(name: str) -> None:
    task = make_task(name)
    prompts = [task.prompt(index) for index in range(task.num_prompts)]
    assert len(set(prompts)) == task.num_prompts
    for index in (-1, task.num_prompts):
        for function in (task.prompt, lambda index: task.reward(index, "")):
            with pytest.raises(ValueError, match=rf"{name}: index = {index}; valid: .* 0 to {task.num_prompts - 1}$"):
                function(index)


def test_endless_tasks_take_any_whole_number() -> None:
    task = Sorting()
    assert re.fullmatch("[0-9]{4,6}>", task.prompt(2**80))
    assert task.prompt(torch.tensor(4)) == task.prompt(4)
    with pytest.raises(ValueError, match=r"text/sorting: index = -1; valid: whole numbers from 0$"):
        task.prompt(-1)
    with pytest.raises(TypeError):
        task.prompt(1.5)  # type: ignore[arg-type]


def test_prompts_are_the_same_on_every_machine() -> None:
    assert [Sorting().prompt(index) for index in range(3)] == ["4086>", "985905>", "369809>"]
    assert ModChain().prompt(5) == "a*2,b+1,c+6,d+5,e*4,f*8;2dbaebeaf="
    assert make_task("text/prompt-bandit").right[:2] == ("abef", "abdef")
    assert StopVote().reply(0, "T", 1) == "0"


def test_splits_are_disjoint_complete_and_of_their_seed() -> None:
    task = ModularAddition()
    train, test = split(task, train_share=0.75, seed=3)
    assert len(train) == round(0.75 * 529)
    assert sorted([*train.tolist(), *test.tolist()]) == list(range(529))
    again, other = split(task, train_share=0.75, seed=3), split(task, train_share=0.75, seed=4)
    assert torch.equal(train, again[0])
    assert not torch.equal(train, other[0])
    with pytest.raises(ValueError, match=r"text/sorting: num_prompts = None; valid: a finite task"):
        split(Sorting())
    with pytest.raises(ValueError, match=r"train_share = 1.5; valid: in \(0, 1\)"):
        split(task, train_share=1.5)


def test_unknown_names_and_options_are_told_what_is_valid() -> None:
    with pytest.raises(ValueError, match=r"task = 'addition'; valid: text/modular-addition, .*, text/mod-chain$"):
        make_task("addition")
    with pytest.raises(ValueError, match=r"text/modular-addition has no option 'mod'; .* defaults: modulus = 23$"):
        make_task("text/modular-addition", mod=97)
    assert make_task("text/modular-addition", modulus=97).num_prompts == 97**2


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("modular-addition", {"modulus": 1}, "modulus = 1; valid: a whole number >= 2"),
        ("sorting", {"min_digits": 0}, "min_digits = 0; valid: a whole number >= 1"),
        ("sorting", {"min_digits": 7}, "max_digits = 6; valid: a whole number >= 7"),
        ("countdown", {"max_target": 0.5}, "max_target = 0.5; valid: a whole number >= 1"),
        ("prompt-bandit", {"actions": 27}, "actions = 27; valid: 2 to 26"),
        ("key-token-chain", {"keys": 13}, "keys = 13; valid: 1 to length = 12"),
        ("stop-vote", {"deltas": (0.4, 0.6)}, r"deltas = \(0.4, 0.6\); valid: at least one, each in \[0.001, 0.5\]"),
        ("stop-vote", {"deltas": ()}, r"deltas = \(\); valid: at least one"),
        ("stop-vote", {"cost": -1}, "cost = -1; valid: a number >= 0"),
        ("stop-vote", {"cost": float("nan")}, "cost = nan; valid: a number >= 0"),
        ("mod-chain", {"symbols": 20}, "symbols = 20; valid: 1 to 19"),
        ("mod-chain", {"max_length": 0}, "max_length = 0; valid: a whole number >= 1"),
    ],
)
def test_options_out_of_range_are_named(name: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_task(f"text/{name}", **options)


def test_every_sum_has_one_answer() -> None:
    task = ModularAddition(modulus=12)
    for index, (a, b) in enumerate(itertools.product(range(12), repeat=2)):
        assert task.prompt(index) == f"{a}+{b}="
        right = [number for number in range(200) if task.reward(index, str(number))]
        assert right == [(a + b) % 12]
    assert task.reward(5, "05") == 0


def test_sorting_and_its_partial_credit() -> None:
    task, lenient = Sorting(min_digits=2, max_digits=3), Sorting(min_digits=2, max_digits=3, partial_credit=True)
    lengths = []
    for index in range(200):
        digits = task.prompt(index)[:-1]
        lengths.append(len(digits))
        for order in map("".join, itertools.permutations(digits)):
            right = all(left <= following for left, following in itertools.pairwise(order))
            assert task.reward(index, order) == right
            assert (lenient.reward(index, order) == 1) == right
    assert lengths.count(2) == pytest.approx(100, abs=30)
    index = next(index for index in range(1000) if sorted(task.prompt(index)[:-1]) == ["0", "2", "7"])
    assert lenient.reward(index, "027") == 1
    assert lenient.reward(index, "072") == pytest.approx(1 / 3)
    assert lenient.reward(index, "02") == pytest.approx(2 / 3)
    assert lenient.reward(index, "027027") == pytest.approx(3 / 6)
    assert lenient.reward(index, "") == 0


def test_countdown_has_every_problem_that_can_be_solved() -> None:
    expected = {
        (numbers, target)
        for numbers in itertools.combinations_with_replacement(range(1, 6), 3)
        for signs in itertools.product((1, -1), repeat=3)
        if max(signs) == 1
        and 1 <= (target := sum(sign * number for sign, number in zip(signs, numbers, strict=True))) <= 9
    }
    problems = Countdown(max_number=5, max_target=9).problems
    assert {(problem.numbers, problem.target) for problem in problems} == expected
    assert len(problems) == len(expected)


def test_countdown_accepts_every_solution_and_nothing_else() -> None:
    task, several = Countdown(), 0
    candidates = []
    for (a, b, c), one, two in itertools.product(itertools.product(range(10), repeat=3), (1, -1), (1, -1)):
        text = f"{a}{'+' if one > 0 else '-'}{b}{'+' if two > 0 else '-'}{c}"
        candidates.append((text, sorted((a, b, c)), a + one * b + two * c))
    for index in range(0, task.num_prompts, 37):
        numbers, target, solutions = task.problem(index)
        assert task.prompt(index) == f"{numbers[0]},{numbers[1]},{numbers[2]}:{target}="
        expected = {text for text, used, value in candidates if used == list(numbers) and value == target}
        assert set(solutions) == expected
        assert {text for text, _, _ in candidates if task.reward(index, text)} == expected
        several += len(solutions) > 1
    assert several > 10


def test_countdown_refuses_what_is_no_expression() -> None:
    task = Countdown()
    index = next(i for i, problem in enumerate(task.problems) if problem[:2] == ((3, 5, 8), 6))
    assert task.problem(index).solutions == ("3+8-5", "3-5+8", "8+3-5", "8-5+3")
    for wrong in (
        "+3-5+8", "-5+3+8", "3+8-5=6", "3+8--5", "3+(8-5)", "3 + 8 - 5", "03+8-5", "6", "3+8-5+0", "11-5", "3+8-5\n",
        "٣+8-5", "9" * 10_000, "3+8-5-" * 1000, "__import__('os')",
    ):  # fmt: skip
        assert task.reward(index, wrong) == 0, wrong


def test_countdown_demonstrations_show_all_solutions() -> None:
    task, generator = Countdown(), torch.Generator().manual_seed(1)
    shown = [task.demonstration(200, generator) for _ in range(300)]
    assert set(shown) == set(task.problem(200).solutions)
    assert len(set(shown)) > 1


@pytest.mark.parametrize("options", [{}, {"modulus": 7, "symbols": 9, "min_length": 3, "rulebook_seed": 4}])
def test_chains_are_what_their_prompts_say(options: dict[str, int]) -> None:
    task = ModChain(**options)
    modulus, lengths = options.get("modulus", 11), set()
    for index in range(100):
        book, _, question = task.prompt(index).partition(";")
        rules = {entry[0]: entry[1:] for entry in book.split(",")}
        assert len(set(rules.values())) == len(rules) == task.symbols
        start, symbols = re.fullmatch("([0-9]+)([a-z]+)=", question).groups()
        value, values = int(start), []
        for symbol in symbols:
            number = int(rules[symbol][1:])
            value = (value + number) % modulus if rules[symbol][0] == "+" else value * number % modulus
            values.append(value)
        assert task.chain(index).values == tuple(values)
        assert [number for number in range(100) if task.reward(index, str(number))] == [value]
        lengths.add(len(symbols))
    assert lengths == set(range(options.get("min_length", 1), 9))


def test_rulebook_and_steps_do_not_change_the_questions() -> None:
    told, bare, steps = ModChain(), ModChain(rulebook=False), ModChain(steps=True)
    for index in range(50):
        assert told.prompt(index).partition(";")[2] == bare.prompt(index)
        assert told.prompt(index) == steps.prompt(index)
        assert told.chain(index) == bare.chain(index) == steps.chain(index)
    assert ModChain(rulebook_seed=1).rules != told.rules


def test_shown_steps_are_judged_by_their_end() -> None:
    task, plain = ModChain(steps=True), ModChain()
    index = next(index for index in range(100) if len(task.chain(index).values) == 3)
    values = task.chain(index).values
    shown = ",".join(map(str, values))
    assert task.demonstration(index, torch.Generator()) == shown
    assert task.reward(index, shown) == task.reward(index, str(values[-1])) == 1
    assert task.reward(index, f"0,0,{values[-1]}") == 1
    for wrong in (f"{shown},", f",{values[-1]}", f"{values[0]},,{values[-1]}", f"a,{values[-1]}", f"0,{values[-1]}1"):
        assert task.reward(index, wrong) == 0
    assert plain.reward(index, shown) == 0
    assert plain.reward(index, str(values[-1])) == 1
    assert max(len(task.demonstration(i, torch.Generator())) for i in range(3000)) < task.max_tokens == 24


@pytest.mark.parametrize("cost", [0.0, 0.01, 0.05])
def test_a_right_answer_is_a_success_whatever_was_asked_before(cost: float) -> None:
    task = StopVote(cap=16, cost=cost)
    right, wrong = f"A{task.hidden_bit(0)}", f"A{1 - task.hidden_bit(0)}"
    success = success_of(task)
    assert success is not None
    for asked in range(17):
        assert torch.tensor(task.reward(0, "T0" * asked + right)) >= success
        assert not torch.tensor(task.reward(0, "T0" * asked + wrong)) >= success
    assert success_of(Sorting()) == 1.0
