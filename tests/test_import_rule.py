"""Who may import whom (DESIGN): read from the source, so a breach fails even where the import is lazy."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BASE = {"config", "errors"}
ALLOWED = {  # part of minillm -> the parts of minillm that it may import; "kernels" is minillm_kernels
    "model": {"model", "kernels"} | BASE,
    "tokenizer": {"tokenizer"} | BASE,
    "data": {"data", "tokenizer"} | BASE,
    "objectives": {"objectives", "kernels", "data"} | BASE,
    "checkpoint": {"checkpoint"} | BASE,
    # it says which settings of ours stand for which of theirs; the trainer, which imports checkpoint, knows none of it
    "checkpoint/hf": {"checkpoint", "model", "tokenizer"} | BASE,
    "training": {"training", "data", "checkpoint", "objectives"} | BASE,
    # beside the parts that DESIGN names: what stands at the top for every user of a model, not for one command
    "finetune": {"finetune", "model", "training", "objectives", "data", "checkpoint", "tokenizer", "kernels"}
    | {"evaluate", "generate", "loading", "pretrain_config"}
    | BASE,
    "errors": set(),
    "config": {"errors"},
}


def imports_of(path: Path) -> set[str]:
    """Return the dotted names of every module that a file imports, lazily or not."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute, got a relative one on line {node.lineno}"
            found.add(node.module or "")
            if node.module == "minillm":
                found |= {f"minillm.{alias.name}" for alias in node.names}
    return found


def part_of(module: str) -> str | None:
    """Return the part of this project that a dotted name belongs to, None for a stranger."""
    first, _, rest = module.partition(".")
    if first == "minillm_kernels":
        return "kernels"
    return (rest.partition(".")[0] or None) if first == "minillm" else None


SOURCES = sorted((ROOT / "minillm").rglob("*.py")) + sorted((ROOT / "kernels/minillm_kernels").rglob("*.py"))


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_follow_the_rule(path):
    """Each file imports only what its part may."""
    names = imports_of(path)
    if "minillm_kernels" in path.parts:
        strangers = {n.partition(".")[0] for n in names} - {"torch", "triton", "minillm_kernels", "__future__"}
        outside = {n for n in strangers if n not in __import__("sys").stdlib_module_names}
        assert not outside, f"minillm_kernels imports torch and triton only, got {sorted(outside)}"
        return
    place = path.relative_to(ROOT / "minillm").parts
    part = "checkpoint/hf" if place[:2] == ("checkpoint", "hf") else place[0].removesuffix(".py")
    imported = {p for n in names if (p := part_of(n)) is not None}
    if part in ALLOWED:
        assert imported <= ALLOWED[part], f"minillm.{part} may not import {sorted(imported - ALLOWED[part])}"
    elif part not in ("cli", "__main__"):  # `python -m minillm` is the command line
        assert "cli" not in imported, "nothing imports minillm.cli"


def test_training_takes_only_the_loss_from_objectives():
    """The trainer is handed its objective and knows only what a loss is."""
    for path in (ROOT / "minillm/training").rglob("*.py"):
        taken = {n for n in imports_of(path) if n.startswith("minillm.objectives")}
        assert taken <= {"minillm.objectives.loss"}, f"{path.name} imports {sorted(taken)}"


def test_only_settings_of_the_model_reach_the_name_tables():
    """They know a model by its configuration alone, and neither the trainer nor run folders know of them."""
    for path in (ROOT / "minillm/checkpoint/hf").rglob("*.py"):
        taken = {n for n in imports_of(path) if n.startswith("minillm.model")}
        assert taken <= {"minillm.model.config"}, f"{path.name} imports {sorted(taken)}"
    for path in (*(ROOT / "minillm/training").rglob("*.py"), *(ROOT / "minillm/checkpoint").glob("*.py")):
        assert not {n for n in imports_of(path) if n.startswith("minillm.checkpoint.hf")}, path.name
