"""The panels that tell models apart: what they say, of how many bases, and what they make of files that are missing or broken."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from synthetic import EXPERTS, FACTS, LAYERS, write_architectures, write_comparison

from reports.architectures import architectures, held
from reports.bases import left
from reports.finding import finding
from reports.heat import COLLAPSED, experts, legend
from reports.html import render, write
from reports.leaderboard import leaderboards
from reports.load import load
from reports.numbers import count, more_nats, nats, said_seeds, span, times
from reports.provenance import setups
from reports.stats import paired, t_interval, wilson

pytestmark = pytest.mark.slow  # all together half a minute

CHROMIUM = Path("/usr/bin/chromium")


def shown(root):
    comparison = load(root, "demo")
    found = architectures(comparison, leaderboards(comparison))
    assert found
    return found


def said(root, identity, name="base.json"):
    return json.loads((root / "runs" / identity / name).read_text())


def change(root, identity, name="base.json", **changes):
    path = root / "runs" / identity / name
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_runs_of_before_have_no_panel_of_architectures(tmp_path):
    write_comparison(tmp_path, arms=("base", "sft"), seeds=1)
    assert architectures(load(tmp_path, "demo"), []) is None
    page = render(tmp_path, "demo")
    assert 'id="architectures"' not in page
    assert "MaxVio" not in page


def test_one_dense_model_has_none_and_one_with_experts_has_its_maps(tmp_path):
    write_architectures(tmp_path / "dense", models=("dense",))
    assert 'id="architectures"' not in render(tmp_path / "dense", "demo")
    write_architectures(tmp_path / "moe", models=("moe",))
    page = render(tmp_path / "moe", "demo")
    assert page.index('id="s0"') < page.index('id="architectures"') < page.index('id="arms"')
    assert "Δ loss" not in page
    assert "Method × architecture" not in page
    assert "Whom the routers ask" in page


def test_a_row_is_the_mean_over_bases_and_its_difference_is_paired_by_seed(tmp_path):
    identities = write_architectures(tmp_path)
    losses = {(model, seed): said(tmp_path, i)["held_out"]
              for i in identities for model in FACTS for seed in range(3) if f"-base-{model}-s{seed}-" in i}  # fmt: skip
    rows = {row.model: row for row in shown(tmp_path).rows}
    assert list(rows) == list(FACTS)
    mine, first = ({seed: losses[model, seed] for seed in range(3)} for model in ("moe", "dense"))
    assert rows["moe"].loss == t_interval(mine.values())
    assert rows["moe"].delta == paired(mine, first)
    assert rows["dense"].delta.n == 0
    assert rows["moe"].facts["parameters"] == 240_000
    assert rows["moe"].flops_ratio == pytest.approx(91 / 90)
    assert rows["moe"].experts == LAYERS * EXPERTS


def test_a_base_that_the_seeds_share_counts_once_and_has_no_interval(tmp_path):
    write_architectures(tmp_path, shared=True)
    found = shown(tmp_path)
    assert [row.loss.n for row in found.rows] == [1] * len(FACTS)
    assert found.bases == "1 base a model (seed 0), too few for an interval"
    assert found.drafts[0].drafted == 400
    assert "too few seeds in common" in found.lead


def test_losses_on_other_families_are_not_subtracted(tmp_path):
    for identity in write_architectures(tmp_path, models=("dense", "moe")):
        if "-moe-" in identity:
            change(tmp_path, identity, families={"programs": 0.3})
    assert shown(tmp_path).rows[1].delta.n == 0


def test_what_is_held_equal_is_computed(tmp_path):
    identities = write_architectures(tmp_path, models=("dense", "moe"), seeds=1)
    assert "Held equal to within 2%: active parameters, FLOPs per token, pretraining tokens" in shown(tmp_path).held
    for identity in identities:
        if "-moe-" in identity:
            change(tmp_path, identity, tokens=300_000)
    assert "Not equal: pretraining tokens (up to ×1.50)." in held(shown(tmp_path).rows)


def test_the_lead_says_no_more_than_the_interval(tmp_path):
    identities = write_architectures(tmp_path, models=("dense", "moe"))
    assert re.fullmatch(
        r"moe has the lowest .* nats, below dense's \(difference −0.0\d\d, 95% CI .*, 3 seeds\)\.", shown(tmp_path).lead
    )
    for identity in identities:
        if "-moe-" in identity:
            change(tmp_path, identity, held_out=0.2 if "-s0-" in identity else 0.8)
    assert ", not distinguishable from dense's (difference" in shown(tmp_path).lead


def test_pass_at_1_has_a_row_for_each_model_and_a_column_for_each_arm(tmp_path):
    write_architectures(tmp_path, states={("grpo", 2): "failed"})
    (reached,) = shown(tmp_path).reached
    assert reached.arms == ("base", "sft", "grpo")
    assert [model for model, _ in reached.rows] == list(FACTS)
    assert [cell.n for cell in reached.rows[0][1]] == [3, 3, 2]


def test_experts_of_one_base_keep_their_order_and_those_of_several_are_ordered_by_load(tmp_path):
    identities = write_architectures(tmp_path / "one", models=("moe",), shared=True)
    (one,) = experts(left(load(tmp_path / "one", "demo")))
    first = said(tmp_path / "one", identities[0])["load"]
    assert not one.ordered
    assert [family.title for family in one.families] == list(first)
    assert np.allclose(one.families[0].load, first["arithmetic"])
    assert one.families[0].violation == pytest.approx(np.max(first["arithmetic"]) - 1)
    write_architectures(tmp_path / "three", models=("moe",))
    (three,) = experts(left(load(tmp_path / "three", "demo")))
    assert three.ordered
    assert (np.diff(np.mean([family.load for family in three.families], axis=0), axis=1) <= 1e-9).all()
    assert [(pair.arm, pair.seeds) for pair in three.pairs] == [("sft", (0, 1, 2)), ("grpo", (0, 1, 2))]
    assert three.pairs[0].maps[0].load.mean() == pytest.approx(1)
    assert [len(rows) for _, rows in three.table] == [LAYERS] * (2 + 2 * 2)
    assert "place 1: " in three.families[0].cells[0].text


def test_the_map_after_is_of_the_last_step_and_of_the_runs_own_task(tmp_path):
    identity = write_architectures(tmp_path, models=("moe",), arms=("sft",), seeds=1)[0]
    path = tmp_path / "runs" / identity / "experts.jsonl"
    even = [[1.0] * EXPERTS] * LAYERS
    path.write_text(path.read_text() + json.dumps({"step": 120, "task": "arithmetic", "load": even}) + '\n{"step": 13')
    (found,) = experts(left(load(tmp_path, "demo")))
    assert found.pairs[0].maps[1].load.tolist() == even
    assert found.pairs[0].maps[1].violation == 0


def test_the_colour_is_even_at_1_and_full_at_4_and_at_a_quarter():
    cells = {text: (cell.kind, cell.strength) for text, cell in legend()}
    assert cells == {
        "0": ("less-load gone", "1"),
        "0.25": ("less-load", "1"),
        "0.5": ("less-load", "0.5"),
        "1": ("more-load", "0"),
        "2": ("more-load", "0.5"),
        "4": ("more-load", "1"),
    }
    assert COLLAPSED == 0.1


def test_every_value_of_a_map_stands_in_a_title_and_in_the_table(tmp_path):
    identities = write_architectures(tmp_path, models=("moe",), arms=("base",), seeds=1)
    page = render(tmp_path, "demo")
    load_LE = said(tmp_path, identities[0])["load"]["knights"]
    for layer, row in enumerate(load_LE, start=1):
        for expert, value in enumerate(row, start=1):
            assert f"<title>layer {layer}, expert {expert}: {value:.2f}</title>" in page
            assert f"<td>{value:.2f}</td>" in page


def test_the_curves_have_a_line_for_each_model_with_experts_and_say_which_collapsed(tmp_path):
    write_architectures(tmp_path)
    pretraining, masked = shown(tmp_path).panels
    assert [line.label for line in pretraining.plots[0].lines] == ["moe", "moe-free"]
    assert "moe 0, moe-free 1 (collapsed)." in pretraining.quantity.caption
    assert "3 bases a model (seeds 0, 1, 2)" in masked.quantity.caption
    assert [text for _, text in masked.plots[0].x_ticks] == ["0", "1", "2", "3", "4"]
    assert all(line.band for line in masked.plots[0].lines)


def test_max_violation_is_a_learning_curve_where_it_was_logged(tmp_path):
    identities = write_architectures(tmp_path, models=("moe",), seeds=2)
    assert "MaxVio of the experts" not in render(tmp_path, "demo")
    path = tmp_path / "runs" / identities[-1] / "metrics.jsonl"
    path.write_text(path.read_text() + "".join(json.dumps({"step": s, "eval/max_violation": 0.5}) + "\n" for s in (0, 100)))
    assert "MaxVio of the experts" in render(tmp_path, "demo")


def test_drafts_are_pooled_over_bases_with_wilsons_interval(tmp_path):
    write_architectures(tmp_path, models=("dense", "mtp"))
    (draft,) = shown(tmp_path).drafts
    assert (draft.model, draft.task, draft.seeds) == ("mtp", "arithmetic", (0, 1, 2))
    assert draft.acceptance == wilson(903, 1200)
    assert (draft.per_round, draft.speed, draft.different, draft.ties) == (1.6, 1.5, 6, 3)
    assert "×1.50" in render(tmp_path, "demo")


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("base.json", '{"parameters": 1', "not JSON"),
        ("base.json", "[]", "not a JSON object"),
        ("base.json", '{"load": {"knights": [[1, 2], [3]]}}', "not a number for each layer and expert"),
        ("base.json", '{"load": {"knights": [[1, NaN]]}}', "not a number for each layer and expert"),
        ("base.json", '{"masked": {"few": 1}}', "few"),
        ("base.json", '{"curve": [3]}', "a row of the curve is not an object"),
        ("base.json", '{"families": 3}', "families is not an object"),
        ("experts.jsonl", '{"step\n{"step": 1}\n', "line 1 is not JSON"),
        ("experts.jsonl", '{"step": 0, "task": "arithmetic"}\n{"step": 9, "task": "arithmetic"}\n', "a load that is not"),
        ("drafts.json", '{"arithmetic": {"drafted": 3}}', "counts that are missing"),
        ("drafts.json", '{"arithmetic": 3}', "arithmetic is not an object"),
    ],
)
def test_a_broken_file_is_a_notice_and_counts_as_absent(tmp_path, name, content, told):
    identity = write_architectures(tmp_path, models=("mtp", "moe"), seeds=1)[0 if name == "drafts.json" else 4]
    (tmp_path / "runs" / identity / name).write_text(content)
    if name == "base.json":
        for other in ("base", "grpo"):
            next((tmp_path / "runs").glob(f"*-{other}-moe-*")).joinpath(name).write_text(content)
    page = render(tmp_path, "demo")
    assert f"{identity}/{name}: " in page
    assert told in page
    assert str(tmp_path) not in page


@pytest.mark.slow
@pytest.mark.parametrize("content", [None, "{", '{"parameters": 5, "active": 5, "flops_per_token": 10}'])
def test_a_model_of_which_little_is_known_does_not_stop_the_others(tmp_path, content):
    for identity in write_architectures(tmp_path):
        path = tmp_path / "runs" / identity / "base.json"
        if "-dense-" in identity:
            path.unlink() if content is None else path.write_text(content)
    found = shown(tmp_path)
    assert ("dense" in [row.model for row in found.rows]) == (content is not None and content != "{")
    assert bool(found.notices) == (content == "{")
    assert "Whom the routers ask" in render(tmp_path, "demo")


def test_seeds_that_did_not_end_are_missing_from_the_maps_and_not_from_the_bases(tmp_path):
    write_architectures(tmp_path, states={("grpo", 1): "failed", ("sft", 0): "missing", ("base", 2): "unfinished"})
    found = shown(tmp_path)
    assert [row.loss.n for row in found.rows] == [3] * len(FACTS)
    seeds = {pair.arm: pair.seeds for pair in found.experts[0].pairs}
    assert seeds == {"sft": (1, 2), "grpo": (0, 2)}
    assert "2 finished seeds" in found.experts[0].caption


@pytest.mark.slow
def test_of_many_models_the_finding_counts_instead_of_naming_each(tmp_path):
    write_architectures(tmp_path, seeds=5)
    one = finding(leaderboards(load(tmp_path, "demo")))
    assert re.fullmatch(
        r"On arithmetic, of 4 models, the best arm is grpo with 4 \(dense, moe, moe-free, mtp\); "
        r"it is distinguishably above its base with 4 of 4\.",
        one,
    )
    write_architectures(tmp_path / "one", seeds=1)
    assert "on too few seeds to tell it from its base" in finding(leaderboards(load(tmp_path / "one", "demo")))


def test_models_whose_arms_are_alike_are_set_up_together(tmp_path):
    identities = write_architectures(tmp_path, models=("dense", "moe", "mtp"), seeds=1)
    (setup,) = setups(load(tmp_path, "demo"))
    assert setup.models == ("dense", "moe", "mtp")
    assert dict(setup.shared)["base"] == "dense-0, moe-0, mtp-0"
    change(tmp_path, identities[-1], "config.json", options={"beta": 1})
    assert [setup.models for setup in setups(load(tmp_path, "demo"))] == [("dense", "moe"), ("mtp",)]


@pytest.mark.slow
def test_the_same_directories_give_the_same_page_of_architectures(tmp_path):
    for root in (tmp_path / "a", tmp_path / "b"):
        write_architectures(root, seeds=2)
    assert render(tmp_path / "a", "demo") == render(tmp_path / "b", "demo")


def test_counts_losses_and_ratios_are_written_briefly():
    assert [count(value) for value in (0.0, 5.0, 1 / 3, 12.5, float("nan"))] == ["0", "5", "0.33", "12.5", "–"]
    assert [nats(value) for value in (0.7717, float("nan"))] == ["0.772", "–"]
    assert [more_nats(value) for value in (-0.0212, 0.0004, float("nan"))] == ["−0.021", "+0.000", "–"]
    assert [times(value) for value in (1.357, float("nan"))] == ["×1.36", "–"]
    assert [span(counts, "seed") for counts in ([], [1], [2, 2], [1, 3])] == ["no seed", "1 seed", "2 seeds", "1 to 3 seeds"]
    assert [said_seeds(seeds) for seeds in ((0,), (0, 2))] == ["seed 0", "seeds 0, 2"]


@pytest.mark.slow
@pytest.mark.parametrize(("size", "scheme"), [((1280, 900), "light"), ((390, 844), "dark")])
def test_a_browser_shows_the_panels_without_errors_or_sideways_scrolling(tmp_path, size, scheme):
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if not CHROMIUM.exists():
        pytest.skip(f"no {CHROMIUM}")
    write_architectures(tmp_path)
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": size[0], "height": size[1]}, color_scheme=scheme)
        said: list[str] = []
        tab.on("console", lambda message: said.append(message.text))
        tab.on("pageerror", lambda error: said.append(str(error)))
        tab.goto(write(tmp_path, "demo").as_uri())
        section = tab.locator("#architectures")
        assert section.locator(".plot:visible .x-name").all_inner_texts() == ["pretraining steps", "experts masked"]
        section.locator(".area").first.hover(position={"x": 60, "y": 60})
        assert "pretraining steps" in section.locator(".tip:visible").inner_text()
        section.locator("details:not(.data) > summary").first.click()
        assert section.locator("table.values").first.is_visible()
        paper, full = (
            section.locator(f".legend rect >> nth={n}").evaluate("r => getComputedStyle(r).fillOpacity") for n in (3, 5)
        )
        assert (paper, full) == ("0", "1")
        assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
        browser.close()
    assert said == []


def test_names_in_these_files_never_become_markup(tmp_path):
    for identity in write_architectures(tmp_path, models=("moe", "mtp"), seeds=1):
        if "-moe-" in identity:
            change(tmp_path, identity, load={"<img src=x>": [[1.0] * EXPERTS] * LAYERS})
        elif "-base-" in identity:
            drafts = said(tmp_path, identity, "drafts.json")["arithmetic"]
            change(tmp_path, identity, "drafts.json", **{"<b onclick=x>": drafts})
    page = render(tmp_path, "demo")
    assert "<img" not in page
    assert "<b onclick" not in page
    assert "&lt;img src=x&gt;" in page
    assert not re.search(r'\sstyle="', page)
