"""House rules that a linter does not know: layers, light imports, no unsafe loading, small files, complete results."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FRONT = ("demo", "eval", "train", "data_recipes")
PACKAGES = ("vlm", *FRONT)

# Layers from the top (docs/architecture.md). A module may import its own layer and those below it.
LAYERS: tuple[frozenset[str], ...] = (
    frozenset({*FRONT, "vlm.cli", "vlm.__main__", "vlm.arguments", "vlm.report"}),
    frozenset({"vlm", "vlm.presets", "vlm.compose", "vlm.chat", "vlm.model", "vlm.plugins", "vlm.checkpoints"}),
    frozenset(
        {
            "vlm.messages",
            "vlm.processor",
            "vlm.prepare",
            "vlm.generate",
            "vlm.decode",
            "vlm.pieces",
            "vlm.loss",
            "vlm.connectors",
            "vlm.time",
            "vlm.decoders",
            "vlm.parallel",
        }
    ),
    frozenset({"vlm.media", "vlm.encoders", "vlm.config", "vlm.errors", "vlm.compat", "vlm.files"}),
)

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
SHORTER = {"train/loop.py": 300}
TABLES: frozenset[str] = frozenset()  # files that are mostly a table of data may be longer

# Who may write to standard output: the command line and the scripts.
MAY_PRINT = ("vlm/cli.py", "vlm/report.py", "scripts/")
OWN_PARENT = ("vlm/media/isolate.py", "pickle.load")  # a child process reads the request of its own parent
UNSAFE_CALLS = {"pickle.load", "pickle.loads", "eval", "exec", "os.system", "yaml.load", "yaml.unsafe_load"}
UNSAFE_KEYWORDS = {"trust_remote_code": None, "weights_only": False, "allow_pickle": True, "shell": True}

RESULT_KEYS = {"command", "versions", "commit", "seed", "machine", "date", "rows"}

# Absolute paths of somebody's machine never belong in a file that others read.
MACHINE_PATH = re.compile(r"(?<![\w.~$}\])])/(?:work|home|root|Users|tmp)/[\w.]")
PUBLIC_HOSTS = {
    "arxiv.org", "creativecommons.org", "doi.org", "github.com", "keepachangelog.com", "openai.com", "pytorch.org",
    "semver.org", "www.apache.org", "www.bigbuckbunny.org",
}  # fmt: skip


def sources(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def layer_of(module: str) -> int | None:
    """Index into `LAYERS` of one of our modules; None for anybody else's."""
    parts = module.split(".")
    if parts[0] not in PACKAGES:
        return None
    name = ".".join(parts[:2]) if parts[0] == "vlm" else parts[0]
    found = next((i for i, layer in enumerate(LAYERS) if name in layer), None)
    assert found is not None, f"{name} has no layer; add it to LAYERS and to docs/architecture.md"
    return found


def imports(path: Path) -> Iterator[tuple[int, str, bool]]:
    """(line, module, is at the top level) of absolute imports; ``from a import b`` is ``a.b`` if that is a module."""
    tree = ast.parse(path.read_text())
    inside = {id(n) for f in ast.walk(tree) if isinstance(f, ast.FunctionDef) for n in ast.walk(f)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for name in node.names:
                yield node.lineno, name.name, id(node) not in inside
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            for name in node.names:
                whole = ROOT.joinpath(*node.module.split("."), name.name)
                is_module = whole.is_dir() or whole.with_suffix(".py").exists()
                yield node.lineno, f"{node.module}.{name.name}" if is_module else node.module, id(node) not in inside


def test_layers_point_only_downwards() -> None:
    wrong = []
    for path in sources(*PACKAGES):
        own = layer_of(module_of(path))
        assert own is not None
        for line, module, _ in imports(path):
            other = layer_of(module)
            if other is not None and other < own:
                wrong.append(f"{relative(path)}:{line} (layer {own}) imports {module} (layer {other})")
    assert wrong == []


def test_the_command_line_imports_the_front_ends_only_when_used() -> None:
    wrong = [
        f"{relative(path)}:{line} imports {module}"
        for path in sources("vlm")
        for line, module, top in imports(path)
        if top and module.split(".")[0] in FRONT
    ]
    assert wrong == []


def test_import_vlm_is_light() -> None:
    heavy = ["av", "PIL", "accelerate", "decord", "diffusers", "fastapi", "gradio", "matplotlib", "open_clip", "peft"]
    heavy += ["timm", "torchaudio", "torchvision"]
    code = f"import sys, vlm; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
    assert done.stderr == ""


def test_nothing_from_outside_is_run() -> None:
    wrong = []
    for path in sources(*PACKAGES, "scripts"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            called = ast.unparse(node.func)
            if called in UNSAFE_CALLS and (relative(path), called) != OWN_PARENT:
                wrong.append(f"{relative(path)}:{node.lineno} calls {called}")
            for keyword in node.keywords:
                bad = UNSAFE_KEYWORDS.get(keyword.arg or "", ...)
                if bad is None or (isinstance(keyword.value, ast.Constant) and keyword.value.value is bad):
                    wrong.append(f"{relative(path)}:{node.lineno} passes {ast.unparse(keyword)}")
    assert wrong == []


def test_the_library_does_not_print() -> None:
    wrong = [
        f"{relative(path)}:{node.lineno}"
        for path in sources(*PACKAGES)
        if not relative(path).startswith(MAY_PRINT)
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]
    assert wrong == []


def code_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function without its docstring."""
    doc = function.body[0]
    is_doc = isinstance(doc, ast.Expr) and isinstance(doc.value, ast.Constant) and isinstance(doc.value.value, str)
    docstring = (doc.end_lineno or doc.lineno) - doc.lineno + 1 if is_doc else 0
    return (function.end_lineno or function.lineno) - function.lineno + 1 - docstring


def test_files_and_functions_are_small() -> None:
    wrong = []
    for path in sources(*PACKAGES, "scripts", "tests"):
        text = path.read_text()
        limit = SHORTER.get(relative(path), MAX_FILE_LINES)
        lines = len(text.splitlines())
        if lines > limit and relative(path) not in TABLES:
            wrong.append(f"{relative(path)} has {lines} lines, at most {limit}")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = code_lines(node)
                if length > MAX_FUNCTION_LINES:
                    wrong.append(
                        f"{relative(path)}:{node.lineno} {node.name} has {length} lines, at most {MAX_FUNCTION_LINES}"
                    )
    assert wrong == []


def test_every_module_and_public_name_says_what_it_is() -> None:
    wrong = []
    for path in sources(*PACKAGES, "scripts"):
        tree = ast.parse(path.read_text())
        if not ast.get_docstring(tree) or "TODO" in (ast.get_docstring(tree) or ""):
            wrong.append(relative(path))
        for node in tree.body:
            if (
                isinstance(node, ast.FunctionDef | ast.ClassDef)
                and not node.name.startswith("_")
                and not ast.get_docstring(node)
            ):
                wrong.append(f"{relative(path)}:{node.lineno} {node.name}")
    assert wrong == []


def readable_files() -> list[Path]:
    """Every text file that a reader of the repository may open."""
    kept = [*sources(*PACKAGES, "scripts", "tests"), *ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    kept += [*(ROOT / "docs").rglob("*.json"), *(ROOT / "demo").rglob("*.md"), *(ROOT / "train").rglob("*.yaml")]
    return [*kept, ROOT / "Makefile", ROOT / "pyproject.toml", ROOT / "NOTICE", ROOT / ".ci/run"]


def test_no_path_of_one_machine_is_written_down() -> None:
    wrong = [
        f"{relative(path)}:{number} {line.strip()[:80]}"
        for path in readable_files()
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if MACHINE_PATH.search(line)
    ]
    assert wrong == []


def test_links_lead_to_public_pages_only() -> None:
    hosts = {
        (relative(path), host)
        for path in readable_files()
        if not relative(path).startswith("tests/")
        for host in re.findall(r"https?://([\w.-]+\w)", path.read_text())
    }
    known = {
        (file, host)
        for file, host in hosts
        if host in PUBLIC_HOSTS or re.match(r"(127\.|localhost|.*\bexample\b)", host)
    }
    assert not hosts - known


@pytest.mark.parametrize("path", sorted((ROOT / "docs/results").glob("*.json")), ids=lambda p: p.stem)
def test_result_files_are_complete(path: Path) -> None:
    result = json.loads(path.read_text())
    assert not RESULT_KEYS - set(result), f"{path.name} lacks {RESULT_KEYS - set(result)}"
    assert result["rows"]
    for row in result["rows"]:
        assert "name" in row or "claim" in row, row
        assert "value" in row or "ours" in row, row
        assert row.get("holds") in (True, False, None), row
