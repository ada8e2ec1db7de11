"""Verdicts that are asked for while others are still sampled."""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest
from conftest import METHODS, config_of, open_run
from transformers import PreTrainedTokenizerFast

from harness import devices, engines, plugins
from harness import generate as sampler
from harness.evaluate import evaluate
from harness.generate import Samples
from harness.judging import judged
from harness.pretrain import character_tokenizer
from harness.task import Problem, Task, Verdict

TOKENIZER: PreTrainedTokenizerFast = character_tokenizer()
TEXTS = ["12", "3", "45"]
PROBLEMS = [Problem(text, f"{text}=", text, text) for text in TEXTS]
ROWS = [[*TOKENIZER(text, add_special_tokens=False)["input_ids"], TOKENIZER.eos_token_id] for text in TEXTS]
SAMPLES = Samples(ROWS, [[-1.0] * len(row) for row in ROWS], [True, True, False])


def task(verify, waits: bool) -> Task:
    return Task("t", "", lambda _: [], verify, 0.0, 8, waits)


def same(problem: Problem, completion: str) -> Verdict:
    return Verdict(float(completion == problem.answer), completion)


@pytest.mark.parametrize("waits", [False, True])
def test_verdicts_are_in_the_order_of_the_completions_whatever_the_order_they_ended_in(waits):
    def sample(heard):
        for i in (1, 2, 0):
            heard(i, SAMPLES.tokens[i], SAMPLES.ended[i])
        return SAMPLES

    y, texts, verdicts = judged(task(same, waits), PROBLEMS, TOKENIZER, sample)
    assert y is SAMPLES
    assert [texts[0], texts[1]] == TEXTS[:2]
    assert [v.answer for v in verdicts] == ["12", "3", None]
    assert [v.reward for v in verdicts] == [1.0, 1.0, 0.0]
    assert [v.truncated for v in verdicts] == [False, False, True]


def test_a_verifier_that_waits_is_asked_while_others_are_sampled():
    asked = threading.Event()

    def verify(problem, completion):
        asked.set()
        return same(problem, completion)

    def sample(heard):
        heard(0, SAMPLES.tokens[0], True)
        assert asked.wait(10)
        return Samples(*([x[0]] for x in (SAMPLES.tokens, SAMPLES.logp, SAMPLES.ended)))

    _, _, (verdict,) = judged(task(verify, waits=True), PROBLEMS[:1], TOKENIZER, sample)
    assert verdict.correct


def test_a_verifier_that_does_not_say_that_it_waits_is_asked_in_the_thread_that_asks():
    """One that is not ours may need it: a signal reaches no other."""
    threads = []

    def verify(problem, completion):
        threads.append(threading.current_thread())
        return same(problem, completion)

    judged(task(verify, waits=False), PROBLEMS, TOKENIZER, SAMPLES.tell)
    assert set(threads) == {threading.main_thread()}


@pytest.mark.parametrize("waits", [False, True])
def test_what_a_verifier_raises_is_raised_and_it_is_not_asked_again(waits):
    asked = []

    def verify(*_):
        asked.append(1)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        judged(task(verify, waits), PROBLEMS, TOKENIZER, SAMPLES.tell)
    assert asked == [1]


def test_what_a_verifier_raises_in_another_process_is_raised_here_too(monkeypatch):
    monkeypatch.setattr(devices, "gather", lambda share: [share, {2: ZeroDivisionError("there")}])

    def sample(heard):
        heard(0, SAMPLES.tokens[0], True)
        heard(1, SAMPLES.tokens[1], True)
        return SAMPLES

    with pytest.raises(ZeroDivisionError, match="there"):
        judged(task(same, waits=False), PROBLEMS, TOKENIZER, sample)


def test_programs_are_judged_while_others_are_sampled():
    assert plugins.find("tasks", "programs").waits


@pytest.mark.parametrize("what", ["rollouts", "evaluation"])
def test_rollouts_and_evaluations_ask_for_verdicts_before_all_is_sampled(root, tmp_path, monkeypatch, what):
    run = open_run(config_of(root, **METHODS["grpo"]), root, tmp_path / "run")
    asked, waited = threading.Event(), []

    class Patient(engines.Native):
        """Goes on with the rows that are left only when somebody has asked about those that are not."""

        def keep(self, rows):
            waited.append(asked.wait(10))
            super().keep(rows)

    def verify(_problem, completion):
        asked.set()
        return Verdict(0.0, completion)

    monkeypatch.setattr(sampler, "engine", Patient)
    run.task = replace(run.task, verify=verify, waits=True)
    problems = run.problems(16)
    if what == "rollouts":
        run.rollouts(problems, 4)
    else:
        evaluate(run, run.task, problems, 4, greedy=False)
    assert waited
    assert all(waited)


def test_where_sampling_is_interrupted_no_further_verdict_is_waited_for():
    begun, go_on, asked = threading.Event(), threading.Event(), []

    def verify(problem, completion):
        asked.append(problem.id)
        begun.set()
        assert go_on.wait(10)
        return same(problem, completion)

    def sample(heard):
        SAMPLES.tell(heard)
        assert begun.wait(10)
        threading.Timer(2, go_on.set).start()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        judged(task(verify, waits=True), PROBLEMS, TOKENIZER, sample)
    assert asked == ["12"]


@pytest.mark.parametrize("waits", [False, True])
def test_a_process_judges_what_it_hears_of_and_has_the_verdicts_of_all(waits, monkeypatch):
    asked = []

    def verify(problem, completion):
        asked.append(problem.id)
        return same(problem, completion)

    def sample(heard):
        heard(1, SAMPLES.tokens[1], True)
        return SAMPLES

    others = {0: ("12", Verdict(1.0, "of the other process")), 2: ("45", Verdict(0.0))}
    monkeypatch.setattr(devices, "gather", lambda share: [others, share])
    _, texts, verdicts = judged(task(verify, waits), PROBLEMS, TOKENIZER, sample)
    assert texts == TEXTS
    assert [v.answer for v in verdicts] == ["of the other process", "3", None]
    assert asked == ["3"]
