"""Knights and knaves: one solution to each puzzle, found by trying all."""

from __future__ import annotations

import re
from itertools import product
from random import Random

import pytest

from tasks.knights import TASK


def reward(completion: str, i: int = 0) -> float:
    return TASK.verify(TASK.problems("test")[i], completion).reward


def test_a_partly_right_assignment_earns_nothing():
    gold = TASK.problems("test")[0].answer
    flipped = gold[:-1] + ("-" if gold[-1] == "+" else "+")
    assert reward(flipped) == 0.0
    assert reward(gold[:-2]) == 0.0
    assert reward("".join(re.findall("..", gold)[::-1])) == 0.0


def consistent_assignments(prompt: str) -> list[str]:
    """All of the 2ⁿ assignments in which exactly the knights' statements are true."""
    said = dict[str, tuple[str, str, str]]()
    for part in prompt.rstrip("?").split():
        statement = re.fullmatch(r"([A-J]):([A-J]?)(?:([+-])|([=#])([A-J]))", part)
        assert statement, part
        speaker, about, kind, relation, other = statement.groups()
        said[speaker] = (about or speaker, kind or relation, other or "")
    people = sorted(said)
    out = list[str]()
    for kinds in product((True, False), repeat=len(people)):
        knight = dict(zip(people, kinds, strict=True))
        true = dict[str, bool]()
        for speaker, (about, claim, other) in said.items():
            match claim:
                case "+":
                    true[speaker] = knight[about]
                case "-":
                    true[speaker] = not knight[about]
                case "=":
                    true[speaker] = knight[about] == knight[other]
                case _:
                    true[speaker] = knight[about] != knight[other]
        if true == knight:
            out.append("".join(p + ("+" if knight[p] else "-") for p in people))
    return out


@pytest.mark.parametrize("split", ["train", "test", "ood"])
def test_a_puzzle_has_exactly_one_solution_and_it_is_the_gold(split):
    for p in TASK.problems(split)[:50]:
        assert consistent_assignments(p.prompt) == ["".join(sorted(re.findall("..", p.answer)))], p


def test_the_count_of_solutions_can_find_a_puzzle_with_two():
    assert consistent_assignments("A:B+ B:A+?") == ["A+B+", "A-B-"]
    assert consistent_assignments("A:=B B:A+?") == ["A+B+"]
    assert consistent_assignments("A:#B B:B-?") == []


@pytest.mark.parametrize("split", ["train", "ood"])
def test_each_step_of_the_thought_follows_from_the_one_before(split):
    for p in TASK.problems(split)[:200]:
        said = dict(part.split(":") for part in p.prompt.rstrip("?").split())
        (opener,) = [claim for claim in said.values() if claim[0] in "=#"]
        thought = p.solution[1 : p.solution.index(">")]
        name, kind = opener[1], "+" if opener[0] == "=" else "-"
        assert thought[:2] == name + kind
        for about, claim, then in re.findall("(.)(.)(.)", thought[2:]):
            assert said[name] == about + claim
            assert then == ("+" if claim == kind else "-")
            name, kind = about, then


def test_the_answer_names_the_people_in_the_order_in_which_they_speak():
    for p in TASK.problems("test")[:100]:
        assert p.answer[::2] == "".join(re.findall("(.):", p.prompt))


def test_the_stated_chance_of_knights_is_that_of_a_coin_for_each_person():
    rng = Random(0)
    right = 0
    for p in TASK.problems("test"):
        people = p.answer[::2]
        right += sum(TASK.verify(p, "".join(a + rng.choice("+-") for a in people)).correct for _ in range(40))
    measured = right / (40 * 500)
    assert TASK.chance / 1.5 <= measured <= TASK.chance * 1.5, f"a guesser is right {measured:.4f} of the time"
