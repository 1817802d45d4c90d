"""The start of nano: attention that looks up what is alike, and eyes taken from their own run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from data_recipes.synth.shapes_scene import SOUND_RATE, tone
from train.stages import load_recipe
from vlm.encoders import log_mel
from vlm.errors import CheckpointError, ConfigError
from vlm.model import VLMForConditionalGeneration
from vlm.plugins.parts import tensors_by_name
from vlm.presets import preset_folder

pytest.importorskip("timm")

from train.nano import export, model, restart, retold
from train.nano_senses import SLICES, ears_model, eyes_model


@pytest.fixture(scope="module")
def llm() -> Any:
    return model()[0].language_model


def test_output_times_value_is_the_identity(llm: Any) -> None:
    attention = llm.model.layers[2].self_attn
    x = torch.randn(7, attention.q_proj.in_features)
    torch.testing.assert_close(attention.o_proj(attention.v_proj(x)), x, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_attention_finds_what_is_alike_before_any_training(llm: Any) -> None:
    """A key of a random half of the query's content, 200 tokens away, gets more weight than each of 199 others, most of the time."""
    attention = llm.model.layers[0].self_attn
    llm.set_attn_implementation("eager")
    torch.manual_seed(0)
    width, found = attention.q_proj.in_features, 0
    for _ in range(20):
        x = torch.randn(1, 201, width)
        x[0, 0] = (x[0, -1] + torch.randn(width)) / 2**0.5
        positions = llm.model.rotary_emb(x, torch.arange(201)[None])
        _, weights = attention(x, position_embeddings=positions, attention_mask=None)
        found += int(weights[0, :, -1, :-1].mean(0).argmax() == 0)
    assert found >= 8  # by chance 0.1


def test_eyes_are_taken_over_exactly(tmp_path: Path) -> None:
    eyes = eyes_model(seed=3)
    save_file({k: v.contiguous() for k, v in eyes.state_dict().items()}, tmp_path / "trainable.safetensors")
    nano, _ = model(eyes=str(tmp_path))
    for key, value in eyes.vision_tower.state_dict().items():
        assert torch.equal(nano.vision_tower.state_dict()[key], value), key
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(CheckpointError, match="nano_eyes"):
        model(eyes=str(empty))


def test_ears_are_taken_over_and_a_beep_starts_as_its_word(tmp_path: Path) -> None:
    ears = ears_model(seed=3)
    save_file({k: v.contiguous() for k, v in ears.state_dict().items()}, tmp_path / "trainable.safetensors")
    nano, processor = model(ears=str(tmp_path))
    for key, value in ears.audio_tower.state_dict().items():
        assert torch.equal(nano.audio_tower.state_dict()[key], value), key
    word = nano.get_input_embeddings().weight[processor.tokenizer(" beep")["input_ids"][-1]]
    shades = nano.audio_projector.layers[2].weight[:, :SLICES].T
    assert torch.cosine_similarity(shades, word[None]).min() > 0.7
    with pytest.raises(CheckpointError, match="nano_eyes"):
        model(eyes=str(tmp_path))


def test_a_run_goes_on_with_ears_of_its_own(tmp_path: Path) -> None:
    ears = ears_model(seed=3)
    (tmp_path / "ears").mkdir()
    save_file({k: v.contiguous() for k, v in ears.state_dict().items()}, tmp_path / "ears" / "trainable.safetensors")
    deaf, _ = model(seed=5)
    deaf.save_pretrained(tmp_path / "final")
    nano, _ = model(run=str(tmp_path / "final"), ears=str(tmp_path / "ears"))
    before, after = deaf.state_dict(), nano.state_dict()
    other = {key.split(".")[0] for key in before if not torch.equal(before[key], after[key])}
    assert other == {"audio_tower", "audio_projector"}
    assert torch.equal(
        nano.audio_tower.state_dict()["encoder.conv1.weight"], ears.audio_tower.state_dict()["encoder.conv1.weight"]
    )


def test_ears_hear_from_the_start() -> None:
    """A beep changes the tokens of untrained ears by more than where in the window it is: Whisper's own start at 0.02 fails this."""
    ears = ears_model(seed=0)
    silence, beep = (torch.zeros(10 * SOUND_RATE) for _ in range(2))
    beep[: 5 * SOUND_RATE] = torch.from_numpy(tone(5 * SOUND_RATE, 800.0))
    mels = torch.stack([log_mel(x.numpy(), rate=SOUND_RATE, num_mel_bins=16) for x in (silence, beep)])
    with torch.no_grad():
        quiet, loud = ears.audio_tower(mels)
    assert (loud[2:8] - quiet[2:8]).norm(dim=-1).mean() > 0.3 * quiet.norm(dim=-1).mean()


def test_a_finished_run_and_a_checkpoint_export_the_same_model(tmp_path: Path) -> None:
    nano, _ = model(seed=5)
    final, checkpoint = tmp_path / "final", tmp_path / "checkpoint"
    nano.save_pretrained(final)
    checkpoint.mkdir()
    save_file({k: v.clone() for k, v in tensors_by_name(nano).items()}, checkpoint / "weights.safetensors")
    one, two = (
        load_file(export(run, tmp_path / run.stem / "out") / "model.safetensors") for run in (final, checkpoint)
    )
    assert one and set(one) == set(two) and all(torch.equal(one[k], two[k]) for k in one)
    with pytest.raises(CheckpointError, match=r"holds no model\.safetensors"):
        export(tmp_path)


def test_the_rotary_base_that_a_run_ended_with_is_exported(tmp_path: Path) -> None:
    nano, _ = model(seed=5)
    nano.save_pretrained(tmp_path / "final")
    plugins = [[], [{"call": "rotary_base", "args": {"theta": 3e6, "seq_len": 20000}}], []]
    (tmp_path / "final" / "recipe.json").write_text(json.dumps({"plugins": plugins}))
    text = json.loads((export(tmp_path / "final", tmp_path / "out") / "config.json").read_text())["text_config"]
    assert (text["rope_parameters"]["rope_theta"], text["max_position_embeddings"]) == (3e6, 20000)
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    save_file(load_file(tmp_path / "final" / "model.safetensors"), checkpoint / "weights.safetensors")
    recipe = load_recipe("longvila_nano").as_dict()
    for stage, theta in ((2, 1e6), (3, 2e7), (4, 2e7)):
        (checkpoint / "state.json").write_text(json.dumps({"recipe": recipe, "progress": {"stage": stage}}))
        text = json.loads((export(checkpoint, tmp_path / f"{stage}") / "config.json").read_text())["text_config"]
        assert text["rope_parameters"]["rope_theta"] == theta


def test_the_five_stages_start_with_connectors_that_know_nothing() -> None:
    shipped = VLMForConditionalGeneration.from_pretrained(preset_folder("nano-short"), dtype=torch.float32)
    fresh, processor = restart("nano-short")
    before, after = shipped.state_dict(), fresh.state_dict()
    other = {key.split(".")[0] for key in before if not torch.equal(before[key], after[key])}
    assert other == {"mm_projector", "audio_projector"}
    half, whole = (restart("nano-short", kept=kept)[0].state_dict() for kept in (0.5, 1.0))
    for key in before:
        assert torch.equal(whole[key], before[key])
        assert torch.allclose(half[key].float(), (before[key] + after[key]) / 2, atol=1e-7)
    assert len(processor.tokenizer) == fresh.get_input_embeddings().num_embeddings


def test_another_layout_keeps_the_weights() -> None:
    shipped = VLMForConditionalGeneration.from_pretrained(preset_folder("nano-short"), dtype=torch.float32)
    slow, processor = retold(pooling={"mode": "slowfast"}, time={"codec": "relative", "interleave": False})
    assert all(torch.equal(a, b) for a, b in zip(shipped.parameters(), slow.parameters(), strict=True))
    assert slow.config.pooling["mode"] == "slowfast" and not processor.layout["time"]["interleave"]
    video = {"type": "video", "video": torch.zeros(8, 64, 64, 3, dtype=torch.uint8).numpy(), "num_frames": 8}
    prompt = processor.prompt([{"role": "user", "content": [video]}])
    assert sum(i == processor.token_id("<video>") for i in prompt.ids) == 8 + 16
    assert not set(prompt.ids) & set(slow.config.time_token_ids), "no times in what is read"
    text, processor = retold(time={"codec": "seconds", "interleave": False})
    assert text.config.time_token_ids is None and processor.codec.name == "seconds"
    rows = {
        kind: retold(times=kind)[0].get_input_embeddings().weight[slow.config.time_token_ids]
        for kind in ("smooth", "noise")
    }
    near = {kind: float(torch.cosine_similarity(r[1:], r[:-1]).mean()) for kind, r in rows.items()}
    assert near["smooth"] > 0.95 and abs(near["noise"]) < 0.1
    with pytest.raises(ConfigError, match="times='new'"):
        retold(times="new")
