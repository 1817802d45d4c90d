"""A wheel can be built, holds everything, and works in another environment, away from the repository."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

PACKAGES = ("vlm", "train", "data_recipes", "eval", "demo")
DATA_SUFFIXES = {".typed", ".json", ".safetensors", ".jinja", ".txt", ".yaml", ".mp4"}


def run(*command: str | Path, cwd: Path) -> str:
    """Output of a command that must succeed, run without anything that points into the repository."""
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")}
    done = subprocess.run(
        [str(c) for c in command], cwd=cwd, env=environment, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy so that neither stale build output gets in nor new output stays behind."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(root / name, folder / name)
    for name in PACKAGES:
        shutil.copytree(root / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    run(
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        "dist",
        ".",
        cwd=folder,
    )
    (built,) = (folder / "dist").glob("vlm-*.whl")
    return built


@pytest.fixture(scope="module")
def other(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scripts folder of a new environment with only the wheel in it; the dependencies are borrowed from this one."""
    folder = tmp_path_factory.mktemp("other")
    venv.create(folder / "env", with_pip=False)
    scripts = folder / "env" / ("Scripts" if os.name == "nt" else "bin")
    python = scripts / Path(sys.executable).name
    run(
        sys.executable,
        "-m",
        "pip",
        "--python",
        python,
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        wheel,
        cwd=folder,
    )
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).strip())
    borrowed = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (site / "borrowed.pth").write_text("\n".join(sorted(borrowed)))
    return scripts


def test_the_wheel_holds_all_code_and_data(root: Path, wheel: Path) -> None:
    wanted = {
        path.relative_to(root).as_posix()
        for package in PACKAGES
        for path in (root / package).rglob("*")
        if path.suffix in {".py", *DATA_SUFFIXES}
    }
    names = set(zipfile.ZipFile(wheel).namelist())
    assert wanted - names == set()
    assert "vlm/py.typed" in names
    assert {n.split("/")[0] for n in names} == {*PACKAGES, next(n.split("/")[0] for n in names if ".dist-info/" in n)}


def test_the_wheel_carries_licence_and_notice_and_caps_no_dependency(wheel: Path) -> None:
    contents = zipfile.ZipFile(wheel)
    names = contents.namelist()
    assert any(n.endswith("licenses/LICENSE") for n in names)
    assert any(n.endswith("licenses/NOTICE") for n in names)
    metadata = Parser().parsestr(contents.read(next(n for n in names if n.endswith("/METADATA"))).decode())
    assert metadata["License-Expression"] == "Apache-2.0"
    requirements = [r.split(";")[0] for r in metadata.get_all("Requires-Dist", [])]
    assert requirements
    assert [r for r in requirements if any(cap in r for cap in ("<", "==", "~="))] == []


def test_it_imports_in_another_environment(other: Path) -> None:
    python = other / Path(sys.executable).name
    for package in PACKAGES:
        found = run(python, "-c", f"import {package}; print({package}.__file__)", cwd=other.parent).strip()
        assert Path(found).is_relative_to(other.parent), f"{package} came from {found}"


def test_the_console_script_starts(other: Path) -> None:
    text = run(other / "vlm", "--help", cwd=other.parent)
    assert "chat" in text
    assert "train" in text


def test_the_smallest_model_loads_from_the_wheel(root: Path, other: Path) -> None:
    if not (root / "vlm/presets/nano/config.json").exists():
        pytest.skip("the preset nano has no weights in this checkout")
    assert "parameters" in run(other / "vlm", "info", "nano", cwd=other.parent)


def test_every_extra_in_the_code_exists(root: Path) -> None:
    """`MissingDependencyError(package, extra, ...)` must name an extra that pyproject.toml has."""
    extras = tomllib.loads((root / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    unknown = []
    for path in sorted(p for package in PACKAGES for p in (root / package).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call) or getattr(node.func, "id", "") != "MissingDependencyError":
                continue
            extra = node.args[1] if len(node.args) > 1 else None
            if isinstance(extra, ast.Constant) and extra.value not in extras:
                unknown.append(f"{path.relative_to(root)}:{node.lineno} names the extra {extra.value!r}")
    assert unknown == []
