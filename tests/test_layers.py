"""Who may import whom."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
COMMAND = Path(sys.executable).with_name("bakeoff")
COMPOSITION_ROOT = Path("harness/cli")
PACKAGES = ("harness", "methods", "tasks", "reports")
HEAVY = ("torch", "transformers", "wandb")
HEAVY_AT_HELP = (*HEAVY, "pandas", "pydantic", "numpy", "scipy", "plotly")


@cache
def parsed(source: str) -> ast.Module:
    return ast.parse(source)


def imports(path: Path, module: str) -> Iterator[str]:
    """Dotted names that a file imports, wherever in it; `from a import b` is a.b."""
    for node in ast.walk(parsed(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = module.split(".")[: -node.level] if node.level else []
            source = ".".join([*above, *([node.module] if node.module else [])])
            yield from (f"{source}.{alias.name}" for alias in node.names)


def forbidden(package: str, name: str, own: str) -> str | None:
    """Why a module of `package` may not import `name`."""
    top, *rest = name.split(".")
    if [top, *rest][:2] == ["harness", "cli"]:
        return "nothing imports the composition root"
    if top in PACKAGES and top not in (package, "harness"):
        return f"{package} does not know {top}"
    if package in ("methods", "tasks") and top == package and rest and not rest[0].startswith("_") and name != own:
        return "one file does not import another; what they share starts with _"
    if package in ("tasks", "reports") and top in HEAVY:
        return f"{package} never imports {top}"
    return None


def violations(root: Path) -> list[str]:
    out = list[str]()
    for path in sorted(p for package in PACKAGES for p in (root / package).rglob("*.py")):
        where = path.relative_to(root)
        if COMPOSITION_ROOT in where.parents:
            continue
        module = ".".join(where.with_suffix("").parts)
        for name in imports(path, module):
            if why := forbidden(where.parts[0], name, module):
                out.append(f"{where}: {name}: {why}")
    return out


def test_every_import_of_this_tree_points_the_right_way():
    assert violations(ROOT) == []


def test_the_tree_was_read():
    for package in PACKAGES:
        files = [p for p in (ROOT / package).rglob("*.py") if p.stem != "__init__"]
        assert files, package
        used = {name for p in files for name in imports(p, f"{package}.{p.stem}")}
        assert any(name.startswith(("harness.", f"{package}.")) for name in used), package


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("harness/wrong.py", "import methods.grpo"),
        ("harness/wrong.py", "from tasks import arithmetic"),
        ("harness/wrong.py", "def f():\n    from reports.load import load"),
        ("harness/wrong.py", "from harness.cli import main"),
        ("harness/wrong.py", "from harness import cli"),
        ("harness/wrong.py", "from . import cli"),
        ("harness/wrong.py", "from .cli import main"),
        ("harness/deeper/wrong.py", "from ..cli import main"),
        ("methods/wrong.py", "from tasks.arithmetic import TASK"),
        ("methods/wrong.py", "import reports"),
        ("methods/wrong.py", "from methods.grpo import advantages"),
        ("methods/wrong.py", "from .grpo import advantages"),
        ("tasks/wrong.py", "import torch"),
        ("tasks/wrong.py", "import torch.nn as nn"),
        ("tasks/wrong.py", "try:\n    from transformers import AutoTokenizer\nexcept ImportError:\n    pass"),
        ("tasks/wrong.py", "from methods import grpo"),
        ("tasks/wrong.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from methods.grpo import GRPO"),
        ("reports/wrong.py", "import wandb"),
        ("reports/wrong.py", "import os, torch"),
        ("reports/wrong.py", "from tasks.knights import TASK"),
        ("reports/deeper/wrong.py", "from methods.sft import SFT"),
    ],
)
def test_an_import_that_points_the_wrong_way_is_found(tmp_path, file, line):
    path = tmp_path / file
    path.parent.mkdir(parents=True)
    path.write_text(line)
    (found,) = violations(tmp_path)
    assert found.startswith(file)


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("harness/cli/right.py", "from methods.grpo import GRPO\nfrom reports.load import load\nimport tasks"),
        ("harness/right.py", "import torch\nfrom harness.task import Task\nfrom . import ops"),
        ("methods/right.py", "import torch\nfrom harness import ops\nfrom methods._pairs import sample_pairs"),
        ("tasks/right.py", "from harness.task import Task\nfrom tasks._completion import exact\nimport torchlight"),
        ("reports/right.py", "import pandas\nfrom reports.load import load\nfrom harness.errors import BakeoffError"),
    ],
)
def test_an_import_that_points_the_right_way_is_not(tmp_path, file, line):
    path = tmp_path / file
    path.parent.mkdir(parents=True)
    path.write_text(line)
    assert violations(tmp_path) == []


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_is_the_one_of_this_checkout(package):
    assert [Path(p).resolve() for p in importlib.import_module(package).__path__] == [ROOT / package]


def python(*arguments: str) -> str:
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout


def loaded(statement: str, *unwanted: str) -> list[str]:
    return python("-c", f"import sys\n{statement}\nprint(*[m for m in {unwanted!r} if m in sys.modules])").split()


def test_the_command_line_is_imported_without_what_is_heavy():
    assert loaded("import harness.cli", *HEAVY_AT_HELP) == []


def test_what_is_loaded_is_seen():
    assert loaded("import json", "json", "torch") == ["json"]


@pytest.mark.parametrize("package", ["tasks", "reports"])
def test_no_module_brings_torch_in_through_another(package):
    modules = sorted(f"{package}.{p.stem}" for p in (ROOT / package).glob("*.py") if p.stem != "__init__")
    assert loaded("import " + ", ".join(modules), *HEAVY) == []


def test_help_answers_at_once():
    seconds = list[float]()
    while len(seconds) < 4 and min(seconds, default=2.0) >= 1.0:
        started = time.perf_counter()
        text = subprocess.run([COMMAND, "--help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        seconds.append(time.perf_counter() - started)
        assert "bakeoff run sweeps/quickstart.toml" in text
    assert min(seconds) < 1.0, seconds


def statements(path: Path) -> list[str]:
    """The lines of a method file that are neither blank nor an import."""
    lines = (line.strip() for line in path.read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line and not line.startswith(("from ", "import ", "if TYPE_CHECKING"))]


def test_no_six_lines_are_the_same_in_two_method_files():
    seen = dict[tuple[str, ...], Path]()
    for path in sorted((ROOT / "methods").glob("*.py")):
        lines = statements(path)
        for i in range(len(lines) - 5):
            other = seen.setdefault(tuple(lines[i : i + 6]), path)
            assert other == path, f"{path.name} and {other.name} share: {lines[i : i + 6]}"


def test_a_method_is_one_file_under_200_lines():
    for path in (ROOT / "methods").glob("*.py"):
        assert len(path.read_text(encoding="utf-8").splitlines()) < 200, path


def test_no_method_knows_a_task_or_an_architecture():
    words = ("arithmetic", "knights", "programs", "glm", "llama", "deepseek_v", "moe", "mtp", "mla")
    for path in (ROOT / "methods").glob("*.py"):
        code = path.read_text(encoding="utf-8").lower().split('"""', 2)[-1]
        assert [word for word in words if word in code] == [], path


def test_what_reports_say_again_because_they_load_no_model_is_what_the_harness_says():
    from harness import method, moe, study
    from reports import heat, provenance, search

    assert (heat.COLLAPSED, search.FEWEST, provenance.CHOICES) == (moe.COLLAPSED, study.FEWEST, method.CARD)
