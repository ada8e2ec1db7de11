"""bakeoff list: what there is."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from harness.cli._shared import AsJson, Root
from harness.errors import BakeoffError


class Listed(StrEnum):
    methods = "methods"
    models = "models"
    tasks = "tasks"
    sweeps = "sweeps"
    runs = "runs"
    claims = "claims"
    tables = "tables"


def list_(what: Annotated[Listed, typer.Argument(help="what to list")], as_json: AsJson = False, root: Root = Path()) -> None:
    """What there is: methods with their data, reward and objective, models, tasks, sweeps, runs, styles of tables."""
    rows: list[dict[str, Any]] = LISTS[what](root)
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    for row in rows:
        name, *rest = row.items()
        print(name[1])
        for key, value in rest:
            print(f"    {key:<15} {f'{value:,}' if isinstance(value, int) else value}")


def methods(_: Path) -> list[dict[str, Any]]:
    from dataclasses import fields

    from harness import plugins

    def options(cls: Any) -> str:
        return ", ".join(f"{f.name}={f.default}" for f in fields(cls) if f.init)

    found = {name: plugins.find("methods", name) for name in plugins.names("methods")}
    return [
        {"name": name, "data": m.data, "reward": m.reward, "objective": m.objective, "options": options(m)}
        for name, m in found.items()
    ]


def bases(root: Path) -> list[dict[str, Any]]:
    from dataclasses import asdict

    from harness import models
    from harness.pretrain import character_tokenizer

    rows, tokenizer = list[dict[str, Any]](), character_tokenizer()
    for name, recipe in models.presets().items():
        folder = models.location(name, root)
        architecture = recipe.architecture or models.presets()[recipe.start].architecture
        rows.append(
            {
                "name": name,
                "summary": recipe.summary,
                **asdict(models.facts(models.new(architecture, tokenizer))),
                "cached": str(folder) if folder.exists() else "not yet",
            }
        )
    return rows


def tasks(_: Path) -> list[dict[str, Any]]:
    from harness import plugins

    found = [plugins.find("tasks", name) for name in plugins.names("tasks")]
    return [
        {"name": t.name, "summary": t.summary, "chance": t.chance, "example": f"{p.prompt}  {p.solution}"}
        for t in found
        for p in [t.problems("test")[0]]
    ]


def sweeps(_: Path) -> list[dict[str, Any]]:
    import tomllib

    return [
        {"name": str(path), "question": tomllib.loads(path.read_text(encoding="utf-8")).get("question", "")}
        for path in sorted(Path("sweeps").rglob("*.toml"))
    ]


def made(_: Path) -> list[dict[str, Any]]:
    import tomllib

    return [
        {"name": name, "text": claim.get("text"), "source": claim.get("source"), "sweep": str(path)}
        for path in sorted(Path("sweeps").rglob("*.toml"))
        for name, claim in tomllib.loads(path.read_text(encoding="utf-8")).get("claims", {}).items()
    ]


def runs(root: Path) -> list[dict[str, Any]]:
    from harness import files

    rows = list[dict[str, Any]]()
    for path in sorted((root / "runs").glob("*/config.json")):
        status = next((s for s in ("DONE", "FAILED") if (path.parent / s).exists()), "to go")
        try:
            last = files.tail_jsonl(path.parent / "metrics.jsonl") or {}
        except BakeoffError as error:
            last, status = {}, str(error)
        rows.append({"name": path.parent.name, "status": status, "step": last.get("step", 0), "pass@1": last.get("test/pass@1")})
    return rows


def tables(_: Path) -> list[dict[str, Any]]:
    from reports.tables import sentences

    return [{"name": name, "shows": sentence} for name, sentence in sentences().items()]


LISTS = {
    Listed.methods: methods,
    Listed.models: bases,
    Listed.tasks: tasks,
    Listed.sweeps: sweeps,
    Listed.runs: runs,
    Listed.claims: made,
    Listed.tables: tables,
}
