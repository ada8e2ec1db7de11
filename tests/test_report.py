"""The page: what stands on it, what model text cannot do to it, and what a browser makes of it."""

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from synthetic import ARMS, CARDS, HOSTILE, MORE, TROUBLE, write_comparison

from reports.escape import pieces, plain
from reports.html import render, write
from reports.load import ReportError, load
from reports.numbers import points, si, tick
from reports.provenance import CHOICES, cards, choices

PANELS = 7 + 1 + 3  # quantities, an arm with a reward model, three with preferences
CHROMIUM = Path("/usr/bin/chromium")


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


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    root = tmp_path_factory.mktemp("report")
    write_comparison(
        root, arms=(*ARMS, *MORE), tasks=("arithmetic", "people"), states=TROUBLE, hostile=True, samples=4, traced=True
    )
    return write(root, "demo")


def seen(axe, tab) -> list[str]:
    """What axe-core finds serious or critical."""
    tab.evaluate(axe)
    found = tab.evaluate("axe.run({ resultTypes: ['violations'] })")["violations"]
    return [f"{one['id']}: {one['nodes'][0]['html']}" for one in found if one["impact"] in ("serious", "critical")]


@pytest.mark.slow
@pytest.mark.parametrize(("size", "scheme"), [((1280, 900), "light"), ((390, 844), "dark")])
def test_a_browser_shows_it_without_errors_or_sideways_scrolling(page, size, scheme):
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    package = pytest.importorskip("axe_playwright_python", reason="axe-playwright-python is not installed")
    axe = Path(package.__file__).with_name("axe.min.js").read_text(encoding="utf-8")
    if not CHROMIUM.exists():
        pytest.skip(f"no {CHROMIUM}")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": size[0], "height": size[1]}, color_scheme=scheme)
        tab.set_default_timeout(120_000)  # milliseconds: hovering waits for frames, of which a busy machine draws few
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
        cost = tab.locator(".cost").first
        cost.locator(".switch label", has_text="tokens").click()
        assert cost.locator(".plot:visible .x-name").all_inner_texts() == ["tokens"]
        numbers = cost.locator("details.data")
        numbers.locator("summary").press("Enter")
        assert numbers.locator("tbody tr").first.inner_text().startswith("FLOPs\tgrpo")
        with tab.expect_download() as download:
            numbers.get_by_role("button").click()
        assert download.value.suggested_filename == "cost.csv"
        text = Path(download.value.path()).read_text(encoding="utf-8")
        assert text.startswith("cost_in,arm,cost,pass@1,low,high,seeds,pareto_optimal\nFLOPs,grpo,")
        assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert seen(axe, tab) == []
        asked = [url for url in asked if not url.startswith("blob:")]
        browser.close()
    assert said == []
    assert asked == [page.as_uri()]
