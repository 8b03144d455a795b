"""The wheel holds every module, template and suite: a lost link in src/ would empty it without a word."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDERS = ("attacks", "benchmark", "defenses", "leaderboard", "tasks")
KINDS = ("*.py", "*.toml", "*.j2", "*.css", "*.json")


def test_wheel_holds_every_file(tmp_path):
    source = tmp_path / "source"
    skipped = shutil.ignore_patterns(".git", ".venv", "runs", "*_cache", "__pycache__", "*.egg-info", "build")
    shutil.copytree(ROOT, source, symlinks=True, ignore=skipped)
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", tmp_path, source]
    subprocess.run(command, check=True, capture_output=True)
    held = set(zipfile.ZipFile(next(tmp_path.glob("*.whl"))).namelist())
    wanted = {
        f"firstline/{path.relative_to(source)}"
        for folder in FOLDERS
        for kind in KINDS
        for path in (source / folder).rglob(kind)
    }
    assert len(wanted) > 60
    assert wanted <= held, sorted(wanted - held)
    assert "firstline/py.typed" in held
