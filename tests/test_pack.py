"""What was packed is unpacked, and nothing else is."""

import json
import lzma
import shutil

import pytest
from conftest import numbers, tree

from harness import files
from harness.errors import BakeoffError
from harness.pack import TEXT, TEXTS, kept, pack, unpack
from harness.shard import Shard

pytestmark = pytest.mark.slow  # they wait for the smoke comparison


@pytest.fixture
def packed(smoke, tmp_path):
    path = tmp_path / "smoke.jsonl.xz"
    assert pack("smoke", smoke.root, path, Shard()) == len(smoke.runs)
    return path


def rewritten(packed, change):
    lines = [json.loads(line) for line in lzma.decompress(packed.read_bytes()).splitlines()]
    change(lines)
    packed.write_bytes(lzma.compress(files.jsonl(lines).encode()))
    return packed


def test_an_unpacked_comparison_has_its_numbers_and_counts_as_done(smoke, packed, tmp_path, cli):
    root = tmp_path / "elsewhere"
    assert unpack(packed, root) == ("smoke", len(smoke.runs))
    for folder in smoke.runs.values():
        there = root / "runs" / folder.name
        assert numbers(there) == numbers(folder)
        assert (there / "DONE").exists()
        assert not (there / "model").exists()
    code, out, _ = cli("report", "smoke", "--root", root)
    assert code == 0
    assert "report.html" in out
    before = tree(root)
    assert unpack(packed, root) == ("smoke", 0)
    assert tree(root) == before


def test_packing_again_gives_the_same_bytes_and_keeps_the_text_of_the_first_problems_alone(smoke, packed, tmp_path):
    again = tmp_path / "again.jsonl.xz"
    pack("smoke", smoke.root, again, Shard())
    assert again.read_bytes() == packed.read_bytes()
    unpack(packed, tmp_path / "root")
    for path in (tmp_path / "root").rglob("evals/*.jsonl"):
        rows = files.read_jsonl(path)
        told = {row["problem"] for row in rows if row["prompt"]}
        assert len(told) == min(TEXTS, len({row["problem"] for row in rows}))


def test_slices_are_together_what_the_whole_is(smoke, packed, tmp_path, cli):
    slices = [tmp_path / f"{i}.jsonl.xz" for i in range(2)]
    for i, path in enumerate(slices):
        assert cli("pack", "smoke", "--shard", f"{i}/2", "-o", path, "--root", smoke.root)[0] == 0
    for source, root in (([packed], tmp_path / "whole"), (slices, tmp_path / "sliced")):
        assert cli("unpack", *source, "--root", root)[0] == 0
    found = {path.name: numbers(path) for path in (tmp_path / "sliced" / "runs").iterdir()}
    assert found == {path.name: numbers(path) for path in (tmp_path / "whole" / "runs").iterdir()}
    assert len(found) == len(smoke.runs)


def verdicts(path):
    return [{k: v for k, v in row.items() if k not in TEXT} for row in files.read_jsonl(path)]


def test_every_verdict_at_the_end_is_kept(smoke, packed, tmp_path):
    unpack(packed, tmp_path / "root")
    for folder in smoke.runs.values():
        there = tmp_path / "root" / "runs" / folder.name / "evals"
        at_the_end = sorted(path.name for path in (folder / "evals").iterdir() if "-validation" not in path.name)
        assert sorted(path.name for path in there.iterdir()) == at_the_end
        assert any(name.endswith("-test.jsonl") for name in at_the_end)
        assert [verdicts(there / name) for name in at_the_end] == [verdicts(folder / "evals" / name) for name in at_the_end]


def test_of_a_run_that_was_not_tested_the_last_verdicts_on_validation_are_kept(smoke, tmp_path):
    evaluations = next(iter(smoke.runs.values())) / "evals"
    (tmp_path / "evals").mkdir()
    for path in evaluations.glob("*-validation.jsonl"):
        for step in ("000000", "000007"):
            shutil.copy(path, tmp_path / "evals" / f"{step}-validation.jsonl")
    assert [name for name, _ in kept(tmp_path)] == ["evals/000007-validation.jsonl"]


@pytest.mark.parametrize(
    "change",
    [
        lambda lines: lines[1]["files"].update({"../../escaped": "x"}),
        lambda lines: lines[1]["files"].update({"evals/../../../x.jsonl": "x"}),
        lambda lines: lines[0].update(comparison="../x"),
        lambda lines: lines[0]["files"].update({"../x": "x"}),
        lambda lines: lines[1].update(run="../x"),
        lambda lines: lines[1].update(run=lines[2]["run"]),
        lambda lines: lines[1]["files"].pop("config.json"),
        lambda lines: lines.clear(),
        lambda lines: lines[1]["files"].update({"config.json": len(lines[0]["texts"])}),
        lambda lines: lines[1].update(files=["config.json"]),
    ],
)
def test_a_file_that_was_tampered_with_is_refused_and_nothing_is_written(packed, tmp_path, change):
    root = tmp_path / "root"
    with pytest.raises(BakeoffError, match=r"smoke\.jsonl\.xz: "):
        unpack(rewritten(packed, change), root)
    assert not root.exists()


def test_what_is_not_there_or_not_packed_is_refused_in_one_line(tmp_path, cli):
    (tmp_path / "x.jsonl.xz").write_text("x")
    for args in (("unpack", tmp_path / "none.jsonl.xz"), ("unpack", tmp_path / "x.jsonl.xz"), ("pack", "nosuch")):
        code, out, err = cli(*args, "--root", tmp_path)
        assert (code, out, err.count("\n")) == (2, "", 1)
    said = f"bakeoff: {tmp_path / 'smoke'}: no such file; bakeoff pack writes docs/results/NAME.jsonl.xz\n"
    assert cli("unpack", tmp_path / "smoke", "--root", tmp_path) == (2, "", said)


def test_what_is_known_here_of_the_comparison_stays_and_the_rest_stands_beside_it(smoke, packed, tmp_path):
    here = tmp_path / "root" / "comparisons" / "smoke"
    here.mkdir(parents=True)
    for path, text in (
        ("runs.txt", "arithmetic-mine-smoke-s0-00000000\n"),
        ("claims.jsonl", '{"digest": "mine", "finished": 0}\n'),
    ):
        (here / path).write_text(text)
    (here / "comparison.toml").write_text("# mine")
    unpack(packed, tmp_path / "root")
    assert (here / "comparison.toml").read_text() == "# mine"
    theirs = (smoke.root / "comparisons" / "smoke" / "runs.txt").read_text().split()
    assert (here / "runs.txt").read_text().split() == ["arithmetic-mine-smoke-s0-00000000", *theirs]
    assert files.read_jsonl(here / "claims.jsonl")[0] == {"digest": "mine", "finished": 0}


def test_when_its_claims_were_written_down_is_kept_with_a_comparison(smoke, tmp_path):
    shutil.copytree(smoke.root / "comparisons", tmp_path / "here" / "comparisons")
    (tmp_path / "here" / "comparisons" / "smoke" / "claims.jsonl").write_text('{"digest": "d", "finished": 0}\n')
    pack("smoke", tmp_path / "here", tmp_path / "smoke.jsonl.xz", Shard())
    unpack(tmp_path / "smoke.jsonl.xz", tmp_path / "there")
    assert files.read_jsonl(tmp_path / "there" / "comparisons" / "smoke" / "claims.jsonl") == [{"digest": "d", "finished": 0}]
