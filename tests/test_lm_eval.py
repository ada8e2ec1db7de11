"""lm-eval through the project's own sampler: the same completions, likelihoods and verdicts, and no random state changed."""

import json
import random
import socket
from dataclasses import asdict
from functools import partial
from math import exp

import numpy as np
import pytest
import tiny
import torch
from conftest import config_of, open_run

from harness import files, models
from harness.errors import MISSING, USAGE, BakeoffError
from harness.evaluate import evaluate
from harness.generate import generate
from harness.policy import Policy
from harness.task import Task, Verdict, problem
from tasks import arithmetic

pytest.importorskip("lm_eval", reason="lm-eval is not installed")

from lm_eval import evaluator
from lm_eval.api.instance import Instance

from harness import stock

PROMPTS = [problem("lenient", f"{i}+{i}=", "0", "0") for i in range(6)]
LENIENT = Task("lenient", "accepts whatever ended", lambda _: PROMPTS, lambda *_: Verdict(1.0), 1.0, 4)
EMPTY = Task("empty", "nothing to ask", lambda _: [], lambda *_: Verdict(0.0), 0.0, 4)
TEXTS = [("47+25=", "<7+5=12>72"), ("1+1=", "2"), ("A:B+", "A+B-"), ("0:5 1:8?", "3*x+5")]


def requests(kind, *arguments):
    return [Instance(request_type=kind, doc={}, arguments=one, idx=0, metadata=("made up", 0, 1)) for one in arguments]


def sampler(kind="moe", seed=0):
    return stock.Sampler(tiny.policy(kind, seed).frozen(), tiny.tokenizer())


def ids(text):
    return tiny.tokenizer()(text, add_special_tokens=False)["input_ids"]


def states():
    numpy = np.random.get_state()
    return random.getstate(), numpy[1].tolist(), numpy[2], torch.get_rng_state().tolist()


def smoke(pretrained):
    loaded, tokenizer = models.load(models.location("smoke", pretrained))
    return Policy(loaded, vocabulary=1 + max(tokenizer.get_vocab().values())).frozen(), tokenizer


@pytest.mark.slow
@pytest.mark.parametrize("family", ["arithmetic", "knights", "programs"])
def test_the_project_and_lm_eval_agree_on_two_hundred_problems(family, root, tmp_path):
    run = open_run(config_of(root, task=family), root, tmp_path / "run")
    problems = run.task.problems("test")[:200]
    _, lines = evaluate(run, run.task, problems, 1, greedy=True)
    native = {line["problem"]: line for line in lines if line["greedy"]}

    sampled = stock.Sampler(run.policy, run.tokenizer)
    results = evaluator.evaluate(sampled, stock.found([family], None), limit=200, bootstrap_iters=0)
    rows = results["samples"][family]
    assert [row["doc"]["problem"] for row in rows] == list(native)
    assert [row["resps"][0][0] for row in rows] == [line["completion"] for line in native.values()]
    assert [row["reward"] for row in rows] == [line["reward"] for line in native.values()]
    assert [bool(row["truncated"]) for row in rows] == [line["truncated"] for line in native.values()]
    assert len({row["resps"][0][0] for row in rows}) > 5

    found = stock.measure(run.policy, run.tokenizer, [family], 200)[family]
    assert found["problems"] == 200
    assert found["verdicts"] == {name: float(line["reward"] == 1.0) for name, line in native.items()}
    assert found["scores"]["greedy"]["score"] == sum(found["verdicts"].values()) / 200


def test_a_completion_that_was_cut_off_has_no_answer_for_lm_eval_either():
    lm = sampler("mtp")
    prompts = [lm.tok_encode(p.prompt) for p in PROMPTS]
    limits = LENIENT.max_new_tokens, lm.tokenizer.eos_token_id, lm.tokenizer.pad_token_id
    ended = generate(lm.policy, prompts, 1, None, *limits).ended
    assert not all(ended)
    found = stock.measure(lm.policy, lm.tokenizer, ["test_lm_eval:LENIENT"])["test_lm_eval:LENIENT"]
    assert list(found["verdicts"].values()) == [float(x) for x in ended]
    assert found["scores"]["truncated"]["score"] == 1 - sum(ended) / len(ended)


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_likelihoods_are_the_policys_own(kind):
    lm = sampler(kind)
    found = lm.loglikelihood(requests("loglikelihood", *TEXTS), disable_tqdm=True)
    for (context, continuation), (logp, _) in zip(TEXTS, found, strict=True):
        tokens = torch.tensor([ids(context) + ids(continuation)])
        own = lm.policy.logp(tokens)[0, -len(ids(continuation)) :].sum()
        assert logp == pytest.approx(float(own), abs=1e-4)


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_what_the_sampler_decodes_is_greedy_and_nothing_else_is(kind):
    lm = sampler(kind)
    texts = lm.generate_until(requests("generate_until", *[(context, {"max_gen_toks": 5, "until": []}) for context, _ in TEXTS]))
    own = [(context, text) for (context, _), text in zip(TEXTS, texts, strict=True)]
    other = [(context, ("7" if text[0] == "8" else "8") + text[1:]) for context, text in own]
    found = lm.loglikelihood(requests("loglikelihood", *own, *other), disable_tqdm=True)
    assert [greedy for _, greedy in found] == [True] * len(own) + [False] * len(other)


def test_a_context_that_is_too_long_loses_its_start_and_a_continuation_that_is_too_long_is_refused():
    lm = sampler()
    lm.max_length = 8
    (long,) = lm.loglikelihood(requests("loglikelihood", ("1+2+3+4+5+6=", "21")), disable_tqdm=True)
    (cut,) = lm.loglikelihood(requests("loglikelihood", ("+4+5+6=", "21")), disable_tqdm=True)
    assert long == pytest.approx(cut, abs=1e-5)
    with pytest.raises(BakeoffError, match="12 tokens is longer than the model's 8"):
        lm.loglikelihood(requests("loglikelihood", ("1=", "1+2+3+4+5+6=")), disable_tqdm=True)


def test_a_whole_text_is_scored_token_by_token_once():
    lm = sampler()
    text = "1+2+3+4+5+6+7="
    start, tokens = [lm.prefix_token_id], ids(text)
    (whole,) = lm.loglikelihood_rolling(requests("loglikelihood_rolling", (text,)))
    assert whole == pytest.approx(float(lm.policy.logp(torch.tensor([start + tokens])).sum()), abs=1e-4)
    lm.max_length = 5
    (windows,) = lm.loglikelihood_rolling(requests("loglikelihood_rolling", (text,)))
    parts = [start + tokens[:5], tokens[4:10], tokens[9 - 1 : 14][-5 - 1 :]]
    own = [lm.policy.logp(torch.tensor([part]))[0] for part in parts]
    assert windows == pytest.approx(float(own[0].sum() + own[1].sum() + own[2][-4:].sum()), abs=1e-4)


def test_a_completion_ends_before_its_first_stop_sequence():
    lm = sampler()
    settings = {"max_gen_toks": 12, "until": []}
    (whole,) = lm.generate_until(requests("generate_until", ("47+25=", settings)))
    stop = whole[3]
    (short,) = lm.generate_until(requests("generate_until", ("47+25=", {**settings, "until": ["never", stop]})))
    assert not whole.ended
    assert short.ended
    assert short == whole[: whole.index(stop)]


def test_sampling_is_keyed_by_the_prompt_and_its_count():
    lm = sampler()
    settings = {"max_gen_toks": 12, "until": [], "do_sample": True, "temperature": 1.0}
    asked = [("47+25=", settings), ("1+1=", settings), ("47+25=", settings)]
    first = lm.generate_until(requests("generate_until", *asked))
    assert first[0] != first[2]
    assert lm.generate_until(requests("generate_until", *asked[::-1])) == [first[0], first[1], first[2]]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"do_sample": True, "temperature": 0.7}, "temperature = 0.7"),
        ({"do_sample": True, "temperature": 1.0, "top_p": 0.9}, "top_p = 0.9"),
        ({"num_beams": 4}, "num_beams = 4"),
        ({"max_gen_toks": 512}, "max_gen_toks = 512 leaves no room"),
    ],
)
def test_settings_that_the_sampler_has_not_are_refused_by_name(settings, said):
    lm = sampler()
    with pytest.raises(BakeoffError, match=said):
        lm.generate_until(requests("generate_until", ("1+1=", {"until": [], **settings})))


def test_the_random_state_is_what_it_was(begun):
    policy, tokenizer = smoke(begun)
    random.seed(3)
    np.random.seed(4)
    torch.manual_seed(5)
    before = states()
    stock.measure(policy, tokenizer, ["arithmetic"], 4)
    assert states() == before


@pytest.fixture
def local(tmp_path):
    """A folder of three stock tasks over a local file."""
    rows = [{"question": f"{a}+{b}=", "answer": str(a + b), "wrong": str(a + b + 1)} for a in (2, 5) for b in (3, 4, 6)]
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    shared = f"""
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}, cache_dir: {tmp_path / "cache"}}}
test_split: test
doc_to_text: "{{{{question}}}}"
target_delimiter: ""
"""
    folder = tmp_path / "local"
    folder.mkdir()
    (folder / "sums.yaml").write_text(f"""task: local_sums
tag: local_all
{shared}
doc_to_target: "{{{{answer}}}}"
output_type: generate_until
generation_kwargs: {{until: ["\\n"], max_gen_toks: 24}}
filter_list:
  - name: last
    filter:
      - {{function: regex, regex_pattern: "(\\\\d+)$", fallback: "none"}}
      - {{function: take_first}}
metric_list:
  - {{metric: exact_match, aggregation: mean, higher_is_better: true}}
""")
    (folder / "choice.yaml").write_text(f"""task: local_choice
{shared}
doc_to_target: 0
doc_to_choice: "{{{{[answer, wrong]}}}}"
output_type: multiple_choice
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
""")
    (folder / "text.yaml").write_text(f"""task: local_text
{shared.replace('"{{question}}"', '""')}
doc_to_target: "{{{{question}}}}{{{{answer}}}}"
output_type: loglikelihood_rolling
metric_list:
  - {{metric: byte_perplexity, aggregation: weighted_perplexity, higher_is_better: false}}
""")
    return folder, rows


def test_stock_tasks_over_a_local_file_run_offline(local, begun, monkeypatch):
    def refuse(*_):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    folder, rows = local
    policy, tokenizer = smoke(begun)
    lm = stock.Sampler(policy, tokenizer)
    found = stock.measure(policy, tokenizer, ["local_sums", "local_choice", "local_text"], include=folder)

    texts = lm.generate_until(
        requests("generate_until", *[(row["question"], {"until": ["\n"], "max_gen_toks": 24}) for row in rows])
    )
    last = [text.rstrip()[-len(row["answer"]) :] if text[-1:].isdigit() else "" for text, row in zip(texts, rows, strict=True)]
    right = [a == row["answer"] and not text[: -len(a)][-1:].isdigit() for a, row, text in zip(last, rows, texts, strict=True)]
    assert found["local_sums"]["scores"].keys() == {"exact_match,last"}
    assert found["local_sums"]["scores"]["exact_match,last"]["score"] == sum(right) / len(rows)
    assert "verdicts" not in found["local_sums"]

    def logp(row, name):
        answer = tokenizer(row[name], add_special_tokens=False)["input_ids"]
        tokens = tokenizer(row["question"], add_special_tokens=False)["input_ids"] + answer
        return float(policy.logp(torch.tensor([tokens]))[0, -len(answer) :].sum())

    likelier = [logp(row, "answer") > logp(row, "wrong") for row in rows]
    choice = found["local_choice"]["scores"]["acc"]
    assert choice["score"] == sum(likelier) / len(rows)
    assert choice["stderr"] == pytest.approx((choice["score"] * (1 - choice["score"]) / (len(rows) - 1)) ** 0.5)

    whole = [tokenizer(row["question"] + row["answer"], add_special_tokens=False)["input_ids"] for row in rows]
    total = sum(float(policy.logp(torch.tensor([[lm.prefix_token_id, *tokens]])).sum()) for tokens in whole)
    perplexity = found["local_text"]["scores"]["byte_perplexity"]
    assert perplexity["score"] == pytest.approx(exp(-total / sum(map(len, whole))), rel=1e-5)
    assert perplexity["stderr"] is None


def test_a_project_task_goes_to_another_model_of_lm_evals():
    from lm_eval.models.dummy import DummyLM

    class Gold(DummyLM):
        def generate_until(self, requests):
            return [gold[r.args[0]] for r in requests]

    gold = {p.prompt: p.answer for p in arithmetic.TASK.problems("test")}
    tasks = stock.found(["arithmetic"], None)
    results = evaluator.evaluate(Gold(), tasks, limit=5, bootstrap_iters=0)
    assert results["results"]["arithmetic"]["greedy,none"] == 1.0


def test_a_task_without_problems_is_refused():
    with pytest.raises(BakeoffError, match="test_lm_eval:EMPTY has no problems"):
        stock.found(["test_lm_eval:EMPTY"], None)


def test_a_task_whose_data_is_missing_is_one_line(local):
    folder, _ = local
    (folder.parent / "data.jsonl").unlink()
    with pytest.raises(BakeoffError, match="lm-eval cannot load local_sums") as error:
        stock.found(["local_sums"], folder)
    assert error.value.code == MISSING
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("wrong", "close"), [("arithmetc", "arithmetic"), ("local_sum", "local_sums")])
def test_an_unknown_task_is_refused_with_a_name_that_is_close(local, monkeypatch, wrong, close):
    monkeypatch.setattr(stock, "TaskManager", partial(without_defaults, stock.TaskManager))
    with pytest.raises(BakeoffError, match=f"no task named '{wrong}' .did you mean '{close}'") as error:
        stock.found([wrong], local[0])
    assert error.value.code == USAGE


def without_defaults(manager, include_path=None, **_):
    return manager(include_path=include_path, include_defaults=False)


@pytest.mark.slow
def test_tasks_of_lm_evals_own_are_known():
    with pytest.raises(BakeoffError, match=r"no task named 'hellaswg' .did you mean 'hellaswag'"):
        stock.found(["hellaswg"], None)


@pytest.fixture
def finished(root):
    """A root with one run that is done."""
    from harness.worker import execute

    config = config_of(root, method="base", steps=1, label="base", task="arithmetic")
    folder = root / "runs" / config.id
    files.write_json(folder / "config.json", asdict(config))
    assert execute(config, root, folder, "one", False, lambda: False) == 0
    return root, folder


@pytest.mark.slow
def test_the_command_keeps_what_it_finds_of_a_run_and_adds_to_it(finished, local, cli):
    root, folder = finished
    code, out, err = cli("lm-eval", folder.name, "--tasks", "arithmetic,knights", "--limit", 5, "--json", "--root", root)
    assert code == 0, err
    found = files.read_json(folder / "lm_eval.json")
    assert json.loads(out) == found
    assert [(name, one["problems"]) for name, one in found.items()] == [("arithmetic", 5), ("knights", 5)]
    more = ("--tasks", "local_choice, arithmetic", "--include", local[0], "--limit", 3)
    code, out, err = cli("lm-eval", folder.name, *more, "--root", root)
    assert code == 0, err
    assert str(folder / "lm_eval.json") in out
    again = files.read_json(folder / "lm_eval.json")
    assert [(name, one["problems"]) for name, one in again.items()] == [("arithmetic", 3), ("knights", 5), ("local_choice", 3)]
    assert again["knights"] == found["knights"]

    code, out, _ = cli("lm-eval", models.location("smoke", root), "--tasks", "arithmetic", "--limit", 3, "--root", root)
    assert code == 0
    assert "kept in" not in out


def test_what_cannot_be_evaluated_is_one_line_and_writes_nothing(begun, tmp_path, cli):
    weightless = tmp_path / "runs" / "arithmetic-arm-smoke-s0-12345678"
    config = config_of(begun, task="arithmetic")
    files.write_json(weightless / "config.json", asdict(config))
    for asked, said, expected in (
        ((weightless.name, "--tasks", "arithmetic"), "has no weights here", USAGE),
        (("arithmetic-arm-smoke-s1-12345678", "--tasks", "arithmetic"), f"did you mean '{weightless.name}'", USAGE),
        (("dense", "--tasks", "arithmetic"), "make it with bakeoff pretrain dense", USAGE),
        ((tmp_path / "runs", "--tasks", "arithmetic"), "no config.json", MISSING),
        (("dense", "--tasks", " , "), "--tasks names no task", USAGE),
        (("dense", "--tasks", "arithmetic", "--limit", "0"), "--limit", USAGE),
        (("dense", "--tasks", "arithmetic", "--include", tmp_path / "none"), "--include", USAGE),
        (("dense",), "--tasks", USAGE),
    ):
        code, out, err = cli("lm-eval", *asked, "--root", tmp_path)
        assert (code, out, err.count("\n")) == (expected, "", 1), err
        assert said in err
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["config.json"]
