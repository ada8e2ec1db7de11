"""The curves: what is drawn, in which colours, and on which axes."""

import json
import re
from itertools import pairwise
from pathlib import Path

import pandas as pd
import pytest
from synthetic import ARMS, MORE, write_comparison

from reports.curves import BOX, LABEL_GAP, MOST_POINTS, frontier, panels, series, spread, ticks
from reports.html import render
from reports.load import Run, load
from reports.looks import DASHES, DOTS, METHODS, SPARE, looks
from reports.quantities import AXES


def test_ticks_cover_the_range_and_labels_do_not_overlap():
    assert ticks(0, 0.58, 6) == pytest.approx([0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    assert ticks(3, 3)[-1] >= 3
    heights = spread([500, 500, 501, 990, 1000])
    assert all(b - a >= LABEL_GAP for a, b in pairwise(sorted(heights)))
    assert max(heights) <= BOX


def test_a_curve_is_the_mean_and_range_over_seeds_as_far_as_all_of_them_went():
    one = Run("a", Path(), "done", metrics=pd.DataFrame({"step": [0, 10, 20], "reward": [0.0, 0.5, 1.0]}))
    two = Run("b", Path(), "done", metrics=pd.DataFrame({"step": [0, 16], "reward": [0.2, 1.0]}))
    found = series("arm", [one, two], "reward", AXES[0])
    assert found
    assert list(found.x) == [0, 10, 16]
    assert list(found.mean) == pytest.approx([0.1, 0.6, 0.9])
    assert list(found.low) == pytest.approx([0.0, 0.5, 0.8])
    assert list(found.high) == pytest.approx([0.2, 0.7, 1.0])


def test_a_long_noisy_curve_is_thinned_to_means_and_holes_are_passed_over():
    steps = list(range(1000))
    values = [float("nan") if step % 7 == 3 else 0.5 + 0.1 * (-1) ** step for step in steps]
    run = Run("a", Path(), "done", metrics=pd.DataFrame({"step": steps, "reward": values}))
    found = series("arm", [run], "reward", AXES[0])
    assert found
    assert len(found.x) == MOST_POINTS
    assert abs(found.mean - 0.5).max() < 0.03
    assert series("arm", [run], "entropy", AXES[0]) is None


def test_a_method_has_one_colour_and_its_arms_differ_in_their_dashes(tmp_path):
    arms = ("base", "grpo", "sft", "rejection", "sft-grpo", "grpo-random-reward", "ppo")
    write_comparison(tmp_path, arms=arms, seeds=1, states={("ppo", 0): "missing"})
    config = next((tmp_path / "runs").glob("*-rejection-*")) / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"method": "new"}))
    drawn = {label: look.classes for label, look in looks(load(tmp_path, "demo")).items()}
    assert drawn == {
        "base": "c0 solid",
        "grpo": "c5 solid",
        "sft": "c1 solid",
        "rejection": "c7 solid",
        "sft-grpo": "c5 dashed",
        "grpo-random-reward": "c5 dotted",
        "ppo": "c3 solid",
    }
    page = render(tmp_path, "demo")
    assert re.search(r'class="line c5 dashed" d="[^"]*" data-label="sft-grpo"', page)
    style = re.search(r"<style>(.*?)</style>", page, re.DOTALL)
    assert style
    assert all(f".{name} {{ --" in style[1] for name in (*DASHES, *DOTS, *(f"c{n}" for n in range(len(METHODS) + SPARE))))


def test_arms_of_one_method_look_different(tmp_path):
    write_comparison(tmp_path, arms=(*ARMS, *MORE), seeds=1)
    drawn = [look.classes for look in looks(load(tmp_path, "demo")).values()]
    assert len(set(drawn)) == len(drawn)


def evaluated(label, kl, score):
    metrics = pd.DataFrame({"step": range(len(kl)), "eval/kl": kl, "eval/pass@1": score})
    return Run(label, Path(), "done", label=label, method=label, seed=0, metrics=metrics)


def test_the_way_through_kl_is_the_mean_over_seeds_at_each_evaluation_they_share(tmp_path):
    write_comparison(tmp_path, arms=("base", "grpo", "sft"), seeds=1)
    drawn = looks(load(tmp_path, "demo"))
    runs = [
        evaluated("base", [0.0], [0.2]),
        evaluated("grpo", [0.0, float("nan"), 0.2, 0.1], [0.2, float("nan"), 0.6, 0.5]),
        evaluated("grpo", [0.0, 0.6, 0.3], [0.4, 0.8, 0.7]),
        evaluated("sft", [0.0], [0.2]),
    ]
    panel = frontier(runs, drawn)
    assert panel
    grpo, sft = panel.plots[0].lines
    assert panel.plots[0].end == pytest.approx(0.4)
    assert grpo.path == "M0 625L1000 125L707 250"
    assert (grpo.stop, grpo.height, grpo.said) == (70.7, 25.0, "60.0% at KL 0.200")
    assert (sft.stop, sft.height) == (0, 75)
    assert panel.base == pytest.approx(75)
    assert frontier(runs[:1] + runs[3:], drawn) is None


def test_the_learned_reward_is_drawn_against_the_verifiers_with_what_the_model_is_worth(tmp_path):
    write_comparison(tmp_path, arms=("base", "ppo", "ppo-learned"), seeds=2)
    comparison = load(tmp_path, "demo")
    (panel,) = [panel for panel in panels(comparison.runs, looks(comparison)) if ": " in panel.quantity.title]
    assert panel.quantity.title == "ppo-learned: learned and true reward"
    assert "512 pairs" in panel.quantity.caption
    assert "84.2% rightly, with a calibration error of 0.063" in panel.quantity.caption
    for plot in panel.plots:
        assert [(line.label, line.look.classes) for line in plot.lines] == [
            ("reward model", "c3 solid"),
            ("verifier", "c0 dashed"),
        ]
        learned, verified = plot.lines
        assert learned.height < verified.height


def test_preferences_show_whether_the_chosen_ones_lose_likelihood_too(tmp_path):
    write_comparison(tmp_path, arms=("base", "dpo", "dpo-online", "sft"), seeds=2)
    comparison = load(tmp_path, "demo")
    titles = [panel.quantity.title for panel in panels(comparison.runs, looks(comparison))]
    assert titles[-3:] == ["Preference accuracy, %", "dpo: chosen and rejected", "dpo-online: chosen and rejected"]


def test_a_critic_worse_than_nothing_does_not_stretch_the_axis(tmp_path):
    write_comparison(tmp_path, arms=("base", "ppo"), seeds=1)
    comparison = load(tmp_path, "demo")
    panel = panels(comparison.runs, looks(comparison))[-1]
    assert panel.quantity.column == "explained_variance"
    assert (panel.low, panel.high) == (-1, 1)
    assert panel.plots[0].lines[0].path.split("L")[0].split()[-1] == str(BOX)
