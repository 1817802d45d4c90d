"""Checkpoints that survive kill -9, full disks and torn files. safetensors and JSON only; nothing here can run code.

    OUT/checkpoints/000012-sft-400/   weights.safetensors  optimizer.safetensors  state.json  manifest.json
    OUT/checkpoints/latest            the name of the newest version

A version is written into a temporary folder, every file is flushed to the disk, the manifest (size and sha256 of every
file, and of itself) comes last, the folder is renamed, and only then does ``latest`` change, atomically. So a reader
meets whole versions or none, and a version damaged later is recognised by its hashes and the one before is used.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vlm.errors import CheckpointError, ConfigError, TrainingError

SCHEMA = 1
MANIFEST = "manifest.json"
LATEST = "latest"
TEMPORARY = ".tmp-"
DAMAGED = ".damaged"
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

log = logging.getLogger(__name__)


@dataclass
class Checkpoint:
    """What one version holds.

    Attributes:
        state: JSON-ready: ``progress`` (stage, step, ...) and ``recipe``.
        tensors: ``{"weights": {name: tensor}, "optimizer": {name: tensor}}``.
        path: Where it was read from or written to.
    """

    state: dict[str, Any]
    tensors: dict[str, dict[str, torch.Tensor]]
    path: Path | None = None

    @property
    def stage(self) -> int:
        return int(self.state["progress"]["stage"])

    @property
    def step(self) -> int:
        return int(self.state["progress"]["step"])


@dataclass
class CheckpointStore:
    """The versions in one folder.

    Attributes:
        folder: Where the versions live; made when the first one is written.
        keep: How many versions to keep, newest first.
    """

    folder: Path
    keep: int = 2

    def versions(self) -> list[Path]:
        """Folders of the versions, oldest first, whether sound or not."""
        if not self.folder.is_dir():
            return []
        return sorted(p for p in self.folder.iterdir() if re.fullmatch(r"\d{6,}-[^.]*-\d+", p.name) and p.is_dir())

    # -- writing -------------------------------------------------------------------------------------------------------

    def save(self, label: str, checkpoint: Checkpoint) -> Path:
        """Write a new version; returns its folder.

        Args:
            label: Stage name and step, part of the folder's name.
            checkpoint: What to write.

        Raises:
            TrainingError: The disk is full; nothing is left of the attempt and the versions before are untouched.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        needed = _bytes_needed(checkpoint)
        self._check_space(needed)
        earlier = self.versions()
        serial = int(earlier[-1].name.split("-")[0]) + 1 if earlier else 1
        final = self.folder / f"{serial:06d}-{re.sub(r'[^A-Za-z0-9_]+', '_', label)}-{checkpoint.step}"
        temporary = self.folder / f"{TEMPORARY}{final.name}"
        try:
            _write_version(temporary, checkpoint)
            os.rename(temporary, final)
            _fsync(self.folder)
            atomic_write(self.folder / LATEST, (final.name + "\n").encode())
        except OSError as error:
            shutil.rmtree(temporary, ignore_errors=True)
            if error.errno in FULL:
                raise self._disk_full(needed) from error
            raise
        self._prune()
        checkpoint.path = final
        return final

    def clean(self) -> None:
        """Remove what a killed writer left behind. Only while holding the lock."""
        for path in self.folder.glob(f"{TEMPORARY}*") if self.folder.is_dir() else ():
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    def _check_space(self, needed: int) -> None:
        if shutil.disk_usage(self.folder).free < needed:
            raise self._disk_full(needed)

    def _disk_full(self, needed: int) -> TrainingError:
        free = shutil.disk_usage(self.folder).free
        good = self.versions()
        last = f"the last good checkpoint is {good[-1]}" if good else "no checkpoint was written before"
        return TrainingError(
            f"disk full, {needed} bytes needed, {free} free in {self.folder}; {last}. Free some space (or raise the "
            "file size limit) and start again, or set out= to another disk"
        )

    def _prune(self) -> None:
        for path in self.versions()[: -max(self.keep, 2)]:
            doomed = path.with_name(f"{TEMPORARY}{path.name}")
            os.rename(path, doomed)
            shutil.rmtree(doomed)

    # -- reading -------------------------------------------------------------------------------------------------------

    def load(self, *, set_aside: bool = False) -> Checkpoint | None:
        """The newest sound version, or None if there is no version at all.

        Args:
            set_aside: Rename damaged versions to ``NAME.damaged`` so that they are not met again.

        Raises:
            CheckpointError: There are versions, and all of them are damaged; names each bad file.
        """
        faults = []
        for path in self._newest_first():
            try:
                return read_version(path)
            except CheckpointError as error:
                log.warning("damaged checkpoint, falling back to the one before: %s", error)
                faults.append(str(error))
                if set_aside:
                    os.rename(path, path.with_name(path.name + DAMAGED))
        if faults:
            raise CheckpointError(f"every checkpoint in {self.folder} is damaged: " + "; ".join(faults))
        return None

    def _newest_first(self) -> list[Path]:
        versions = self.versions()[::-1]
        latest = self.folder / LATEST
        name = latest.read_text(encoding="utf-8", errors="replace").strip() if latest.is_file() else ""
        return sorted(versions, key=lambda p: p.name != name)  # stable: the one `latest` names, then the others by age

    # -- one trainer per folder ----------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Keep other trainers out of this folder; the lock ends with the process, however that ends.

        Raises:
            TrainingError: Another trainer holds it; names its process id.
            ConfigError: The folder cannot be made or written.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            opened = open(self.folder / ".lock", "a+", encoding="ascii")  # noqa: SIM115 (closed below)
        except OSError as error:
            raise ConfigError(f"{self.folder} cannot be written: {error}; set out= to another folder") from error
        with opened as file:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                file.seek(0)
                holder = file.read().strip() or "unknown"
                raise TrainingError(
                    f"{self.folder} is in use by another trainer (process {holder}); set out= to another folder"
                ) from error
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
            yield


def atomic_write(path: Path, data: bytes) -> None:
    """Replace a file so that a reader, or a power cut, meets the old content or the new one."""
    temporary = path.with_name(f"{TEMPORARY}{path.name}")
    try:
        _write_file(temporary, data)
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    _fsync(path.parent)


def read_version(path: Path) -> Checkpoint:
    """Check one version against its manifest and read it.

    Raises:
        CheckpointError: A file is missing, has another size or another hash, or the version is of an unknown schema.
    """
    manifest = _read_manifest(path / MANIFEST)
    if manifest["schema"] > SCHEMA:
        raise CheckpointError(
            f"{path}: schema {manifest['schema']} is newer than this package's {SCHEMA}; update the package"
        )
    for name, expected in manifest["files"].items():
        file = path / name
        if not file.is_file():
            raise CheckpointError(f"{file}: missing")
        if file.stat().st_size != expected["bytes"]:
            raise CheckpointError(f"{file}: {file.stat().st_size} bytes instead of {expected['bytes']}")
        if _sha256(file) != expected["sha256"]:
            raise CheckpointError(f"{file}: its sha256 is not the one in {MANIFEST}")
    from safetensors.torch import load_file

    tensors = {Path(n).stem: load_file(path / n) for n in manifest["files"] if n.endswith(".safetensors")}
    return Checkpoint(json.loads((path / "state.json").read_text(encoding="utf-8")), tensors, path)


def save_tensors(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Write a safetensors file; operating system errors arrive as `OSError` with their number.

    Raises:
        OSError: Disk full, file size limit, ...
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file({k: v.detach().contiguous() for k, v in tensors.items()}, path)
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number.group(1)), str(error), str(path)) from error
    _fsync(path)


def _write_version(folder: Path, checkpoint: Checkpoint) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name, tensors in checkpoint.tensors.items():
        save_tensors(folder / f"{name}.safetensors", tensors)
    _write_file(folder / "state.json", _json(checkpoint.state))
    files = {p.name: {"bytes": p.stat().st_size, "sha256": _sha256(p)} for p in sorted(folder.iterdir())}
    manifest = {"schema": SCHEMA, "files": files}
    manifest["sha256"] = hashlib.sha256(_json(manifest)).hexdigest()
    _write_file(folder / MANIFEST, _json(manifest))
    _fsync(folder)


def _read_manifest(path: Path) -> dict[str, Any]:
    """The manifest, if it says of itself what it should; every byte of it counts."""
    try:
        data = path.read_bytes()
        manifest = json.loads(data)
        own = manifest.pop("sha256")
        if hashlib.sha256(_json(manifest)).hexdigest() == own and _json({**manifest, "sha256": own}) == data:
            return manifest
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: missing, so this version was never finished") from error
    except (ValueError, KeyError, TypeError, AttributeError):
        pass
    raise CheckpointError(f"{path}: damaged")


def _json(data: Any) -> bytes:
    return (json.dumps(data, indent=1, sort_keys=True) + "\n").encode()


def _write_file(path: Path, data: bytes) -> None:
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _fsync(path: Path) -> None:
    """Flush a file or a folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _bytes_needed(checkpoint: Checkpoint) -> int:
    """Size of a version on disk: tensors, their headers (about 200 bytes each), JSON, and a margin for folders."""
    tensors = [t for group in checkpoint.tensors.values() for t in group.values()]
    return sum(t.numel() * t.element_size() + 200 for t in tensors) + len(_json(checkpoint.state)) + 64 * 1024
