"""The table of claims says what `bakeoff claims` says, with the interval of each part at its own confidence."""

import json
import shutil

import pytest
from synthetic import write_comparison
from test_tables import blocks, table
from test_tables_latex import compiled

from reports.claims import verdicts
from reports.load import ReportError, load
from reports.tables import render

CLAIMS = """
[claims.verifier]
text = "RL with a verifier raises pass@1 over its start and over a coin"
source = "DeepSeekMath, Table 5"
parts = [
    { arm = "grpo", against = "base", above = 0.02 },
    { arm = "grpo", against = "grpo-random-reward", above = 0.02 },
]

[claims.ahead]
text = "DPO is ahead of GRPO"
source = "DPO, Figure 2"
parts = [{ arm = "dpo", against = "grpo", above = 0.0 }]

[claims.absent]
text = "PPO is ahead of GRPO"
source = "nowhere"
parts = [{ arm = "ppo", against = "grpo", above = 0.0 }]
"""


@pytest.fixture
def claimed(tmp_path):
    write_comparison(tmp_path, arms=("base", "dpo", "grpo", "grpo-random-reward"), seeds=5)
    path = tmp_path / "comparisons" / "demo" / "comparison.toml"
    path.write_text(path.read_text() + CLAIMS)
    return tmp_path


def test_each_part_of_a_claim_is_a_row_with_its_interval_margin_and_confidence(claimed):
    rows = blocks(claimed, "claims")["claims"]
    said = {verdict.claim: verdict for verdict in verdicts(load(claimed, "demo"))}
    assert list(rows) == ["verifier, 1", "verifier, 2", "ahead", "absent"]
    for number, part in enumerate(said["verifier"].parts, start=1):
        row = rows[f"verifier, {number}"]
        assert (row["measured"].value, row["measured"].low, row["measured"].high) == (
            part.interval.mean,
            part.interval.low,
            part.interval.high,
        )
        assert row["confidence"].value == part.confidence > 0.95
        assert row["asked"].text == "above 0.02"
    assert {name: row["verdict"].text for name, row in rows.items()} == {
        "verifier, 1": "PASS",
        "verifier, 2": "PASS",
        "ahead": "FAIL",
        "absent": "NOT TESTABLE",
    }


def test_a_claim_that_cannot_be_tested_says_why_and_invents_no_interval(claimed):
    row = blocks(claimed, "claims")["claims"]["absent"]
    assert "ppo" in row["measured"].reason
    assert row["measured"].n == 0
    assert row["measured"].reason in render(table(claimed, "claims"), "md")


def test_a_comparison_without_claims_has_no_table_of_them(tmp_path):
    write_comparison(tmp_path, arms=("base", "grpo"), seeds=1)
    with pytest.raises(ReportError, match=r"--style claims needs claims: \[claims.NAME\] in its file"):
        table(tmp_path, "claims")


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
def test_claims_compile_in_latex(claimed):
    compiled(claimed, render(table(claimed, "claims"), "latex"))


def test_intervals_of_claims_are_not_called_95_percent(claimed):
    page = render(table(claimed, "claims"), "md")
    assert "95%" not in page
    assert "Holm" in page
    assert "RL with a verifier raises pass@1 over its start and over a coin" in page
    said = json.loads(render(table(claimed, "claims"), "json"))
    assert said["blocks"][0]["rows"][2]["verdict"]["value"] == "FAIL"
