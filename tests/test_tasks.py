"""The three task families: what is right, what is not, and which problems there are."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from functools import cache
from itertools import product
from pathlib import Path
from statistics import mean
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness import plugins
from harness.task import Problem, Split, Task

ROOT = Path(__file__).parents[1]
NAMES = ("arithmetic", "dialect", "knights", "programs", "sums")
SPLITS: tuple[Split, ...] = get_args(Split)
EVERY_TASK = pytest.mark.parametrize("name", NAMES)

FULL_WIDTH = str.maketrans({chr(c): chr(c + 0xFEE0) for c in range(ord("!"), ord("~") + 1)})
ARABIC = str.maketrans("0123456789", "٠١٢٣٤٥٦٧٨٩")
CIRCLED = str.maketrans("0123456789", "⓪①②③④⑤⑥⑦⑧⑨")


@cache
def task(name: str) -> Task:
    return plugins.find("tasks", name)


def problem(name: str, i: int = 0) -> Problem:
    return task(name).problems("test")[i]


def reward(name: str, completion: str, i: int = 0) -> float:
    return task(name).verify(problem(name, i), completion).reward


@cache
def train_prompts(name: str) -> list[str]:
    return [p.prompt for p in task(name).problems("train")]


def on_every_task(*cases: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(("name", "case"), list(product(NAMES, cases)))


@EVERY_TASK
@pytest.mark.parametrize("split", SPLITS)
def test_the_gold_answer_and_the_worked_solution_are_right(name, split):
    for p in task(name).problems(split)[:30]:
        for completion in (p.answer, p.solution):
            verdict = task(name).judge(p, completion, truncated=False)
            assert verdict.correct, (p, completion, verdict)
            assert verdict.answer == p.answer
            assert verdict.reason == "correct"
            assert not verdict.truncated


# {gold}, {other}, {prompt} and {thought} are filled in from the problem; {other} is another problem's answer.
WRONG = {
    "empty": "",
    "blank": " \n\t ",
    "garbage": "%$&!?@",
    "null byte": "\0",
    "surrogate": "\ud800",
    "another problem's gold": "{other}",
    "another problem's gold after the right thought": "<{thought}>{other}",
    "prompt echo": "{prompt}",
    "prompt echo before the answer": "{prompt}{gold}",
    "True": "True",
    "None": "None",
    "hedge with or": "{other} or {gold}",
    "hedge with a comma": "{gold}, {other}",
    "junk after the answer": "{gold} is what I found",
    "punctuation after the answer": "{gold}!",
    "prose before the answer": "The answer is {gold}",
    "an opening bracket after the answer": "{gold}<",
    "two answers": "{gold} {gold}",
    "two answers on two lines": "{gold}\n{gold}",
    "answer then solution": "{gold}<{thought}>{gold}",
    "unclosed thought": "<{thought}",
    "unclosed thought with the answer": "<{thought}{gold}",
    "answer only inside the thought": "<{gold}>",
    "answer inside the thought, another after it": "<{gold}>{other}",
    "nested thought": "<<{thought}>>{gold}",
    "second thought": "<{thought}><{thought}>{gold}",
    "second thought, unclosed": "<{thought}><{gold}",
    "closing bracket without a thought": "{thought}>{gold}",
    "space before the thought": " <{thought}>{gold}",
    "end token in the text": "{gold}<eos>",
    "very long garbage": "7" * 1_000_000,
    "answer after a very long text": "0" * 1_000_000 + " {gold}",
    "answer before a very long text": "{gold}" + " " * 1_000_000 + "x",
    "very long thought that never ends": "<" + "1+1=2," * 200_000,
    "many brackets": "<>" * 100_000 + "{gold}",
    "deep nesting": "(" * 1_500 + "{gold}" + ")" * 1_500,
}


@on_every_task(*WRONG)
def test_an_answer_that_is_not_the_gold_alone_is_wrong_and_the_verdict_says_why(name, case):
    for i in (0, 3):
        gold = problem(name, i)
        thought = gold.solution[1 : gold.solution.index(">")]
        fields = {"gold": gold.answer, "other": problem(name, i + 1).answer, "prompt": gold.prompt, "thought": thought}
        completion = re.sub(r"{(gold|other|prompt|thought)}", lambda m, fields=fields: fields[m[1]], WRONG[case])
        verdict = task(name).judge(gold, completion, truncated=False)
        assert verdict.reward == 0.0, verdict
        assert verdict.reason not in ("", "correct")
        assert len(verdict.reason) < 500
        assert not verdict.truncated


@EVERY_TASK
@pytest.mark.parametrize("alphabet", [FULL_WIDTH, ARABIC, CIRCLED], ids=["full width", "arabic", "circled"])
def test_unicode_look_alikes_of_the_answer_are_wrong(name, alphabet):
    for i in range(5):
        written = problem(name, i).answer.translate(alphabet)
        if written != problem(name, i).answer:
            assert reward(name, written, i) == 0.0


@pytest.mark.parametrize(
    ("name", "written"), [("arithmetic", "0{}"), ("arithmetic", "+{}"), ("arithmetic", "{}.0"), ("knights", "{} ")]
)
def test_the_exact_tasks_accept_no_other_spelling(name, written):
    assert reward(name, written.format(problem(name).answer)) == 0.0


@EVERY_TASK
def test_the_extracted_answer_is_what_follows_the_thought(name):
    verdict = task(name).verify(problem(name), f"<what {problem(name).answer} was>17 geese")
    assert (verdict.reward, verdict.answer) == (0.0, "17 geese")
    assert task(name).verify(problem(name), "<never").answer is None


@pytest.mark.parametrize("name", ["arithmetic", "knights"])
@settings(deadline=None)
@given(text=st.text() | st.text("<>0123456789+-ABCDEFGHIJ ", max_size=40))
def test_any_text_is_judged_and_only_the_gold_is_right(name, text):
    verdict = task(name).judge(problem(name), text, truncated=False)
    answer = text.partition(">")[2] if text.startswith("<") else text
    assert verdict.reward == float(answer == problem(name).answer)
    assert verdict.reason


@EVERY_TASK
def test_a_truncated_completion_has_no_reward_whatever_it_says_and_the_verifier_is_not_asked(name):
    def unasked(*asked: object):
        raise AssertionError(asked)

    verdict = replace(task(name), verify=unasked).judge(problem(name), problem(name).answer, truncated=True)
    assert (verdict.reward, verdict.truncated, verdict.correct, verdict.answer) == (0.0, True, False, None)
    assert "truncated" in verdict.reason


@EVERY_TASK
def test_a_verifier_that_breaks_raises_through_judge(name):
    def broken(*_: object):
        raise OSError("the verifier is broken")

    with pytest.raises(OSError, match="broken"):
        replace(task(name), verify=broken).judge(problem(name), problem(name).answer, truncated=False)


# splits


@EVERY_TASK
def test_the_held_out_splits_are_distinct_and_share_no_prompt_with_each_other(name):
    prompts = {split: [p.prompt for p in task(name).problems(split)] for split in ("validation", "test", "ood")}
    assert len(prompts["test"]) >= 500
    for split, asked in prompts.items():
        assert len(asked) == len(set(asked)), split
    assert sum(map(len, prompts.values())) == len({prompt for asked in prompts.values() for prompt in asked})


@EVERY_TASK
@pytest.mark.slow
@pytest.mark.parametrize("split", ["validation", "test", "ood"])
def test_no_held_out_prompt_is_trained_on(name, split):
    trained = set(train_prompts(name))
    assert [p.prompt for p in task(name).problems(split) if p.prompt in trained] == []


@EVERY_TASK
@pytest.mark.slow
def test_train_has_at_least_20_000_distinct_prompts(name):
    assert len(set(train_prompts(name))) >= 20_000


@EVERY_TASK
def test_a_problems_id_is_its_tasks_name_and_the_hash_of_its_prompt(name):
    for split in SPLITS:
        for p in task(name).problems(split)[:50]:
            assert p.id == f"{name}-{hashlib.sha256(p.prompt.encode()).hexdigest()[:12]}"


@EVERY_TASK
def test_every_problem_has_a_band_and_ood_asks_for_longer_solutions(name):
    problems = task(name).problems
    assert all(p.meta["band"] for split in SPLITS for p in problems(split)[:50])
    assert mean(len(p.solution) for p in problems("ood")[:200]) > mean(len(p.solution) for p in problems("train")[:200])


DIGEST = """
import hashlib, json, sys
from harness import plugins
out = {}
for name in ("arithmetic", "dialect", "knights", "programs", "sums"):
    for split in ("ood", "test", "validation", "train"):
        problems = plugins.find("tasks", name).problems(split)
        for i in (499, 17, 0) if split != "train" else (49_999, 499, 17, 0):
            p = problems[i]
            text = repr((p.id, p.prompt, p.answer, p.solution, sorted(p.meta.items())))
            out[f"{name}/{split}/{i}"] = hashlib.sha256(text.encode()).hexdigest()
print(json.dumps(out))
"""


@pytest.mark.slow
def test_problem_i_is_the_same_in_every_process_whatever_was_asked_before():
    here = dict[str, str]()
    for name in NAMES:
        for split in SPLITS:
            problems = task(name).problems(split)
            asked = (0, 17, 499) if split != "train" else (3, 0, 17, 499, 49_999)
            for i in asked:
                p = problems[i]
                text = repr((p.id, p.prompt, p.answer, p.solution, sorted(p.meta.items())))
                here[f"{name}/{split}/{i}"] = hashlib.sha256(text.encode()).hexdigest()
    environment = os.environ | {"PYTHONHASHSEED": "7"}
    there = json.loads(subprocess.run([sys.executable, "-c", DIGEST], env=environment, capture_output=True, check=True).stdout)
    assert there == {key: digest for key, digest in here.items() if not key.endswith("train/3")}


@EVERY_TASK
def test_a_split_is_indexed_like_a_list(name):
    train = task(name).problems("train")
    assert train[-1] == train[len(train) - 1]
    assert train[5:8] == [train[5], train[6], train[7]]
    with pytest.raises(IndexError):
        train[len(train)]


@EVERY_TASK
@pytest.mark.parametrize("split", SPLITS)
def test_worked_solutions_think_a_little_and_fit_the_length_limit_with_their_end(name, split):
    tokens = [len(p.solution) + 1 for p in task(name).problems(split)[:500]]
    assert max(tokens) <= min(80, task(name).max_new_tokens)
    assert mean(tokens) >= 15
    for p in task(name).problems(split)[:500]:
        assert p.solution.endswith(f">{p.answer}")
        assert (p.prompt + p.solution).isascii()
        assert (p.prompt + p.solution).isprintable()


@EVERY_TASK
def test_importing_and_using_a_task_imports_no_torch(name):
    code = f"""
import sys
from tasks.{name} import TASK
p = TASK.problems("train")[0]
assert TASK.judge(p, p.solution, truncated=False).correct
print([m for m in ("torch", "transformers", "wandb", "numpy", "pandas") if m in sys.modules])
"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True).stdout.strip() == "[]"


def test_every_task_of_the_tree_is_held_to_this():
    ours = {p.stem for p in (ROOT / "tasks").glob("[!_]*.py")}
    assert ours == set(NAMES) == {task(name).name for name in NAMES}
