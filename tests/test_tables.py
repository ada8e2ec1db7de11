"""Paper tables: what is measured in them is what the runs hold, what is published is whole, and an empty cell says why."""

import csv
import io
import json
import shutil
import tomllib
from math import exp

import pytest
from synthetic import STARTS, TROUBLE, write_architectures, write_comparison

from reports.load import ReportError, load
from reports.stats import maj_at_k, paired, pass_at_k, t_interval
from reports.tables import FORMATS, STYLES, render, sentences
from reports.tables_cells import PUBLISHED, UNITS

ARMS = ("base", "sft", "distill", "grpo", "sft-grpo")
GC = {
    "over": "tokens", "tokens": 400, "mean": 0.1, "low": -1.5, "high": 1.5, "up": 0.75, "down": -0.25, "share_up": 0.5,
    "share_down": 0.375, "zero": 0.125, "error": 2e-7,
}  # fmt: skip


def table(root, style):
    return STYLES[style](load(root, "demo"))


def blocks(root, style):
    """{title: {row: {column: cell}}} of what was measured."""
    return {
        block.title: {row[0].text: dict(zip(block.header[1:], row[1:], strict=True)) for row in block.rows}
        for block in table(root, style).blocks
        if not block.source
    }


def folders(root, label, seeds=3, task="arithmetic", model="tiny"):
    return [next((root / "runs").glob(f"{task}-{label}-{model}-s{seed}-*")) for seed in range(seeds)]


def last(folder):
    """The last value under each name of metrics.jsonl, read without the code under test."""
    values = {}
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        values |= json.loads(line)
    return values


def sampled(folder):
    """{problem: [row]} of the test split, greedy ones left out."""
    found = {}
    for line in next(folder.glob("evals/*-test.jsonl")).read_text().splitlines():
        row = json.loads(line)
        if not row["greedy"]:
            found.setdefault(row["problem"], []).append(row)
    return found


def rewrite(folder, name, change):
    path = next(folder.glob(name))
    path.write_text("".join(json.dumps(change(json.loads(line))) + "\n" for line in path.read_text().splitlines()))


def seen(interval, cell):
    return (cell.value, cell.low, cell.high, cell.n) == pytest.approx((interval.mean, interval.low, interval.high, interval.n))


@pytest.mark.parametrize("style", tomllib.loads(PUBLISHED.read_text()))
def test_a_published_block_says_its_source_and_version_and_has_a_unit_for_every_number(style):
    assert style in STYLES
    for block in tomllib.loads(PUBLISHED.read_text())[style]:
        assert block["source"]
        assert block["version"]
        assert isinstance(block["second_hand"], bool)
        assert set(block["units"]) <= {"text", *UNITS}
        for number, (_, *values) in enumerate(block["rows"]):
            assert len(values) == len(block["header"]) - 1
            units = block["units"] if "by" not in block else [block["units"][number]] * len(values)
            for value, unit in zip(values, units, strict=True):
                assert value == "" or isinstance(value, str) == (unit == "text")
                assert unit != "share" or value == "" or 0 < value < 1


def test_published_numbers_stand_before_measured_ones_with_their_source_and_second_hand_ones_with_a_mark(tmp_path):
    write_comparison(tmp_path, arms=ARMS)
    page = render(table(tmp_path, "deepseekmath"), "md")
    assert "| GRPO | 88.2 | 51.7 | 79.6 | 88.8 |" in page
    assert "DeepSeekMath, Table 5, arXiv:2402.03300v3" in page
    assert page.index("Published: ") < page.index("Measured: ")
    assert "second-hand" not in page
    assert "second-hand" in render(table(tmp_path, "cost"), "md")


def test_a_style_without_published_numbers_says_that_nothing_is_quoted(tmp_path):
    write_comparison(tmp_path, arms=("base", "sft"))
    assert "nothing is quoted" in table(tmp_path, "passk").notes[0]


def test_method_by_benchmark_holds_the_t_interval_of_what_the_runs_logged(tmp_path):
    write_comparison(tmp_path, arms=ARMS, tasks=("arithmetic", "people"))
    rows = blocks(tmp_path, "deepseekmath")["arithmetic, tiny"]
    finals = [last(folder) for folder in folders(tmp_path, "grpo")]
    for column, name in {"in: arithmetic": "test/pass@1", "in: arithmetic, greedy": "test/greedy",
                         "out: arithmetic, harder": "ood/pass@1", "out: people": "other/people/pass@1"}.items():  # fmt: skip
        assert seen(t_interval(final[name] for final in finals), rows["grpo"][column])
    assert list(rows) == list(ARMS)


def test_distillation_against_rl_is_paired_by_seed_over_the_seeds_that_both_finished(tmp_path):
    write_comparison(tmp_path, arms=(*ARMS, "grpo-random-reward"), states={("grpo", 1): "failed"})
    rows = blocks(tmp_path, "r1-distill")["arithmetic, tiny"]
    taught, reinforced = (
        {seed: last(folder)["test/pass@1"] for seed, folder in enumerate(folders(tmp_path, label)) if (folder / "DONE").exists()}
        for label in ("distill", "grpo")
    )
    cell = rows["distill − grpo"]["arithmetic pass@1"]
    assert cell.n == 2
    assert seen(paired(taught, reinforced), cell)
    assert "grpo-random-reward" not in rows


def test_a_stage_shows_the_arms_before_it_and_what_they_cost(tmp_path):
    write_comparison(tmp_path, arms=ARMS)
    rows = blocks(tmp_path, "r1-stages")["arithmetic, tiny"]
    assert f"{STARTS['sft-grpo']} → sft-grpo" in rows
    assert rows["sft → sft-grpo"]["FLOPs before"].value == 1.6e12
    assert rows["grpo"]["FLOPs before"].value == 0


def test_a_gain_is_divided_by_what_its_own_seed_spent(tmp_path):
    write_comparison(tmp_path, arms=ARMS)
    rows = blocks(tmp_path, "cost")["arithmetic, tiny"]
    pairs = [(last(mine), last(base)) for mine, base in zip(*(folders(tmp_path, x) for x in ("grpo", "base")), strict=True)]
    gains = [100 * (mine["test/pass@1"] - base["test/pass@1"]) for mine, base in pairs]
    per_tera = t_interval(g / (mine["budget/flops"] / 1e12) for g, (mine, _) in zip(gains, pairs, strict=True))
    assert seen(per_tera, rows["grpo"]["points a TFLOP"])
    assert rows["base"]["points a TFLOP"].reason == "the base is what gains are measured from"
    assert rows["grpo"]["peak bytes"].value == 3.2e8


def test_pass_and_maj_at_k_are_means_over_problems_then_over_seeds(tmp_path):
    write_comparison(tmp_path, arms=("base", "grpo"))
    found = blocks(tmp_path, "passk")
    assert list(found["pass@k, arithmetic, tiny"]["grpo"]) == ["seeds", "pass@1", "pass@2"]
    seeds = [sampled(folder).values() for folder in folders(tmp_path, "grpo")]
    passed = [[pass_at_k(2, sum(row["reward"] == 1 for row in rows), 2) for rows in seed] for seed in seeds]
    voted = [[maj_at_k([r["answer"] for r in rows], [r["reward"] == 1 for r in rows], 2) for rows in seed] for seed in seeds]
    for name, scores in (("pass", passed), ("maj", voted)):
        cell = found[f"{name}@k, arithmetic, tiny"]["grpo"][f"{name}@2"]
        assert seen(t_interval(sum(seed) / len(seed) for seed in scores), cell)


def test_more_samples_than_a_majority_can_be_counted_of_leave_the_cell_empty(tmp_path):
    write_comparison(tmp_path, arms=("base",), seeds=1, problems=1)
    path = next(folders(tmp_path, "base", 1)[0].glob("evals/*-test.jsonl"))
    row = json.loads(path.read_text().splitlines()[-1])
    path.write_text("".join(json.dumps(row | {"sample": number}) + "\n" for number in range(1001)))
    found = blocks(tmp_path, "passk")
    assert "1000" in found["maj@k, arithmetic, tiny"]["base"]["maj@2"].reason
    assert found["pass@k, arithmetic, tiny"]["base"]["pass@1001"].n == 1


def test_the_paradigm_holds_what_each_run_recorded_on_its_first_batch(tmp_path):
    write_comparison(tmp_path, arms=("base", "sft", "grpo"))
    for seed, folder in enumerate(folders(tmp_path, "grpo")):
        said = GC | {"up": 0.5 + seed / 8, "low": -1.0 - seed, "error": 1e-7 * (seed + 1)}
        (folder / "paradigm.json").write_text(json.dumps(said))
    for folder in folders(tmp_path, "sft"):
        (folder / "paradigm.json").write_text(json.dumps(GC | {"down": None, "over": "vocabulary", "error": None}))
    rows = blocks(tmp_path, "paradigm")["arithmetic, tiny"]
    assert seen(t_interval([0.5, 0.625, 0.75]), rows["grpo"]["GC where positive"])
    assert rows["grpo"]["lowest GC"].value == -3.0
    assert rows["grpo"]["error"].value == pytest.approx(3e-7)
    assert rows["grpo"]["data source"].text == "π_θ"
    assert rows["sft"]["GC where negative"].reason == "none in the first batch of 3 of 3 runs"
    assert rows["sft"]["over"].text == "vocabulary"
    assert rows["sft"]["error"].reason
    assert rows["base"]["GC where positive"].reason == "no paradigm.json: it takes no step"


def test_a_coefficient_that_cannot_be_read_is_an_empty_cell_that_names_the_file(tmp_path):
    write_comparison(tmp_path, arms=("sft", "grpo"), seeds=1)
    (folders(tmp_path, "grpo", 1)[0] / "paradigm.json").write_text(json.dumps(GC))
    broken = folders(tmp_path, "sft", 1)[0]
    (broken / "paradigm.json").write_text("{")
    reason = blocks(tmp_path, "paradigm")["arithmetic, tiny"]["sft"]["GC where positive"].reason
    assert reason.startswith(f"{broken.name}/paradigm.json: not JSON")


def test_architectures_are_columns_under_what_they_cost(tmp_path):
    write_architectures(tmp_path)
    found = blocks(tmp_path, "architecture")
    assert found["bases"]["KV bytes per token"]["moe"].text == "1,024"
    assert found["bases"]["parameters"]["moe"].text == "240,000"
    assert found["bases"]["its difference to dense"]["moe"].value < 0
    assert found["bases"]["its difference to dense"]["dense"].reason == "differences are from it"
    scores = [last(folder)["test/pass@1"] for folder in folders(tmp_path, "grpo", model="moe")]
    assert seen(t_interval(scores), found["pass@1 on arithmetic"]["grpo"]["moe"])


def test_perplexity_is_exp_of_the_mean_loss_and_a_model_without_experts_has_no_violation(tmp_path):
    write_architectures(tmp_path, models=("dense", "moe"))
    rows = blocks(tmp_path, "balancing")["bases"]
    bases = [json.loads((folder / "base.json").read_text()) for folder in folders(tmp_path, "base", model="moe")]
    loss = t_interval(base["held_out"] for base in bases)
    cell = rows["moe"]["perplexity"]
    assert (cell.value, cell.low, cell.high) == pytest.approx((exp(loss.mean), exp(loss.low), exp(loss.high)))
    assert seen(t_interval(base["max_violation"] for base in bases), rows["moe"]["MaxVio"])
    assert rows["dense"]["MaxVio"].reason == "no experts"


@pytest.mark.parametrize(
    ("style", "needs"),
    [
        ("paradigm", "recorded its gradient coefficient in paradigm.json"),
        ("r1-distill", "finished arms of `distill` and of one of grpo, ppo"),
        ("r1-stages", "an arm that starts from another"),
        ("architecture", "two or more models"),
        ("balancing", "a mixture of experts"),
    ],
)
def test_a_style_that_the_comparison_cannot_fill_says_what_it_needs(tmp_path, style, needs):
    write_comparison(tmp_path, arms=("base", "sft", "grpo"), seeds=1)
    with pytest.raises(ReportError, match=needs) as refused:
        table(tmp_path, style)
    assert str(refused.value).startswith(f"comparisons/demo: --style {style} needs ")


@pytest.mark.parametrize("style", STYLES)
def test_no_style_makes_a_table_of_no_finished_run(tmp_path, style):
    write_comparison(tmp_path, arms=ARMS, seeds=1, states={(arm, 0): "unfinished" for arm in ARMS})
    with pytest.raises(ReportError, match=f"--style {style} needs"):
        table(tmp_path, style)


def test_one_sample_a_problem_makes_no_curve_over_k(tmp_path):
    write_comparison(tmp_path, arms=("base",), seeds=1)
    path = next(folders(tmp_path, "base", 1)[0].glob("evals/*-test.jsonl"))
    path.write_text("".join(line + "\n" for line in path.read_text().splitlines() if json.loads(line)["sample"] == 0))
    with pytest.raises(ReportError, match="two or more samples of each problem, and the fewest are 1"):
        table(tmp_path, "passk")


def test_an_arm_that_failed_stands_there_with_its_reason(tmp_path):
    write_comparison(tmp_path, arms=("base", "grpo"), states={("grpo", seed): "failed" for seed in range(3)})
    found = table(tmp_path, "deepseekmath")
    row = blocks(tmp_path, "deepseekmath")["arithmetic, tiny"]["grpo"]
    assert row["seeds"].text == "0/3 (3 failed)"
    assert row["in: arithmetic"].reason == "3 of 3 runs failed: FloatingPointError: loss is nan"
    page = render(found, "md")
    assert "| grpo | 0/3 (3 failed) | – [1] |" in page
    assert "- [1] 3 of 3 runs failed: FloatingPointError: loss is nan" in page


@pytest.mark.parametrize(
    ("seeds", "said"), [(1, "one seed gives no interval"), (4, "fewer than 5, so preliminary"), (5, "5 seeds.")]
)
def test_how_many_seeds_there_are_is_said(tmp_path, seeds, said):
    write_comparison(tmp_path, arms=("base", "sft"), seeds=seeds)
    found = table(tmp_path, "deepseekmath")
    assert any(said in note for note in found.notes)
    assert any("preliminary" in note for note in found.notes) == (seeds < 5)
    lines = [line for line in render(found, "md").splitlines() if line.startswith("| sft | ")]
    assert ["±" in line for line in lines] == [seeds > 1]


def test_csv_and_json_hold_every_cell_in_full_precision_with_its_bounds(tmp_path):
    write_comparison(tmp_path, arms=ARMS, states=TROUBLE)
    found = table(tmp_path, "deepseekmath")
    lines = list(csv.DictReader(io.StringIO(render(found, "csv"))))
    said = json.loads(render(found, "json"))
    assert len(lines) == sum(len(row) - 1 for block in found.blocks for row in block.rows)
    for line in lines:
        block = next(block for block in said["blocks"] if block["title"] == line["block"])
        row = next(row for row in block["rows"] if next(iter(row.values())) == line["row"])
        assert all(
            str(row[line["column"]][key] or "") == (line[key] if line[key] != "0.0" else "") for key in ("value", "low", "high")
        )
    scores = [last(folder)["test/pass@1"] for folder in folders(tmp_path, "grpo")]
    (mine,) = [line for line in lines if (line["row"], line["column"], line["source"]) == ("grpo", "in: arithmetic", "")]
    interval = t_interval(scores)
    assert tuple(float(mine[key]) for key in ("value", "low", "high", "n")) == (interval.mean, interval.low, interval.high, 3)


def test_the_same_runs_make_the_same_bytes_wherever_they_lie(tmp_path):
    write_comparison(tmp_path / "one", arms=ARMS, states=TROUBLE)
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    one, two = load(tmp_path / "one", "demo"), load(tmp_path / "two", "demo")
    for style in ("deepseekmath", "cost", "passk", "r1-stages"):
        for form in FORMATS:
            assert render(STYLES[style](one), form) == render(STYLES[style](two), form)


def test_every_style_has_a_sentence_that_ends():
    assert all(said.endswith(".") and len(said) > 20 for said in sentences().values())


def test_the_command_prints_a_table_or_writes_it(tmp_path, cli):
    write_comparison(tmp_path, arms=("base", "sft"), seeds=1)
    asked = ("table", "demo", "--style", "deepseekmath", "--root", tmp_path)
    code, out, err = cli(*asked)
    assert (code, err) == (0, "")
    assert out == render(table(tmp_path, "deepseekmath"), "md")
    path = tmp_path / "new" / "table.tex"
    code, out, _ = cli(*asked, "--format", "latex", "-o", path)
    assert (code, out.strip()) == (0, str(path))
    assert path.read_text() == render(table(tmp_path, "deepseekmath"), "latex")


@pytest.mark.parametrize(
    ("name", "style", "form", "said"),
    [
        ("demo", "balancng", "md", "no style named 'balancng' (did you mean 'balancing'?)"),
        ("demo", "balancing", "md", "--style balancing needs a base that is a mixture of experts"),
        ("demo", "cost", "html", "no format named 'html'"),
        ("dmo", "cost", "md", "no comparison named 'dmo' (did you mean 'demo'?)"),
    ],
)
def test_what_cannot_be_printed_is_one_line_and_exit_code_2(tmp_path, cli, name, style, form, said):
    write_comparison(tmp_path, arms=("base", "sft"), seeds=1)
    code, out, err = cli("table", name, "--style", style, "--format", form, "--root", tmp_path)
    assert (code, out) == (2, "")
    assert said in err
    assert err.count("\n") == 1


def test_styles_are_listed_with_a_sentence_each(cli):
    code, out, _ = cli("list", "tables")
    assert code == 0
    assert [line for line in out.splitlines() if not line.startswith(" ")] == list(STYLES)
    assert all(sentence in out for sentence in sentences().values())
