"""A kill at any moment leaves the old or the new, and one process at a time holds a directory."""

import json
import os
import signal
import subprocess
import sys
import time
import tomllib

import pytest

from harness import files
from harness.errors import BakeoffError
from tests.conftest import REPOSITORY

KILLED_AT = """
import os, signal, sys
from pathlib import Path
from harness import files
import json, shutil, tempfile, encodings.utf_8

moment, place = int(sys.argv[1]), Path(sys.argv[2])
count = 0

def hook(event, args):
    global count
    changes = event in ("os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.truncate")
    if changes or (event == "open" and str(place) in str(args[0])):
        if count == moment:
            os.kill(os.getpid(), signal.SIGKILL)
        count += 1

sys.addaudithook(hook)
"""
REPLACE_FILE = "files.write(place / 'value.txt', 'new' * 50_000)"
REPLACE_FOLDER = """
with files.folder(place / "kept") as temporary:
    for name in "abc":
        (temporary / name).write_text("new")
"""
HOLD = """
import sys, time
from pathlib import Path
from harness import files

with files.lock(Path(sys.argv[1]), "training"):
    print("held", flush=True)
    time.sleep(float(sys.argv[2]))
"""


def killed_at_every_moment(script, prepare, tmp_path):
    """Run the script once for each of its file operations, killed just before it; yields what each leaves."""
    for moment in range(60):
        place = tmp_path / str(moment)
        place.mkdir()
        prepare(place)
        end = subprocess.run(
            [sys.executable, "-c", KILLED_AT + script, str(moment), str(place)], capture_output=True, check=False
        )
        assert end.returncode in (0, -signal.SIGKILL), end.stderr.decode()
        yield moment, place
        if end.returncode == 0:
            assert moment > 1
            return
    pytest.fail("the script never came to its end")


def test_a_kill_at_any_moment_of_a_write_leaves_the_old_text_or_the_new(tmp_path):
    found = set()
    for moment, place in killed_at_every_moment(REPLACE_FILE, lambda p: (p / "value.txt").write_text("old"), tmp_path):
        text = (place / "value.txt").read_text()
        assert text in ("old", "new" * 50_000), f"operation {moment}"
        found.add(text[:3])
    assert found == {"old", "new"}


def test_a_kill_at_any_moment_of_replacing_a_folder_leaves_the_old_or_the_new_whole(tmp_path):
    def prepare(place):
        (place / "kept").mkdir()
        for name in "abc":
            (place / "kept" / name).write_text("old")

    found = []
    for _, place in killed_at_every_moment(REPLACE_FOLDER, prepare, tmp_path):
        found.append({p.name: p.read_text() for p in (place / "kept").glob("*")})
    whole = [dict.fromkeys("abc", "old"), dict.fromkeys("abc", "new")]
    assert [state for state in found if state not in whole] == []
    assert found[0] == whole[0]
    assert found[-1] == whole[1]


def test_write_makes_its_folders_and_leaves_nothing_beside_the_file(tmp_path):
    files.write(tmp_path / "a" / "b" / "c.txt", "é\n")
    assert (tmp_path / "a" / "b" / "c.txt").read_bytes() == "é\n".encode()
    assert [p.name for p in (tmp_path / "a" / "b").iterdir()] == ["c.txt"]


def test_a_folder_whose_block_fails_leaves_what_was_there_and_nothing_half_written(tmp_path):
    with files.folder(tmp_path / "kept") as temporary:
        (temporary / "a").write_text("old")

    def fail():
        with files.folder(tmp_path / "kept") as temporary:
            (temporary / "a").write_text("new")
            raise RuntimeError("disk full")

    with pytest.raises(RuntimeError, match="disk full"):
        fail()
    assert [p.name for p in tmp_path.iterdir()] == ["kept"]
    assert (tmp_path / "kept" / "a").read_text() == "old"


@pytest.mark.parametrize("torn", ['{"step": 2', '{"step": 2, "text": "\\u00e', "\n"[:0], '{"step": 2}'])
def test_a_journal_cuts_off_a_torn_tail_and_goes_on(tmp_path, torn):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 0}\n{"step": 1}\n' + torn)
    journal = files.Journal(path)
    journal.append({"step": 2, "text": "a\u2028b\nc"})
    journal.close()
    assert files.read_jsonl(path) == [{"step": 0}, {"step": 1}, {"step": 2, "text": "a\u2028b\nc"}]


@pytest.mark.parametrize(("n", "kept"), [(0, 0), (1, 1), (2, 2), (3, 3), (5, 3)])
def test_a_journal_that_is_cut_keeps_its_first_records_and_goes_on(tmp_path, n, kept):
    journal = files.Journal(tmp_path / "rows.jsonl")
    rows = [{"a": "é"}, {"a": 1}, {"a": 2}]
    journal.append(*rows)
    journal.cut(n)
    journal.append({"b": 3})
    journal.close()
    assert files.read_jsonl(tmp_path / "rows.jsonl") == [*rows[:kept], {"b": 3}]


def test_a_journal_torn_inside_a_character_is_still_read(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 0}\n{"text": "\xc3')
    assert files.tail_jsonl(path) == {"step": 0}
    assert files.read_jsonl(path) == [{"step": 0}]


def test_a_line_without_its_newline_is_not_a_record(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert files.read_jsonl(path) == []
    assert files.tail_jsonl(path) is None
    path.write_text('{"step": 0')
    assert files.read_jsonl(path) == []
    assert files.tail_jsonl(path) is None
    path.write_text('{"step": 0}\n{"step": 1}')
    assert files.read_jsonl(path) == [{"step": 0}]
    assert files.tail_jsonl(path) == {"step": 0}


@pytest.mark.parametrize("width", [10, 65_536, 200_000])
def test_the_last_record_is_found_however_long_the_lines_are(tmp_path, width):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps({"step": i, "text": "x" * width}) + "\n" for i in range(4)) + '{"step": 4')
    assert files.tail_jsonl(path)["step"] == 3


def test_a_held_lock_refuses_a_second_process_within_a_second_and_names_the_first(tmp_path):
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path / "lock"), "60"], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        started = time.monotonic()
        with (
            pytest.raises(BakeoffError, match=rf"process {holder.pid} is already training here"),
            files.lock(tmp_path / "lock", "training"),
        ):
            pass
        assert time.monotonic() - started < 1
    finally:
        holder.kill()
        holder.communicate()
    with files.lock(tmp_path / "lock", "training"):
        assert (tmp_path / "lock").read_text() == str(os.getpid())


def test_a_lock_is_waited_for_as_long_as_its_patience(tmp_path):
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path / "lock"), "0.5"], stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    with files.lock(tmp_path / "lock", "training", patience=20):
        holder.communicate()
        assert holder.returncode == 0


@pytest.mark.parametrize("path", sorted((REPOSITORY / "sweeps").rglob("*.toml")), ids=lambda path: path.stem)
def test_a_table_written_as_toml_is_read_back_as_it_was(path):
    table = tomllib.loads(path.read_text())
    assert tomllib.loads(files.toml(table)) == table


def test_keys_and_texts_of_any_kind_are_quoted_in_toml():
    table = {"a b": [{"x-1": 'q"\n\\', "é": True}], "t": {"1.0": {"n": 1e-5, "none": []}}}
    assert tomllib.loads(files.toml(table)) == table


def test_a_damaged_line_is_named(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('garbage\n{"step": 1}\n')
    assert files.tail_jsonl(path) == {"step": 1}
    with pytest.raises(BakeoffError, match=r"metrics\.jsonl: b'garbage' is not a record; the file is damaged"):
        files.read_jsonl(path)
