"""Imports point one way: python -m pytest tests/test_imports.py."""

import ast
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[1]
OURS = ("builders", "extract", "hub", "cards")
MAY_IMPORT = {
    "builders": {"builders"},
    "hub": {"hub"},
    "cards": {"builders", "cards", "hub"},
    "extract": {"builders", "extract"},
    "extract/agree.py": {"builders", "extract", "hub"},
    "extract/prepare.py": {"builders", "extract", "hub"},
    "extract/output_job.py": {"builders", "extract", "hub"},
    "extract/mend.py": {"builders", "extract", "hub"},
    "extract/ranks.py": {"builders", "extract", "hub"},
    "extract/calibrate.py": {"builders", "extract", "hub"},
    "extract/tables.py": {"builders", "extract", "hub"},
    "extract/plan.py": {"builders", "extract", "hub"},
    "extract/verify.py": {"builders", "extract", "hub"},
    "extract/status.py": {"builders", "extract", "hub"},
    "extract/logits_output.py": {"builders", "extract", "hub"},
    "extract/card.py": {"builders", "extract", "hub", "cards"},
    "extract/derived.py": {"builders", "extract", "hub", "cards"},
    "extract/curate.py": {"builders", "extract", "cards"},
    "extract/subset.py": {"builders", "extract", "cards"},
    "extract/explore.py": {"builders", "extract", "cards"},
    "extract/map.py": {"builders", "extract", "cards"},
    "extract/map_pictures.py": {"builders", "extract", "cards"},
    "extract/run.py": {"builders", "extract", "hub", "cards"},
}
FOR_USERS = "builders/trainer.py"  # a subclass of SFTTrainer
HEAVY = {"torch", "transformers", "vllm"}  # seconds of start, and a GPU's memory
MODULES = sorted(str(p.relative_to(CHECKOUT)) for name in OURS for p in (CHECKOUT / name).rglob("*.py"))


def imported(path, *, top_only=False):
    """Full names of the modules that a file imports, whether at the top or inside a function."""
    tree = ast.parse((CHECKOUT / path).read_text())
    inner = [n for f in ast.walk(tree) if isinstance(f, ast.FunctionDef | ast.AsyncFunctionDef) for n in ast.walk(f)]
    inner += [
        n for c in ast.walk(tree) if isinstance(c, ast.If) and "TYPE_CHECKING" in ast.dump(c.test) for n in ast.walk(c)
    ]
    for node in ast.walk(tree):
        if top_only and node in inner:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import does not work for a script started by path"
            yield str(node.module)
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", MODULES)
def test_imports_point_one_way(path):
    allowed = MAY_IMPORT.get(path) or MAY_IMPORT[path.split("/")[0]]
    assert {name.split(".")[0] for name in imported(path)} & set(OURS) <= allowed


@pytest.mark.parametrize("path", MODULES)
def test_what_is_heavy_is_imported_where_it_is_used(path):
    if not path.startswith("extract/engines/") and path != FOR_USERS:
        assert not {name.split(".")[0] for name in imported(path, top_only=True)} & HEAVY


def test_nothing_imports_the_script():
    """It would load twice: as __main__ and by name. The console command may, when it runs."""
    importers = [path for path in MODULES if "extract.run" in imported(path)]
    assert importers in ([], ["extract/cli.py"])
    assert "extract.run" not in imported("extract/cli.py", top_only=True)


def test_nothing_imports_what_is_for_users_alone():
    assert not [path for path in MODULES if "builders.trainer" in imported(path)]


def test_there_is_something_to_check():
    assert len(MODULES) > 40
    assert "builders.job" in imported("extract/run.py")
    assert "extract.engines.fake" in imported("extract/engines/__init__.py")
    assert "extract.engines.fake" not in imported("extract/engines/__init__.py", top_only=True)
