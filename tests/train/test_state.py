"""The result of a run: what is in it, and that it comes back as it was trained."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import train.state
from tests.train.harness import final_digest, history, recipe
from tests.train.test_loop import MeanLoss, WithNorm, small, trained
from train.run import run
from vlm.errors import ConfigError, TrainingError
from vlm.plugins import Plugin
from vlm.plugins.parts import load_parts, tensors_by_name

HERE = "tests.train.test_state"


@pytest.mark.parametrize("save", ["trainable", "all"])
def test_a_run_that_was_interrupted_has_the_same_result(tmp_path: Path, save: str) -> None:
    whole, parts = recipe(tmp_path / "whole", save=save), recipe(tmp_path / "parts", save=save, until="align")
    for spec in (whole, parts):
        spec.stages[1].trainable = {"lm_head": 1e-3}
    run(whole)
    run(parts)
    parts.until = None
    run(parts)
    assert final_digest(tmp_path / "parts") == final_digest(tmp_path / "whole")
    assert set(load_parts(small(), tmp_path / "parts" / "final")[1]) == {"lm_head.weight", "model.embed_tokens.weight"}


def test_a_new_rotary_base_comes_back_with_the_result(tmp_path: Path) -> None:
    spec = recipe(tmp_path, steps=(2, 1), stage={"seq_len": 128})
    spec.stages[0].rope_theta = 50.0
    run(spec)
    loaded: Any = load_parts(small(), tmp_path / "final")[0].eval()
    assert loaded.config.rope_parameters["rope_theta"] == 50.0
    plain: Any = small().eval()
    plain.load_state_dict(loaded.state_dict())
    x = torch.arange(10)[None]
    with torch.no_grad():
        assert not torch.allclose(loaded(input_ids=x).logits, plain(input_ids=x).logits, atol=1e-4)


class Adapter(Plugin):
    """Adds a bias to the head."""

    def prepare(self, model: Any) -> Any:
        model.adapter = nn.Linear(1, 12)
        return model


def test_a_run_that_starts_from_another_keeps_its_plugins(tmp_path: Path) -> None:
    first = recipe(tmp_path / "a", steps=(2,), stage={"plugins": [{"call": f"{HERE}:Adapter"}]})
    second = recipe(tmp_path / "b", steps=(2,), init=str(tmp_path / "a" / "final"))
    for spec in (first, second):
        spec.model.call, spec.model.args = "tests.train.test_loop:MeanLoss", {}
        spec.stages[0].trainable = {"head": 1e-2}
    run(first)
    run(second)
    loaded, names = load_parts(MeanLoss(), tmp_path / "b" / "final")
    assert {"adapter.weight", "adapter.bias", "head.weight"} <= names
    assert "adapter.weight" in tensors_by_name(loaded)


def test_statistics_of_a_part_that_a_later_stage_freezes_are_kept(tmp_path: Path) -> None:
    spec = recipe(tmp_path, steps=(3, 2))
    spec.model.call, spec.model.args = "tests.train.test_loop:WithNorm", {}
    spec.stages[0].trainable, spec.stages[1].trainable = {"live": 1e-3}, {"head": 1e-3}
    run(spec)
    assert int(trained(tmp_path, WithNorm())["live.num_batches_tracked"]) == 6


def test_a_log_that_cannot_be_written_does_not_stop_a_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    (tmp_path / "history.jsonl").symlink_to("/dev/full")
    assert run(recipe(tmp_path, steps=(2,))) == 0
    assert "history.jsonl" in caplog.text and (tmp_path / "final" / "trainable.safetensors").is_file()


def test_a_result_that_cannot_be_written_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(TrainingError, match=r"final could not be written.*start again"):
        patch.setattr(train.state, "save_tensors", full)
        run(recipe(tmp_path, steps=(2,)))
    assert run(recipe(tmp_path, steps=(2,))) == 0
    assert len(history(tmp_path)) == 2


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"file/run/checkpoints cannot be written.*out="):
        run(recipe(tmp_path / "file" / "run", steps=(1,)))
