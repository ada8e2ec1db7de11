"""The benchmarks: what they share, and one of them from end to end."""

import inspect
import json
import subprocess
import sys
from itertools import count
from pathlib import Path

import pytest

from benchmarks import _side_by_side as side
from benchmarks import report, verifier
from harness import models

ROOT = Path(__file__).parents[1]
BENCHMARKS = sorted(p.stem for p in (ROOT / "benchmarks").glob("*.py") if not p.stem.startswith("_") and p.stem != "coverage")


def command(name, *arguments):
    return subprocess.run([sys.executable, "-m", f"benchmarks.{name}", *arguments], cwd=ROOT, capture_output=True, text=True)


def test_every_other_round_goes_backwards():
    assert list(side.orders(["a", "b", "c"], 3)) == [("a", "b", "c"), ("c", "b", "a"), ("a", "b", "c")]


def test_sides_take_turns_and_their_figures_stay_in_rounds(capsys):
    clock = count()
    measured = side.measure({"ours": lambda: {"at": next(clock)}, "theirs": lambda: {"at": next(clock)}}, 3)
    assert measured == {"ours": {"at": [0, 3, 4]}, "theirs": {"at": [1, 2, 5]}}
    out, err = capsys.readouterr()
    assert out == ""
    assert "round 2/3  theirs: at 2" in err


def test_the_ratio_is_of_sides_in_the_same_round():
    ratios = side.ratios([10.0, 2.0, 30.0], [5.0, 2.0, 10.0])
    assert ratios == [2.0, 1.0, 3.0]
    assert side.spread(ratios) == {"median": 2.0, "min": 1.0, "max": 3.0}


def test_the_second_side_is_compared_with_and_so_is_the_fastest():
    measured = {"ours": {"s": [1.0, 2.0, 4.0]}, "theirs": {"s": [3.0, 4.0, 4.0]}, "tuned": {"s": [2.0, 3.0, 2.0]}}
    facts = side.against(measured, "s", more=False)
    assert (facts["ratio"], facts["ratio_best"], facts["best"]) == (2.0, 1.5, "tuned")
    assert facts["ratio_rounds"] == {"median": 2.0, "min": 1.0, "max": 3.0}
    assert facts["ours"]["s"]["median"] == 2.0
    assert side.against(measured, "s")["ratio"] == 0.5
    assert list(facts["tried"]) == ["theirs", "tuned"]


def test_numbers_have_four_digits():
    assert [side.rounded(x) for x in (0.00123456, 1.23456, 123456.0)] == [0.001235, 1.235, 123500.0]


def test_a_report_is_one_line_of_json(capsys):
    side.report("name", 2, ratio=1.23456, ours={"median": 1.0}, best="β")
    out, err = capsys.readouterr()
    assert out.count("\n") == 1
    assert err == ""
    line = json.loads(out)
    assert (line["benchmark"], line["ratio"], line["best"]) == ("name", 1.235, "β")
    assert {"cpu", "cores", "threads", "used_by_others"} <= line["machine"].keys()
    assert {"python", "commit", "torch", "transformers", "trl"} <= line["versions"].keys()


def test_what_is_not_installed_is_asked_for_in_one_line(capsys):
    side.need("json")
    with pytest.raises(SystemExit) as end:
        side.need("json", "no_such_library")
    assert end.value.code == 4
    assert capsys.readouterr().err == "no_such_library is not installed; get it with: pip install --group bench\n"


@pytest.mark.parametrize("rounds", ["0", "-1", "x"])
def test_there_is_no_benchmark_without_a_round(rounds, capsys):
    with pytest.raises(SystemExit) as end:
        side.parser("").parse_args(["--pairs", rounds])
    assert end.value.code == 2
    assert "--pairs" in capsys.readouterr().err


def test_peak_memory_is_of_this_process_alone():
    code = f"import resource, sys\nfrom pathlib import Path\n{inspect.getsource(side.peak_mb)}\nprint(peak_mb())"
    held = bytearray(b"x") * (300 << 20)
    peak = float(subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout)
    assert len(held) / (1 << 20) <= side.peak_mb()
    assert 0 < peak < 300


def test_both_judges_of_programs_agree():
    from tasks import programs

    asked = list(verifier.completions(0, 10))
    assert len({(p.id, text) for p, text in asked}) == 10
    ours = [programs.verify(p, text).correct for p, text in asked]
    assert ours == [verifier.subprocess_verdict(p, text).correct for p, text in asked]
    assert sum(ours) == 6


def test_the_report_benchmark_writes_runs_that_a_report_can_read(tmp_path):
    from reports.load import load

    assert report.write_runs(tmp_path, 30) == 40
    comparison = load(tmp_path, report.NAME)
    assert comparison.count("done") == 40
    assert len(comparison.runs[1].evaluation("test")) == report.PROBLEMS * (report.SAMPLES + 1)


@pytest.mark.slow
@pytest.mark.parametrize("name", BENCHMARKS)
def test_help_says_what_is_measured(name):
    done = command(name, "--help")
    assert done.returncode == 0, done.stderr
    assert "\nratio" in done.stdout
    assert "--pairs" in done.stdout


def test_what_needs_a_pretrained_base_says_so(tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        side.pretrained(("mtp", "deepseek"), tmp_path)
    assert end.value.code == 4
    assert capsys.readouterr().err == f"no pretrained base under {tmp_path}: make one with bakeoff pretrain mtp\n"
    models.location("deepseek", tmp_path).mkdir(parents=True)
    assert list(side.pretrained(("mtp", "deepseek"), tmp_path)) == ["deepseek"]


@pytest.mark.slow
def test_a_benchmark_ends_with_its_line(tmp_path):
    done = command("rollout_vs_generate", "--pairs", "1", "--updates", "1", "--threads", "1", "--root", tmp_path)
    assert done.returncode == 0, done.stderr
    (text,) = done.stdout.splitlines()
    line = json.loads(text)
    assert line["ratio"] > 0
    assert line["model"]["weights"] == "random"
    for name in ("ours", "theirs"):
        assert 0 < line[name]["tokens_per_batch"]["median"] <= line["prompts"] * line["group"] * line["max_new_tokens"]


@pytest.mark.slow
def test_the_roofline_is_of_a_step_and_of_each_of_its_phases(tmp_path):
    done = command("roofline", "--pairs", "1", "--threads", "1", "--root", tmp_path)
    assert done.returncode == 0, done.stderr
    line = json.loads(done.stdout)
    assert 0 < line["ratio"] < 1
    assert all(0 < line["shares"][phase]["median"] < 1 for phase in ("sampling", "scoring", "training"))


@pytest.mark.slow
def test_judging_is_measured_of_an_evaluation_and_of_a_batch(tmp_path):
    done = command("judging", "--pairs", "1", "--root", tmp_path)
    assert done.returncode == 0, done.stderr
    line = json.loads(done.stdout)
    assert line["ratio"] > 0
    assert line["ratio_batch"] > 0
    for size in ("evaluation", "batch"):
        assert line[size]["ours"]["right"] == line[size]["theirs"]["right"]
