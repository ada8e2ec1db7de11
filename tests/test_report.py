"""From run directories to the leaderboard, the finding and the page."""

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pandas as pd
import pytest
from synthetic import ARMS, CARDS, HOSTILE, MORE, STARTS, write_comparison

from reports.curves import BOX, LABEL_GAP, MOST_POINTS, frontier, panels, series, spread, ticks
from reports.escape import pieces, plain
from reports.finding import finding
from reports.html import render, write
from reports.leaderboard import leaderboards, records, text
from reports.load import ReportError, Run, load
from reports.looks import DASHES, DOTS, METHODS, SPARE, looks
from reports.numbers import points, si, tick
from reports.provenance import CHOICES, cards, choices, settings
from reports.quantities import AXES

PANELS = 7 + 1 + 3  # quantities, an arm with a reward model, three with preferences
CHROMIUM = Path("/usr/bin/chromium")
TROUBLE = {("dpo", 1): "failed", ("ppo", 2): "missing", ("sft", 2): "unfinished"}


def board_of(root, **written):
    write_comparison(root, **written)
    return leaderboards(load(root, "demo"))


def test_runs_that_did_not_end_are_counted_and_named_never_dropped(tmp_path):
    identities = write_comparison(tmp_path, states=TROUBLE)
    comparison = load(tmp_path, "demo")
    assert [run.id for run in comparison.runs] == identities
    assert {s: comparison.count(s) for s in ("done", "failed", "unfinished", "missing")} == {
        "done": 18,
        "failed": 1,
        "unfinished": 1,
        "missing": 1,
    }
    rows = {row["arm"]: row for row in records(leaderboards(comparison)[0].frame)}
    assert (rows["dpo"]["done"], rows["dpo"]["asked"], rows["dpo"]["failed"]) == (2, 3, 1)
    assert (rows["ppo"]["done"], rows["ppo"]["asked"], rows["ppo"]["absent"]) == (2, 3, 1)
    page = render(tmp_path, "demo")
    for run in comparison.runs:
        assert run.id in page
    assert "FloatingPointError: loss is nan" in page
    assert "neither DONE nor FAILED" in page
    assert "no run directory" in page


def test_an_arm_of_which_nothing_started_is_still_an_arm(tmp_path):
    states = {("grpo", seed): "missing" for seed in range(2)}
    rows = {row["arm"]: row for row in board_of(tmp_path, seeds=2, states=states)[0].frame.to_dict("records")}
    assert (rows["grpo"]["done"], rows["grpo"]["absent"], rows["grpo"]["asked"]) == (0, 2, 2)


def test_a_missing_run_that_may_belong_to_two_arms_is_given_to_neither(tmp_path):
    write_comparison(tmp_path, arms=("base", "grpo"), seeds=2)
    config = next((tmp_path / "runs").glob("*-grpo-*-s1-*")) / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"label": "grpo-other"}))
    runs = tmp_path / "comparisons" / "demo" / "runs.txt"
    runs.write_text(runs.read_text() + "arithmetic-grpo-tiny-s2-00000000\n")
    rows = {row["arm"]: row for row in leaderboards(load(tmp_path, "demo"))[0].frame.to_dict("records")}
    assert [rows[arm]["asked"] for arm in ("grpo", "grpo-other", "grpo (?)")] == [1, 1, 1]
    assert "1 of 5 runs have not finished" in finding(leaderboards(load(tmp_path, "demo")))


def test_a_torn_last_line_is_ignored_and_a_broken_one_inside_is_named(tmp_path):
    (identity, *_) = write_comparison(tmp_path, arms=("base", "grpo"), seeds=1)
    metrics = tmp_path / "runs" / identity / "metrics.jsonl"
    whole = metrics.read_text()
    before = load(tmp_path, "demo").runs[0].metrics
    metrics.write_text(whole + '{"step": 200, "los')
    assert load(tmp_path, "demo").runs[0].metrics.equals(before)
    metrics.write_text('{"step": 0, "los\n' + whole)
    with pytest.raises(ReportError, match=r"metrics\.jsonl: line 1 is not JSON"):
        load(tmp_path, "demo")


def test_steps_that_a_resumed_run_logged_twice_count_once(tmp_path):
    identity = write_comparison(tmp_path, arms=("base", "grpo"), seeds=1)[1]
    metrics = tmp_path / "runs" / identity / "metrics.jsonl"
    before = load(tmp_path, "demo").runs[1].metrics
    lines = metrics.read_text().split("\n")
    metrics.write_text("\n".join([*lines[:50], *lines[30:]]))
    assert load(tmp_path, "demo").runs[1].metrics.equals(before)


def test_a_line_separator_inside_a_completion_does_not_split_its_record(tmp_path):
    identity = write_comparison(tmp_path, arms=("base",), seeds=1, problems=1)[0]
    file = next((tmp_path / "runs" / identity / "evals").glob("*-test.jsonl"))
    file.write_text(json.dumps({"problem": "p", "completion": "a\u2028b\x85c"}, ensure_ascii=False) + "\n", "utf-8")
    assert load(tmp_path, "demo").runs[0].evaluation("test")[0]["completion"] == "a\u2028b\x85c"


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("comparisons/demo/comparison.toml", "question = ", "not TOML"),
        ("comparisons/demo/comparison.toml", None, "missing"),
        ("comparisons/demo/runs.txt", None, "missing"),
        ("comparisons/demo/runs.txt", "", "lists no run"),
        ("comparisons/demo/runs.txt", "../../etc\n", "not a run id"),
        ("runs/{run}/config.json", "{", "not JSON"),
        ("runs/{run}/config.json", "{}", "no `label`"),
        ("runs/{run}/config.json", "[]", "not a JSON object"),
        ("runs/{run}/card.json", "clip: none", "not JSON"),
        ("runs/{run}/card.json", '["clip"]', "not a JSON object"),
        ("runs/{run}/metrics.jsonl", '{"loss": 1}\n', "no whole number under `step`"),
        ("runs/{run}/metrics.jsonl", "[1]\n", "line 1 is not a JSON object"),
    ],
)
def test_a_broken_folder_is_one_error_that_names_the_file(tmp_path, file, content, said):
    identity = write_comparison(tmp_path, arms=("base",), seeds=1)[0]
    path = tmp_path / file.format(run=identity)
    path.unlink() if content is None else path.write_text(content)
    with pytest.raises(ReportError, match=re.escape(path.name)) as caught:
        load(tmp_path, "demo")
    assert said in str(caught.value)


@pytest.mark.parametrize("name", ["absent", "..", "a/b", ""])
def test_a_comparison_that_is_not_there_is_refused(tmp_path, name):
    write_comparison(tmp_path, arms=("base",), seeds=1)
    with pytest.raises(ReportError):
        load(tmp_path, name)


def test_a_done_run_without_a_test_score_is_not_taken_for_a_result(tmp_path):
    identity = write_comparison(tmp_path, arms=("base",), seeds=1)[0]
    (tmp_path / "runs" / identity / "metrics.jsonl").write_text('{"step": 0, "eval/pass@1": 0.2}\n')
    run = load(tmp_path, "demo").runs[0]
    assert run.status == "unfinished"
    assert "no test/pass@1" in run.reason


def test_the_delta_is_paired_with_the_base_of_the_same_seed(tmp_path):
    frame = board_of(tmp_path, arms=("base", "grpo"))[0].frame.set_index("arm")
    scores, base = frame.loc["grpo", "scores"], frame.loc["base", "scores"]
    assert frame.loc["grpo", "delta"] == pytest.approx(sum(scores[s] - base[s] for s in range(3)) / 3)
    assert frame.loc["grpo", "delta_low"] < frame.loc["grpo", "delta"] < frame.loc["grpo", "delta_high"]
    assert records(frame.reset_index())[1]["delta"] is None


def test_forgetting_is_measured_on_the_other_tasks(tmp_path):
    frame = board_of(tmp_path, arms=("base", "grpo"), tasks=("arithmetic", "people"))[0].frame.set_index("arm")
    assert frame.loc["grpo", "forgetting"] == pytest.approx(-0.07, abs=0.03)


def test_arms_are_ranked_by_pass_at_1_and_unscored_ones_come_last(tmp_path):
    boards = board_of(tmp_path, states={("grpo", s): "failed" for s in range(3)})
    frame = boards[0].frame
    assert list(frame["rank"]) == list(range(1, 8))
    assert frame["arm"].iloc[-1] == "grpo"
    assert frame["pass@1"].iloc[:-1].is_monotonic_decreasing
    json.dumps(records(frame), allow_nan=False)
    assert "0/3 (3 failed)" in text(frame)


def test_the_terminal_table_is_aligned_and_holds_no_control_character(tmp_path):
    lines = text(board_of(tmp_path)[0].frame).split("\n")
    assert len(lines) == 8
    assert len({line.index("/") for line in lines[1:]}) == 1
    assert all(line.isprintable() for line in lines)


def test_the_finding_names_the_best_arm_its_interval_and_its_control(tmp_path):
    said = finding(board_of(tmp_path, seeds=5))
    assert re.fullmatch(
        r"On arithmetic, grpo solves \d+\.\d% of held-out problems, \+\d+\.\d points over the base "
        r"\(95% CI \+\d+\.\d to \+\d+\.\d, 5 seeds\); it .*; the control grpo-random-reward .*\.",
        said,
    )


def test_the_finding_of_few_seeds_is_preliminary(tmp_path):
    assert finding(board_of(tmp_path, seeds=3)).startswith("Preliminary, with 3 seeds: on arithmetic, ")


def test_the_finding_claims_nothing_where_the_interval_holds_zero(tmp_path):
    said = finding(board_of(tmp_path, arms=("base", "sft"), seeds=5, gain=0.0))
    assert "not distinguishable from the base (difference" in said
    assert "over the base" not in said


def test_the_finding_says_that_every_arm_fell_below_the_base(tmp_path):
    said = finding(board_of(tmp_path, arms=("base", "sft"), seeds=5, gain=-0.15))
    assert "falls −" in said
    assert "points from the base" in said


def test_the_finding_of_one_seed_has_no_interval(tmp_path):
    said = finding(board_of(tmp_path, seeds=1))
    assert "too few for an interval" in said
    assert "CI" not in said


def test_the_finding_says_that_runs_failed(tmp_path):
    assert "1 of 21 runs failed; 2 of 21 runs have not finished" in finding(board_of(tmp_path, states=TROUBLE))


def test_a_control_that_moves_is_told(tmp_path):
    said = finding(board_of(tmp_path, arms=("base", "grpo", "grpo-random-reward"), seeds=5, gain=0.2))
    assert "the control grpo-random-reward moves too" in said
    assert "not distinguishably better than it" in said


def test_a_comparison_in_which_nothing_finished_still_has_a_page(tmp_path):
    states = {(label, seed): state for label in ("base", "grpo") for seed, state in ((0, "missing"), (1, "failed"))}
    write_comparison(tmp_path, arms=("base", "grpo"), seeds=2, states=states)
    assert "No run has finished yet" in render(tmp_path, "demo")
    states = dict.fromkeys(states, "missing")
    write_comparison(tmp_path, "none", arms=("base", "grpo"), seeds=2, states=states, tasks=("absent",))
    assert "No run has finished yet" in render(tmp_path, "none")


@pytest.mark.slow
def test_the_same_directories_give_the_same_bytes(tmp_path):
    for root in (tmp_path / "a", tmp_path / "b"):
        write_comparison(root, states=TROUBLE, hostile=True)
    first = write(tmp_path / "a", "demo").read_bytes()
    assert first == write(tmp_path / "a", "demo", tmp_path / "out" / "again.html").read_bytes()
    assert first == write(tmp_path / "b", "demo").read_bytes()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["again.html"]
    assert str(tmp_path).encode() not in first


def test_a_report_that_cannot_be_rendered_leaves_the_old_one(tmp_path):
    identity = write_comparison(tmp_path, arms=("base",), seeds=1)[0]
    path = write(tmp_path, "demo")
    before = path.read_bytes()
    (tmp_path / "runs" / identity / "config.json").write_text("{")
    with pytest.raises(ReportError):
        write(tmp_path, "demo")
    assert path.read_bytes() == before
    assert not list(path.parent.glob(".*"))


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.seen: list[tuple[str, dict]] = []

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))


def test_model_text_never_becomes_markup(tmp_path):
    write_comparison(tmp_path, hostile=True, question=HOSTILE[:60])
    config = next((tmp_path / "runs").glob("*sft*s0*")) / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"options": {"<script>x</script>": HOSTILE}}))
    config.with_name("card.json").write_text(json.dumps({"reward": HOSTILE, "</th><img src=x>": "<b>", "clip": ["<i>"]}))
    staged = next((tmp_path / "runs").glob("*-dpo-*s0*")) / "config.json"
    staged.write_text(json.dumps(json.loads(staged.read_text()) | {"start": "../<img src=x>"}))
    page = render(tmp_path, "demo")
    assert "&lt;/th&gt;&lt;img src=x&gt;" in page
    assert "starts from ../&lt;img src=x&gt;" in page
    tags = Tags()
    tags.feed(page)
    assert [tag for tag, _ in tags.seen].count("script") == 1
    assert {tag for tag, _ in tags.seen}.isdisjoint({"img", "link", "iframe", "object", "form"})
    for _, attributes in tags.seen:
        assert not [name for name in attributes if name.startswith("on") or name in ("src", "style")]
        assert attributes.get("href", "#").startswith("#")
    assert "alert(1)" in page
    assert not re.search(r"[\u202a-\u202e\u2066-\u2069\u2028\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]", page)
    assert "U+202E" in page
    assert len(page) < 1_500_000


def test_the_page_loads_nothing_and_its_policy_allows_only_its_own_script_and_style(tmp_path):
    write_comparison(tmp_path)
    page = render(tmp_path, "demo")
    assert not re.search(r"https?://|@import|url\(", page)
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)
    assert policy
    assert policy[1].startswith("default-src &#39;none&#39;") or policy[1].startswith("default-src 'none'")
    for tag in ("script", "style"):
        content = re.search(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        assert content
        digest = base64.b64encode(hashlib.sha256(content[1].encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy[1]


@pytest.mark.slow
def test_a_forty_run_comparison_stays_small(tmp_path):
    write_comparison(tmp_path, seeds=6)
    assert len(render(tmp_path, "demo").encode()) < 1_000_000


def test_thought_is_set_apart_and_unseen_characters_become_codes():
    assert [(p.kind, p.text) for p in pieces("<1+2=3>3")] == [("thought", "<1+2=3>"), ("text", "3")]
    assert [(p.kind, p.text) for p in pieces("<think>a<b>c</think>3")] == [
        ("thought", "<think>a<b>c</think>"),
        ("text", "3"),
    ]
    assert [p.kind for p in pieces("<never closed")] == ["thought"]
    assert [p.kind for p in pieces("3 < 4")] == ["text"]
    assert [(p.kind, p.text) for p in pieces("a\x1bb\n")] == [("text", "a"), ("code", "U+001B"), ("text", "b\n")]
    assert pieces("y" * 5000)[-1].text == "… 3,500 more characters"
    assert plain("\u202eab\ud800") == "⟨U+202E⟩ab⟨U+D800⟩"


def test_numbers_are_written_briefly():
    assert [si(v) for v in (0, 0.311, 14.04, 999.9, 2_013_000, 2e12, float("nan"), float("inf"))] == [
        "0", "0.311", "14.0", "1.00k", "2.01M", "2.00T", "–", "∞",
    ]  # fmt: skip
    assert [points(v) for v in (0.354, -0.02, -0.00001)] == ["+35.4", "−2.0", "+0.0"]
    assert [tick(v) for v in (0, 0.2, 50, 1.5e6)] == ["0", "0.2", "50", "1.5M"]


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


def test_forgetting_has_a_column_only_where_other_tasks_were_asked(tmp_path):
    write_comparison(tmp_path / "one", arms=("base", "sft"), seeds=2)
    write_comparison(tmp_path / "two", arms=("base", "sft"), seeds=2, tasks=("arithmetic", "people"))
    assert "forgetting" not in render(tmp_path / "one", "demo").lower()
    assert "forgetting" in render(tmp_path / "two", "demo")


def test_how_each_arm_learns_is_what_its_first_run_with_a_card_says(tmp_path):
    write_comparison(tmp_path, arms=("base", "sft", "ppo"), seeds=2)
    first = next((tmp_path / "runs").glob("*-ppo-*-s0-*")) / "card.json"
    first.unlink()
    found = cards(load(tmp_path, "demo").runs)
    assert [dict(card.choices) for card in found] == [{}, CARDS["sft"], CARDS["ppo"]]
    assert choices(found) == list(CHOICES)
    assert choices(found[:2]) == [key for key in CHOICES if key in CARDS["sft"]]
    page = render(tmp_path, "demo")
    assert "How each arm learns" in page
    assert "a critic, GAE with γ = 1, λ = 1" in page


def test_a_choice_of_an_unknown_name_is_the_last_column(tmp_path):
    write_comparison(tmp_path, arms=("sft",), seeds=1)
    next((tmp_path / "runs").glob("*")).joinpath("card.json").write_text('{"optimiser": "AdamW", "KL": "none"}')
    assert choices(cards(load(tmp_path, "demo").runs)) == ["KL", "optimiser"]


def test_runs_of_before_there_were_cards_have_no_table_of_them(tmp_path):
    write_comparison(tmp_path, arms=("base", "sft"), seeds=1)
    for card in (tmp_path / "runs").glob("*/card.json"):
        card.unlink()
    page = render(tmp_path, "demo")
    assert "How each arm learns" not in page
    assert "learning_rate" in page


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
    assert (grpo.stop, grpo.end, grpo.last) == (707, 250, "60.0% at KL 0.200")
    assert (sft.stop, sft.end) == (0, 750)
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
        assert learned.end < verified.end


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


def test_what_earlier_stages_cost_is_told_where_there_are_any(tmp_path):
    staged = board_of(tmp_path / "staged", arms=("base", "sft", "sft-grpo"), seeds=2)[0].frame
    assert staged.set_index("arm")["ancestors_flops"].dropna().to_dict() == {"sft-grpo": 1.6e12}
    head, *lines = text(staged).split("\n")
    assert "before" in head
    assert [("+1.60T" in line) for line in lines] == [line.startswith("sft-grpo") for line in lines]
    assert {row["arm"]: row["ancestors_flops"] for row in records(staged)}["sft"] is None
    plain = board_of(tmp_path / "plain", arms=("base", "sft"), seeds=2)[0].frame
    assert "before" not in text(plain)
    assert render(tmp_path / "staged", "demo").count("<small>+1.60T before</small>") == 1
    assert " before</small>" not in render(tmp_path / "plain", "demo")


def test_a_staged_arm_names_the_arms_it_came_through(tmp_path, monkeypatch):
    monkeypatch.setitem(STARTS, "sft-dpo", "sft-grpo")
    write_comparison(tmp_path, arms=("base", "sft", "sft-grpo", "sft-dpo"), seeds=1)
    runs = load(tmp_path, "demo").runs
    assert [run.stages for run in runs] == [(), (), ("sft",), ("sft", "sft-grpo")]
    assert "starts from sft → sft-grpo" in render(tmp_path, "demo")
    assert "start" not in {row.key for row in settings(runs)[1]}


def test_a_start_outside_the_comparison_has_its_label_and_one_that_is_gone_its_id(tmp_path):
    first, second = write_comparison(tmp_path, arms=("sft", "sft-grpo"), seeds=1)
    (tmp_path / "comparisons" / "demo" / "runs.txt").write_text(second)
    assert load(tmp_path, "demo").runs[0].stages == ("sft",)
    (tmp_path / "runs" / first / "config.json").unlink()
    assert load(tmp_path, "demo").runs[0].stages == (first,)


def test_runs_that_start_from_each_other_do_not_hang_the_report(tmp_path):
    first, second = write_comparison(tmp_path, arms=("sft", "sft-grpo"), seeds=1)
    config = tmp_path / "runs" / first / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"start": second}))
    assert load(tmp_path, "demo").runs[1].stages == ("sft-grpo", "sft")


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    root = tmp_path_factory.mktemp("report")
    write_comparison(root, arms=(*ARMS, *MORE), tasks=("arithmetic", "people"), states=TROUBLE, hostile=True)
    return write(root, "demo")


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [(1280, 900), (390, 844)])
def test_a_browser_shows_it_without_errors_or_sideways_scrolling(page, size, scheme):
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if not CHROMIUM.exists():
        pytest.skip(f"no {CHROMIUM}")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": size[0], "height": size[1]}, color_scheme=scheme)
        said: list[str] = []
        asked: list[str] = []
        tab.on("console", lambda message: said.append(message.text))
        tab.on("pageerror", lambda error: said.append(str(error)))
        tab.on("dialog", lambda dialog: (said.append(dialog.message), dialog.dismiss()))
        tab.on("request", lambda request: asked.append(request.url))
        tab.goto(page.as_uri())
        assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
        table = tab.locator("table.leaderboard").first
        first_arm = table.locator("tbody tr th").first
        assert first_arm.inner_text() == "grpo"
        table.get_by_role("button", name="arm").click()
        assert first_arm.inner_text() == "base"
        table.get_by_role("button", name="pass@1").click()
        assert first_arm.inner_text() == "grpo"
        table.get_by_role("button", name="pass@1").click()
        assert first_arm.inner_text() == "grpo-random-reward"
        curves = tab.locator(".curves").first
        assert curves.locator(".plot:visible .x-name").all_inner_texts() == ["steps"] * PANELS
        curves.locator(".switch label", has_text="FLOPs").click()
        assert curves.locator(".plot:visible .x-name").all_inner_texts() == ["FLOPs"] * PANELS
        curves.locator(".area:visible").first.hover(position={"x": 60, "y": 60})
        assert re.match(r"[\d.]+G FLOPs", curves.locator(".tip:visible").inner_text())
        kl = tab.locator(".plot.x-kl").first
        kl.locator(".names g", has_text="sft-grpo").locator("text").hover()
        assert kl.locator(".line.picked").get_attribute("data-label") == "sft-grpo"
        assert kl.locator(".stop.picked").count() == 1
        samples = tab.locator(".samples").first
        samples.get_by_role("button", name="base right → arm wrong").click()
        kinds = [one.get_attribute("data-kinds") or "" for one in samples.locator(".problem:visible").all()]
        assert kinds
        assert all("lost-" in kind for kind in kinds)
        assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
        browser.close()
    assert said == []
    assert asked == [page.as_uri()]
