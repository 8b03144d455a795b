"""Folders are the architecture: imports may only follow the table of docs/architecture.md."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("attacks", "benchmark", "defenses", "leaderboard", "tasks")
EVERYTHING = {
    "benchmark.core",
    "benchmark.metrics",
    "benchmark.protocols",
    "benchmark.contract",
    "benchmark.run",
    "leaderboard",
}
MAY_IMPORT = {
    "benchmark.core": set(),
    "benchmark.api": {"benchmark.core"},
    "benchmark.metrics": {"benchmark.core"},
    "tasks": {"benchmark.core", "benchmark.metrics"},
    "defenses": {"benchmark.core", "benchmark.metrics"},
    "attacks": {"benchmark.core", "benchmark.metrics"},
    "benchmark.protocols": {"benchmark.core", "benchmark.metrics"},
    "benchmark.contract": {"benchmark.core", "benchmark.metrics"},
    "benchmark.run": {"benchmark.core", "benchmark.metrics", "benchmark.protocols"},
    "leaderboard": {"benchmark.core", "benchmark.metrics"},
    "benchmark.cli": EVERYTHING,
}
FILES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))


def layer(module: str) -> str:
    """Return the layer of a module name below firstline, such as benchmark.core.threat."""
    first, _, rest = module.partition(".")
    return f"{first}.{rest.partition('.')[0]}" if first == "benchmark" and rest else first


def imports(path: Path) -> list[tuple[int, str]]:
    """Return the line and the module of every import of ours in a file."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        if isinstance(node, ast.ImportFrom) and node.module == "firstline.benchmark":
            names = [f"firstline.benchmark.{alias.name}" for alias in node.names]
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        found += [(node.lineno, n.removeprefix("firstline.")) for n in names if n.startswith("firstline.")]
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_one_way(path):
    here = layer(".".join(path.relative_to(ROOT).with_suffix("").parts))
    wrong = [
        f"{path.relative_to(ROOT)}:{line} {here} imports {module}"
        for line, module in imports(path)
        if layer(module) != here and layer(module) not in MAY_IMPORT.get(here, set())
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("folder", ["leaderboard", "benchmark/cli"])
def test_pages_and_commands_never_import_torch(folder):
    wrong = []
    for path in (ROOT / folder).rglob("*.py"):
        tree = ast.parse(path.read_text())
        top = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
        names = [getattr(node, "module", None) or node.names[0].name for node in top]
        wrong += [
            f"{path.name}: {name}" for name in names if name.split(".")[0] in ("torch", "mlflow", "datasets")
        ]
    assert not wrong
