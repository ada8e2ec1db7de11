"""Whether a thought holds, which of its steps are said again, and in which language it is."""

from __future__ import annotations

import pytest

from harness import plugins
from harness.task import Problem, Verdict


def judged(name: str, prompt: str, answer: str, solution: str, completion: str, **meta: str) -> Verdict:
    return plugins.find("tasks", name).judge(Problem("p", prompt, answer, solution, meta), completion, truncated=False)


def sum_of(completion: str) -> Verdict:
    return judged("arithmetic", "47+25=", "72", "<7+5=12,4+2+1=7>72", completion)


@pytest.mark.parametrize("thought", ["7+5=12,4+2+1=7", "5+7=12,1+2+4=7", "h+f=bc,e+c+b=h", "7+5=12,7+5=12,4+2+1=7"])
def test_terms_in_any_order_letters_for_digits_and_repeated_steps_hold(thought):
    assert sum_of(f"<{thought}>72").trace is True


@pytest.mark.parametrize(
    "thought",
    ["7+5=12", "4+2+1=7,7+5=12", "7+5=13,4+2+1=7", "7+5=12,4+2+1=7,1=1", "7-5=12,4+2+1=7", "", "7+5=12,4+2=7", "7*5=12,4+2+1=7"],
)
def test_steps_that_are_missing_wrong_too_many_or_out_of_order_do_not(thought):
    assert sum_of(f"<{thought}>72").trace is False


def test_a_thought_is_judged_apart_from_its_answer():
    assert (sum_of("<7+5=12,4+2+1=7>73").correct, sum_of("<7+5=12,4+2+1=7>73").trace) == (False, True)
    assert (sum_of("<9+9=99>72").correct, sum_of("<9+9=99>72").trace) == (True, False)


@pytest.mark.parametrize("completion", ["72", "<7+5=12,4+2+1=7", "", "7+5=12>72"])
def test_where_nothing_is_thought_or_the_thought_never_ends_there_is_nothing_to_judge(completion):
    verdict = sum_of(completion)
    assert (verdict.trace, verdict.formed, verdict.rechecks, verdict.mixed) == (None, False, 0, False)


def test_what_is_subtracted_may_stand_in_any_order_but_not_what_it_is_subtracted_from():
    def difference(thought: str) -> bool | None:
        return judged("arithmetic", "53-28=", "25", "<13-8=5,5-2-1=2>25", f"<{thought}>25").trace

    assert difference("13-8=5,5-1-2=2") is True
    assert difference("8-13=5,5-2-1=2") is False


def test_factors_may_stand_in_any_order_and_a_step_that_is_there_twice_must_be_taken_twice():
    def product(thought: str) -> tuple[bool | None, int]:
        verdict = judged("arithmetic", "11*2=", "22", "<1*2=2,1*2=2>22", f"<{thought}>22")
        return verdict.trace, verdict.rechecks

    assert product("2*1=2,1*2=2") == (True, 0)
    assert product("1*2=2") == (False, 0)
    assert product("1*2=2,1*2=2,1*2=2") == (True, 1)


@pytest.mark.parametrize(("completion", "formed"), [("<1>2", True), ("<>2", False), ("<1>", False), ("2", False)])
def test_the_format_is_a_thought_and_then_an_answer_whatever_they_say(completion, formed):
    assert sum_of(completion).formed is formed


@pytest.mark.parametrize(("thought", "mixed"), [("7+5=12", False), ("h+f=bc", False), ("7+f=12", True), ("x=7", False)])
def test_digits_and_letters_in_one_thought_are_two_languages(thought, mixed):
    assert sum_of(f"<{thought}>72").mixed is mixed


def test_rechecks_are_counted_in_a_thought_that_fails_too():
    assert sum_of("<7+5=13,7+5=13,7+5=13>72").rechecks == 2


def test_a_knights_thought_is_its_people_in_the_order_in_which_each_is_found():
    def found(thought: str) -> bool | None:
        return judged("knights", "B:=A A:E- E:B-?", "B-A+E-", "<A+E--B-+>B-A+E-", f"<{thought}>B-A+E-").trace

    assert found("A+E--B-+") is True
    assert found("A+A+E--B-+") is True
    assert found("A+B-+E--") is False
    assert found("A-E--B-+") is False


def test_a_programs_thought_is_its_differences_and_what_gives_the_program_away():
    def found(thought: str) -> bool | None:
        return judged("programs", "0:5 1:8 2:11 4:17 8:29?", "3*x+5", "<3,3;3>3*x+5", f"<{thought}>3*x+5", inputs=(0, 1)).trace

    assert (found("3,3;3"), found("3,3;4"), found("3,3")) == (True, False, False)


def test_a_dialects_second_look_is_a_recheck_and_the_step_said_once_holds_as_well():
    solution = "<h+f=bc,h+f=bc,e+c+b=h>72"
    for completion, again in ((solution, 1), ("<h+f=bc,e+c+b=h>72", 0), ("<7+5=12,4+2+1=7>72", 0)):
        verdict = judged("dialect", "47+25=", "72", solution, completion, thought="7+5=12,4+2+1=7")
        assert (verdict.correct, verdict.trace, verdict.rechecks) == (True, True, again)
