"""Paper tables of the packed results that the docs quote, against numbers read from the packed files by hand."""

import json
import lzma
import re
from pathlib import Path
from statistics import mean

import pytest

from harness.pack import unpack
from reports.claims import verdicts
from reports.load import load
from reports.search import search
from reports.tables import FORMATS, STYLES, render
from reports.tables_cells import UNITS

pytestmark = pytest.mark.slow

RESULTS = Path(__file__).parent.parent / "docs" / "results"
FILLED = {
    "grid": {"deepseekmath", "r1-distill", "architecture", "balancing", "cost", "passk"},
    "balancing": {"deepseekmath", "architecture", "balancing", "cost", "passk"},
    "attention": {"deepseekmath", "architecture", "cost", "passk"},
}


@pytest.fixture(scope="module", params=FILLED)
def unpacked(request, tmp_path_factory):
    """The comparison, and what is packed of each run: {id: {file: text}}."""
    root, packed = tmp_path_factory.mktemp(request.param), {}
    for path in (*RESULTS.glob(f"{request.param}.jsonl.xz"), *RESULTS.glob(f"{request.param}-?-of-?.jsonl.xz")):
        unpack(path, root)
        first, *lines = [json.loads(line) for line in lzma.decompress(path.read_bytes()).splitlines()]
        texts = first["texts"]
        packed |= {line["run"]: {path: texts[at] for path, at in line["files"].items() if isinstance(at, int)} for line in lines}
    return load(root, request.param), packed


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.jsonl.xz")), ids=lambda path: path.name.partition(".")[0])
def test_every_packed_result_can_be_read_and_names_no_folder_of_the_machine_that_made_it(path, tmp_path):
    text = lzma.decompress(path.read_bytes()).decode()
    assert not re.search(r"/(tmp|home|root|work|Users)/", text)
    name, runs = unpack(path, tmp_path)
    comparison = load(tmp_path, name)
    assert comparison.count("done") == runs
    assert verdicts(comparison) or not comparison.asked.get("claims")
    assert search(tmp_path / "comparisons" / name, comparison) or not name.startswith("search_")


def test_every_style_that_the_runs_fill_is_rendered_in_every_format(unpacked):
    comparison, _ = unpacked
    for style in FILLED[comparison.name]:
        found = STYLES[style](comparison)
        assert all(render(found, form) for form in FORMATS)
        measured = [cell for block in found.blocks if not block.source for cell in block.cells]
        assert all(cell.reason for cell in measured if cell.empty)
        assert {cell.unit for cell in measured} <= {"text", *UNITS}


def test_scores_and_losses_are_those_of_the_packed_files(unpacked):
    comparison, packed = unpacked
    scores, losses = {}, {}
    for files in packed.values():
        config = json.loads(files["config.json"])
        last = json.loads(files["metrics.jsonl"].splitlines()[-1])
        scores.setdefault((config["model"], config["label"]), []).append(last["test/pass@1"])
        if config["label"] == "base":
            losses.setdefault(config["model"], []).append(json.loads(files["base.json"])["held_out"])
    blocks = {block.title: block for block in STYLES["architecture"](comparison).blocks if not block.source}
    for title, expected in {
        "pass@1 on arithmetic": scores,
        "bases": {(m, "held-out loss"): v for m, v in losses.items()},
    }.items():
        header, rows = blocks[title].header, {row[0].text: row for row in blocks[title].rows}
        for (model, name), values in expected.items():
            cell = rows[name][header.index(model)]
            assert cell.n == len(values)
            assert cell.value == pytest.approx(mean(values))
