"""Export of smol's trained parts: a checkpoint and the end of a run give the same file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from train.smol import export
from vlm.errors import CheckpointError, DataError, MissingDependencyError


def test_a_checkpoint_and_a_finished_run_export_the_same_parts(tmp_path: Path) -> None:
    try:
        from vlm.presets.smol import TRAINED_FILE, base, time_token_ids

        model, processor = base(extra_prototypes=2)
    except (CheckpointError, DataError, MissingDependencyError) as error:
        pytest.skip(str(error))
    table = model.get_input_embeddings().weight.detach().clone()
    rows = torch.arange(100.0)[:, None].expand(100, table.shape[1]) / 64
    table[time_token_ids(processor)] = rows
    common = {f"mm_projector.{k}": v.clone() for k, v in model.mm_projector.state_dict().items()}
    common["language_model.model.layers.0.self_attn.q_proj.lora_A.default.weight"] = torch.ones(8, table.shape[1])
    common["language_model.model.layers.0.self_attn.q_proj.lora_B.default.weight"] = torch.ones(table.shape[1], 8)
    checkpoint, final = tmp_path / "checkpoint", tmp_path / "final"
    for folder in (checkpoint, final):
        folder.mkdir()
    stale = {"language_model.model.embed_tokens.weight": torch.zeros_like(table)}  # as it was after an earlier stage
    now = {"language_model.model.embed_tokens.trained.token_rows": rows.contiguous()}
    save_file({**common, **stale, **now}, checkpoint / "weights.safetensors")
    save_file({**common, "language_model.model.embed_tokens.weight": table}, final / "trainable.safetensors")
    plugins = [{"call": "lora", "args": {"r": 8, "alpha": 16.0}}]
    (final / "recipe.json").write_text(
        json.dumps({"recipe": {"model": {"args": {}}, "stages": [{"plugins": plugins}]}})
    )
    one = load_file(export(checkpoint, tmp_path / "one") / TRAINED_FILE)
    two = load_file(export(final, tmp_path / "two") / TRAINED_FILE)
    assert set(one) == set(two) and all(torch.equal(one[k], two[k]) for k in one)
    assert torch.equal(one["time_rows"], rows.half())
    meta = json.loads((tmp_path / "two" / "trained.json").read_text())
    assert meta["extra_prototypes"] == 2 and meta["lora_scale"] == 2.0
    del common["mm_projector.keys.weight"]
    save_file(common, checkpoint / "weights.safetensors")
    with pytest.raises(CheckpointError, match="time tokens"):
        export(checkpoint, tmp_path / "three")
