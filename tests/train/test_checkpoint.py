"""Checkpoints under torn files, full disks, a second trainer, and a writer killed at every system call."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from train.checkpoint import Checkpoint, CheckpointStore, read_version
from vlm.errors import CheckpointError, TrainingError


def checkpoint(step: int, size: int = 300) -> Checkpoint:
    generator = torch.Generator().manual_seed(step)
    weights = {"a.weight": torch.randn(size, 4, generator=generator), "b": torch.tensor(step)}
    optimizer = {
        "a.weight/exp_avg": torch.randn(size, 4, generator=generator).bfloat16(),
        "a.weight/step": torch.tensor(1.0),
    }
    return Checkpoint(
        {"progress": {"stage": 0, "step": step}, "recipe": {}}, {"weights": weights, "optimizer": optimizer}
    )


def same(a: Checkpoint | None, b: Checkpoint) -> bool:
    return (
        a is not None
        and a.state == b.state
        and a.tensors.keys() == b.tensors.keys()
        and all(
            a.tensors[g].keys() == b.tensors[g].keys()
            and all(torch.equal(a.tensors[g][k], t) for k, t in b.tensors[g].items())
            for g in b.tensors
        )
    )


def in_child(work: Callable[[], int]) -> int:
    """Exit code of ``work`` in a fork; negative for a signal."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forking with threads; the child only writes files
        child = os.fork()
    if child == 0:
        code = 70
        try:
            code = work()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def leftovers(folder: Path) -> list[str]:
    return [p.name for p in folder.iterdir() if p.name.startswith(".tmp-")]


def test_what_is_saved_comes_back_and_old_versions_go(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "c", keep=2)
    assert store.load() is None
    for step in (1, 2, 12):
        path = store.save("sft one", checkpoint(step))
        assert same(store.load(), checkpoint(step))
        assert (tmp_path / "c" / "latest").read_text().strip() == path.name
    assert [p.name for p in store.versions()] == ["000002-sft_one-2", "000003-sft_one-12"]
    assert leftovers(store.folder) == []


def test_only_safetensors_and_json_are_written(tmp_path: Path) -> None:
    path = CheckpointStore(tmp_path).save("s", checkpoint(1))
    assert sorted(p.suffix for p in path.iterdir()) == [".json", ".json", ".safetensors", ".safetensors"]
    manifest = json.loads((path / "manifest.json").read_text())
    assert manifest["schema"] == 1
    assert {n: f["bytes"] for n, f in manifest["files"].items()} == {
        p.name: p.stat().st_size for p in path.iterdir() if p.name != "manifest.json"
    }


def test_latest_decides_and_a_lost_latest_does_not_matter(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    first = store.save("s", checkpoint(1))
    store.save("s", checkpoint(2))
    (tmp_path / "latest").write_text(first.name)
    assert same(store.load(), checkpoint(1))
    for text in ("", "nonsense", "../../etc"):
        (tmp_path / "latest").write_text(text)
        assert same(store.load(), checkpoint(2))
    (tmp_path / "latest").unlink()
    assert same(store.load(), checkpoint(2))


def flip(file: Path, rng: random.Random) -> None:
    data = bytearray(file.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    file.write_bytes(data)


def truncate(file: Path, rng: random.Random) -> None:
    os.truncate(file, rng.randrange(file.stat().st_size))


def lengthen(file: Path, rng: random.Random) -> None:
    with open(file, "ab") as f:
        f.write(bytes(rng.randrange(1, 9)))


def remove(file: Path, rng: random.Random) -> None:
    file.unlink()


FILES = ("weights.safetensors", "optimizer.safetensors", "state.json", "manifest.json")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("tear", [flip, truncate, lengthen, remove])
def test_a_torn_file_is_named_and_the_version_before_is_used(
    tmp_path: Path, name: str, tear: Callable[[Path, random.Random], None], caplog: pytest.LogCaptureFixture
) -> None:
    store = CheckpointStore(tmp_path)
    good, newest = store.save("s", checkpoint(1)), store.save("s", checkpoint(2))
    kept = (newest / name).read_bytes()
    rng = random.Random(name + tear.__name__)
    for _ in range(8 if tear in (flip, truncate) else 1):
        caplog.clear()
        tear(newest / name, rng)
        found = store.load()
        assert same(found, checkpoint(1)) and found is not None and found.path == good
        assert str(newest / name) in caplog.text
        (newest / name).write_bytes(kept)
    assert same(store.load(), checkpoint(2))


def test_a_damaged_version_can_be_set_aside(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    store.save("s", checkpoint(1))
    newest = store.save("s", checkpoint(2))
    truncate(newest / "weights.safetensors", random.Random(0))
    assert same(store.load(set_aside=True), checkpoint(1))
    assert not newest.exists() and newest.with_name(newest.name + ".damaged").is_dir()
    store.save("s", checkpoint(3))
    assert [p.name for p in store.versions()] == ["000001-s-1", "000002-s-3"]


def test_nothing_sound_left_is_an_error_that_names_every_file(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    for step in (1, 2):
        flip(store.save("s", checkpoint(step)) / "state.json", random.Random(step))
    with pytest.raises(CheckpointError, match=r"000002-s-2/state.json.*000001-s-1/state.json"):
        store.load()


def test_a_newer_schema_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("train.checkpoint.SCHEMA", 2)
    path = CheckpointStore(tmp_path).save("s", checkpoint(1))
    monkeypatch.setattr("train.checkpoint.SCHEMA", 1)
    with pytest.raises(CheckpointError, match="schema 2 is newer"):
        read_version(path)


CALLS = ("fsync", "rename", "replace", "unlink", "rmdir", "mkdir")


def die_at(call: int) -> Callable[[], int]:
    """Patch, in a child, what the writer asks of the system: SIGKILL right after the ``call``-th request."""
    count = 0

    def patch() -> int:
        def counted(name: str) -> None:
            real = getattr(os, name)

            def wrapper(*args: object, **kwargs: object) -> object:
                nonlocal count
                result = real(*args, **kwargs)
                count += 1
                if count == call:
                    os.kill(os.getpid(), signal.SIGKILL)
                return result

            setattr(os, name, wrapper)

        for name in CALLS:
            counted(name)
        return 0

    return patch


def test_a_writer_killed_after_any_system_call_leaves_a_sound_folder(tmp_path: Path) -> None:
    outcomes = []
    for call in range(1, 60):
        folder = tmp_path / str(call)
        store = CheckpointStore(folder)
        store.save("s", checkpoint(1))
        store.save("s", checkpoint(2))

        def work(store: CheckpointStore = store, call: int = call) -> int:
            die_at(call)()
            store.save("s", checkpoint(3))
            return 0

        code = in_child(work)
        found = store.load()
        assert same(found, checkpoint(2)) or same(found, checkpoint(3)), f"after call {call}"
        store.clean()
        assert leftovers(folder) == []
        store.save("s", checkpoint(4))
        assert same(store.load(), checkpoint(4))
        outcomes.append(found.step if found else None)
        if code == 0:
            break
    assert len(outcomes) >= 12 and outcomes[0] == 2 and outcomes[-1] == 3


@contextlib.contextmanager
def small_disk(folder: Path, size: int) -> Iterator[Path]:
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip("mounting a small file system needs root")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_keeps_the_last_good_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with small_disk(tmp_path / "disk", 1 << 20) as disk:
        store = CheckpointStore(disk / "c")
        store.save("s", checkpoint(1, size=8000))
        with pytest.raises(TrainingError, match=r"disk full, \d+ bytes needed, \d+ free .*000001-s-1"):
            store.save("s", checkpoint(2, size=60000))
        usage = shutil.disk_usage(disk)
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1 << 40))  # it fills while we write
        for size in (9000, 12000, 14000, 16000, 18000, 20000):
            ballast = disk / "ballast"
            ballast.write_bytes(bytes((1 << 20) - (8000 * 24 + 40_000) - size * 16))
            with pytest.raises(TrainingError, match=r"disk full, \d+ bytes needed"):
                store.save("s", checkpoint(2, size=size))
            assert leftovers(store.folder) == []
            assert same(store.load(), checkpoint(1, size=8000))
            ballast.unlink()
        store.save("s", checkpoint(3))
        assert same(store.load(), checkpoint(3))


def test_a_write_that_fails_at_any_offset_keeps_the_last_good_checkpoint(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    store.save("s", checkpoint(1))
    largest = max(p.stat().st_size for p in store.versions()[0].iterdir())
    for limit in (0, 1, 10, 100, 500, largest // 2, largest - 1):

        def work(limit: int = limit) -> int:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            try:
                store.save("s", checkpoint(2))
            except TrainingError as error:
                return 0 if "disk full" in str(error) and "000001-s-1" in str(error) else 1
            return 2

        assert in_child(work) == 0, f"limit {limit}"
        assert leftovers(tmp_path) == []
        assert same(store.load(), checkpoint(1))


def test_other_errors_of_the_system_pass_through_and_leave_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = CheckpointStore(tmp_path)
    store.save("s", checkpoint(1))

    def refuse(*_: object) -> None:
        raise OSError(errno.EIO, "input/output error")

    monkeypatch.setattr(os, "rename", refuse)
    with pytest.raises(OSError, match="input/output"):
        store.save("s", checkpoint(2))
    assert leftovers(tmp_path) == [] and same(store.load(), checkpoint(1))


def test_a_second_trainer_is_kept_out(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)

    def work() -> int:
        try:
            with CheckpointStore(tmp_path).lock():
                return 0
        except TrainingError as error:
            return 3 if f"process {os.getppid()}" in str(error) else 4

    with store.lock():
        assert in_child(work) == 3
    assert in_child(work) == 0


def test_the_lock_of_a_killed_trainer_is_free(tmp_path: Path) -> None:
    def work() -> int:
        with CheckpointStore(tmp_path).lock():
            os.kill(os.getpid(), signal.SIGKILL)
        return 0

    assert in_child(work) == -signal.SIGKILL
    with CheckpointStore(tmp_path).lock():
        pass
