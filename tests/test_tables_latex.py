"""Paper tables in LaTeX compile, whatever the labels are, and nothing that was measured breaks Markdown."""

import json
import shutil
import subprocess

import pytest
from synthetic import TROUBLE, write_architectures, write_comparison
from test_tables import GC, folders, table

from reports.tables import STYLES, render

AWKWARD = r"a_b & 50% $x$ #1 {~^} \textbf|<i> [2] π→é😀"
DOCUMENT = r"\documentclass{article}\usepackage{booktabs}\begin{document}%s\end{document}"

needs_latex = pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")


def compiled(folder, text):
    """What pdflatex says of a document with these tables."""
    (folder / "tables.tex").write_text(DOCUMENT % text)
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "tables.tex"]
    ended = subprocess.run(command, cwd=folder, capture_output=True, text=True, errors="replace", timeout=120)
    assert ended.returncode == 0, ended.stdout[-2000:]
    return ended.stdout


def rename(root, label):
    """Give the runs of an arm another label."""
    for folder in folders(root, label):
        path = folder / "config.json"
        if path.exists():
            path.write_text(json.dumps(json.loads(path.read_text()) | {"label": AWKWARD}))


@needs_latex
@pytest.mark.slow
def test_every_style_compiles(tmp_path):
    one, two = tmp_path / "methods", tmp_path / "models"
    write_comparison(one, arms=("base", "sft", "distill", "dpo", "grpo", "sft-grpo"), states=TROUBLE)
    (folders(one, "grpo")[0] / "paradigm.json").write_text(json.dumps(GC))
    rename(one, "distill")
    write_architectures(two, states={("grpo", 1): "failed"})
    roots = {"architecture": two, "balancing": two, "claims": None}  # claims: test_tables_claims.py
    pages = [render(table(root, style), "latex") for style in STYLES if (root := roots.get(style, one))]
    assert "Missing character" not in compiled(tmp_path, "".join(pages))


def test_an_awkward_label_is_escaped_in_latex_and_one_cell_in_markdown(tmp_path):
    write_comparison(tmp_path, arms=("base", "sft"))
    rename(tmp_path, "sft")
    found = table(tmp_path, "deepseekmath")
    assert (
        r"{a\_b \& 50\% \$x\$ \#1 \{\textasciitilde{}\textasciicircum{}\} \textbackslash{}textbf\textbar{}"
        r"\textless{}i\textgreater{} [2] $\pi$$\rightarrow$e?} & 3/3" in render(found, "latex")
    )
    (line,) = [line for line in render(found, "md").splitlines() if "50%" in line]
    assert line.replace(r"\|", "").count("|") == 6
    assert r"\<i>" in line
    assert AWKWARD in render(found, "csv")


def test_a_note_marks_the_cells_that_it_explains(tmp_path):
    write_comparison(tmp_path, arms=("base", "sft"), states={("sft", seed): "failed" for seed in range(3)})
    page = render(table(tmp_path, "deepseekmath"), "latex")
    assert "{sft} & 0/3 (3 failed) & --$^{1}$" in page
    assert r"$^{1}$\,3 of 3 runs failed: FloatingPointError: loss is nan." in page
