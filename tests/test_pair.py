"""Two runs side by side: the settings that differ, the paired interval over problems, and the problems that flipped."""

from __future__ import annotations

import json

import pytest
from synthetic import write_comparison

from harness import files
from reports.load import ReportError
from reports.pair import pair
from reports.stats import clustered


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs")
    write_comparison(folder, "made-up")
    return folder


def named(root, label, seed=0):
    return next(p.name for p in sorted((root / "runs").glob(f"*-{label}-*-s{seed}-*")))


def rows(root, run):
    path = max((root / "runs" / run / "evals").glob("*-test.jsonl"))
    return [row for row in files.read_jsonl(path) if not row.get("greedy")]


def test_the_difference_is_that_of_the_problems_that_both_were_asked(root):
    base, grpo = named(root, "base"), named(root, "grpo")
    found = pair(root, base, grpo)
    shares = []
    for run in (base, grpo):
        by_problem = {}
        for row in rows(root, run):
            by_problem.setdefault(row["problem"], []).append(row["reward"] == 1.0)
        shares.append({problem: sum(right) / len(right) for problem, right in by_problem.items()})
    assert found.difference == clustered(shares[1], shares[0])
    assert found.scores == pytest.approx(tuple(sum(s.values()) / len(s) for s in shares))
    changed = {p for p in shares[0] if p in shares[1] and shares[0][p] != shares[1][p]}
    assert {flip.problem for flip in (*found.gained, *found.lost)} == changed
    assert all(flip.after > flip.before for flip in found.gained)
    assert all(flip.after < flip.before for flip in found.lost)


def test_a_run_against_itself_differs_in_nothing(root):
    run = named(root, "grpo")
    found = pair(root, run, run)
    assert (found.settings, found.gained, found.lost, found.difference.mean) == ((), (), (), 0)


def test_every_setting_that_differs_is_named_and_no_other(root):
    found = pair(root, named(root, "base"), named(root, "grpo"))
    keys = [key for key, _, _ in found.settings]
    assert {"label", "method"} <= set(keys)
    assert "seed" not in keys
    assert all(before != after for _, before, after in found.settings)


def test_a_run_that_has_not_finished_and_runs_without_common_problems_are_refused(tmp_path):
    write_comparison(tmp_path, "made-up")
    base, grpo = named(tmp_path, "base"), named(tmp_path, "grpo")
    path = max((tmp_path / "runs" / grpo / "evals").glob("*-test.jsonl"))
    files.write(path, files.jsonl([row | {"problem": "x" + row["problem"]} for row in files.read_jsonl(path)]))
    with pytest.raises(ReportError, match="shares 0 problems of its test split"):
        pair(tmp_path, base, grpo)
    (tmp_path / "runs" / base / "DONE").unlink()
    with pytest.raises(ReportError, match="only finished runs can be compared"):
        pair(tmp_path, base, grpo)


def test_the_command_says_it_in_text_and_json_and_names_the_nearest_run(root, cli):
    base, grpo = named(root, "base"), named(root, "grpo")
    code, out, _ = cli("compare", base, grpo, "--root", root)
    assert code == 0
    assert "settings that differ" in out
    assert "paired over" in out
    code, out, _ = cli("compare", base, grpo, "--json", "--root", root)
    assert json.loads(out)["before"] == base
    code, _, err = cli("compare", base, grpo + "x", "--root", root)
    assert (code, f"did you mean {grpo!r}" in err) == (2, True)
