"""The cost model: its sizes are those of real models, its sums add up, and more of anything costs what it must."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config

from tests.tiny import text_config
from train.dryrun import activation_values
from vlm.cli import main
from vlm.config import VisionConfig, VLMConfig
from vlm.errors import ConfigError
from vlm.parallel.cost import BACKWARD, estimate, estimates, fits, hiding_length, largest
from vlm.parallel.hardware import GPUS, gpu_named
from vlm.parallel.layout import ORDERS, Layout, joined, rows_in
from vlm.parallel.memory import Job, job_for, memory
from vlm.parallel.plan import AttentionShape, ways
from vlm.parallel.shapes import TEXTS, Shapes, shapes_of, siglip
from vlm.presets import preset_folder

CONFIGS = {
    "qwen2-1.5b": Qwen2Config(
        hidden_size=1536, num_hidden_layers=28, num_attention_heads=12, num_key_value_heads=2, intermediate_size=8960,
        vocab_size=151936, tie_word_embeddings=True,
    ),
    "qwen2-7b": Qwen2Config(
        hidden_size=3584, num_hidden_layers=28, num_attention_heads=28, num_key_value_heads=4, intermediate_size=18944,
        vocab_size=152064, tie_word_embeddings=False,
    ),
    "llama3-8b": LlamaConfig(
        hidden_size=4096, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8, intermediate_size=14336,
        vocab_size=128256,
    ),
    "smollm2-135m": LlamaConfig(
        hidden_size=576, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3, intermediate_size=1536,
        vocab_size=49152, tie_word_embeddings=True,
    ),
}  # fmt: skip


def job(model: str = "qwen2-7b", gpus: int = 16, length: int = 1 << 17, gpu: str = "A100", **more: Any) -> Job:
    return replace(Job(Shapes(model, TEXTS[model]), gpu_named(gpu), gpus, gpus, length), **more)


def seeing(frames: int, **more: Any) -> Job:
    return job_for("qwen2-7b", gpu="A100", gpus=16, frames=frames, **more)


# -- sizes -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TEXTS)
def test_models_by_name_have_the_sizes_of_the_real_ones(name: str, tmp_path: Path) -> None:
    CONFIGS[name].save_pretrained(tmp_path)
    assert shapes_of(str(tmp_path)).text == TEXTS[name]  # counted on the meta device
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(CONFIGS[name])
    values = activation_values(model)
    assert values is not None and values[0] == TEXTS[name].layers * TEXTS[name].kept


@pytest.mark.parametrize(
    ("tokens", "size", "kind"), [(196, 384, "mlp_downsample"), (121, 448, "mlp_downsample_3x3_fix")]
)
def test_siglip_by_name_has_the_sizes_of_the_real_one(tokens: int, size: int, kind: str, tmp_path: Path) -> None:
    tower = {
        "hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16, "patch_size": 14,
    }  # fmt: skip
    eyes = VisionConfig(name="siglip_vision_model", image_size=size, tower=tower)
    VLMConfig(text_config=text_config(), vision_config=eyes, connector={"type": kind}).save_pretrained(tmp_path)
    built = shapes_of(str(tmp_path))
    ours = siglip(tokens, built.text.hidden)
    assert (ours.parameters, ours.grid, ours.image_size) == (built.eyes.parameters, built.eyes.grid, size)
    assert built.eyes.layers == ours.layers and built.eyes.kept_inputs == ours.kept_inputs
    assert ours.flops == pytest.approx(built.eyes.flops, rel=0.01)  # without patches and pooling head
    scores = 27 * 16 * ((size // 14) ** 2) ** 2  # attention on the meta device keeps them, a fused kernel does not
    assert ours.kept == pytest.approx(built.eyes.kept - scores, rel=0.05)
    assert built.tokens(10, 7) == 70


def test_presets_are_read_without_their_weights() -> None:
    shapes = shapes_of("nano", source=str(preset_folder("nano")))
    assert shapes.text.hidden == 160 and shapes.eyes.grid == (4, 4)
    assert shapes.tokens(64) == 64 * 17 + 1  # `changes` adds one a frame and one at the end


# -- bytes of the plan -------------------------------------------------------------------------------------------------------

RINGS = {(9, 3): {2: 1.333, 3: 1.556, 4: 1.667, 8: 1.833}, (12, 2): {2: 0.667, 4: 0.833, 8: 0.917, 16: 0.958}}
RINGS |= {
    (28, 4): {2: 0.571, 4: 0.714, 8: 0.786, 16: 0.821},
    (32, 8): {2: 1.0, 4: 1.25, 8: 1.375, 16: 1.438, 32: 1.469},
}
RINGS |= {(32, 32): {4: 5.0, 8: 5.5}}
GATHERS = {(9, 3): {2: 0.667, 3: 0.889, 4: 1.0, 8: 1.167}, (12, 2): {2: 0.333, 4: 0.5, 8: 0.583, 16: 0.625}}
GATHERS |= {
    (28, 4): {2: 0.286, 4: 0.429, 8: 0.5, 16: 0.536},
    (32, 8): {2: 0.5, 4: 0.75, 8: 0.875, 16: 0.938, 32: 0.969},
}
ULYSSES = {(9, 3): {3: 1.185}, (12, 2): {2: 1.167, 4: 1.0}, (28, 4): {2: 1.143, 4: 0.857}}
ULYSSES |= {(32, 8): {2: 1.25, 4: 0.938, 8: 0.547, 16: 0.352, 32: 0.242}, (32, 32): {4: 1.5, 8: 0.875}}
BOTH = {(12, 2): {4: 0.917, 8: 0.708, 16: 0.604}, (28, 4): {4: 0.857, 8: 0.571, 16: 0.393}}
BOTH |= {(32, 8): {4: 1.125, 8: 0.719, 16: 0.398, 32: 0.293}, (32, 32): {4: 3.0, 8: 1.75}}


@pytest.mark.parametrize("heads", RINGS)
def test_published_formulas_to_three_decimals(heads: tuple[int, int]) -> None:
    """Performance spec §1.4, units of the hidden tensor; its gather fetches all keys, ours three quarters of them (zigzag)."""
    length, shape = 3 << 12, AttentionShape(*heads, 64, 2, 2)
    for size in RINGS[heads]:
        sent = {(c.ulysses, c.inner): c.sent / (length * heads[0] * 64 * 2) for c in ways(size, [length], shape)}
        assert sent[1, "ring"] == pytest.approx(RINGS[heads][size], abs=6e-4)
        if size in GATHERS.get(heads, {}):
            assert sent[1, "gather"] / 0.75 == pytest.approx(GATHERS[heads][size], abs=6e-4)
        if size in ULYSSES[heads]:
            assert sent[size, "gather"] == pytest.approx(ULYSSES[heads][size], abs=6e-4)
        if size in BOTH.get(heads, {}):
            both = min(x for (u, inner), x in sent.items() if 1 < u < size and inner == "ring")
            assert both == pytest.approx(BOTH[heads][size], abs=6e-4)


def test_pairs_and_needed_rows_are_those_of_the_blocks() -> None:
    chance = random.Random(0)
    for _ in range(60):
        documents = tuple(chance.randint(1, 40) for _ in range(chance.randint(1, 6)))
        layout = Layout(documents, chance.randint(1, 3), chance.randint(1, 9), chance.choice(ORDERS))
        places = range(layout.ring)
        assert layout.pairs == [sum(b.pairs for k in places for b in layout.blocks(q, k)) for q in places]
        needs = [[joined(sorted({b.k for b in layout.blocks(q, k)})) for k in places] for q in places]
        assert layout.needs == needs
        assert layout.needed_rows == [sum(rows_in(ranges) for ranges in row) for row in needs]


# -- memory ------------------------------------------------------------------------------------------------------------------


def test_states_are_sixteen_bytes_a_parameter_and_zero_shares_them_out() -> None:
    count = TEXTS["qwen2-7b"].parameters
    held = [memory(job(zero=z), job().layout(4), "ring") for z in range(4)]
    shares = [16, 4 + 12 / 16, 2 + 14 / 16, 16 / 16]
    for parts, share in zip(held, shares, strict=True):
        assert sum(parts[k] for k in ("weights", "gradients", "optimizer")) == pytest.approx(share * count)
    assert "gathered" in held[3] and "gathered" not in held[2]


def test_an_estimate_adds_up_and_says_whether_it_fits() -> None:
    for e in estimates(seeing(700)):
        assert e.total_memory == sum(e.memory.values()) and e.total_seconds == sum(e.seconds.values())
        assert e.fits == (e.total_memory <= 80 * 2**30 * 0.95)
        assert min([*e.memory.values(), *e.seconds.values(), *e.near.values(), *e.far.values()]) >= 0


@pytest.mark.parametrize("more", [{}, {"checkpointing": True}, {"mode": "infer", "zero": 0}, {"batch": 3}])
def test_longer_sequences_cost_more(more: dict[str, Any]) -> None:
    found = [estimate(j, j.layout(4), "ring") for j in (seeing(n, **more) for n in (1000, 2000, 4000))]
    for less, other in pairwise(found):
        assert less.total_memory < other.total_memory and less.total_seconds < other.total_seconds
        assert less.choice.sent < other.choice.sent


@pytest.mark.parametrize("zero", [0, 1, 2, 3])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_more_gpus_never_hold_more(zero: int, checkpointing: bool) -> None:
    def least(gpus: int) -> float:
        one = job(gpus=gpus, zero=zero, checkpointing=checkpointing)
        return min(sum(memory(one, layout, inner).values()) for layout, inner in one.ways())

    held = [least(2**n) for n in range(1, 9)]
    assert held == sorted(held, reverse=True)


def test_recomputing_holds_less_and_takes_longer() -> None:
    plain, again = (estimate(j, j.layout(4), "ring") for j in (job(), job(checkpointing=True)))
    assert again.memory["activations"] < 0.1 * plain.memory["activations"]
    assert again.seconds["linear"] == pytest.approx(4 / 3 * plain.seconds["linear"])
    assert again.seconds["attention"] == pytest.approx(4.5 / 3.5 * plain.seconds["attention"])


def test_gathered_keys_are_kept_for_all_layers_unless_recomputed() -> None:
    layout = job().layout(1)
    kept, again, ring = (
        memory(j, layout, inner)["keys"]
        for j, inner in ((job(), "gather"), (job(checkpointing=True), "gather"), (job(), "ring"))
    )
    assert kept > 5 * again > 5 * ring
    assert memory(job(gpus=1), job(gpus=1).layout(1), "gather")["keys"] == 0


def test_cache_bytes_are_those_of_the_formula() -> None:
    """Performance spec §5: 2 K d numbers per token and layer; a million tokens of Qwen2-7B are 57 GB."""
    one = job(gpus=1, length=1_000_000, mode="infer", zero=0)
    assert memory(one, one.layout(1), "gather")["cache"] == pytest.approx(57.3e9, rel=0.001)
    shared = replace(one, gpus=8, sp_size=8)
    assert memory(shared, shared.layout(4), "ring")["cache"] == pytest.approx(57.3e9 / 8, rel=0.001)


@pytest.mark.parametrize("start", [job(), job(mode="infer", zero=0), seeing(1), seeing(1, checkpointing=True, batch=2)])
def test_the_longest_sequence_fits_and_the_next_one_does_not(start: Job) -> None:
    longest = largest(start)
    assert longest is not None and longest.units > 100
    assert fits(longest) and not fits(longest.sized(longest.units + 1))
    assert longest.length == (1024 * longest.units if start.frames is None else 196 * longest.units)


def test_nothing_fits_where_the_states_do_not() -> None:
    assert largest(job(gpus=4, zero=0)) is None  # 122 GB of states
    assert not estimates(job(gpus=4, zero=0))[0].fits


# -- seconds -----------------------------------------------------------------------------------------------------------------


def test_seconds_of_products_and_attention_are_their_operations() -> None:
    j = job(length=1 << 16)
    text, gpu = j.shapes.text, j.gpu
    e = estimate(j, j.layout(4), "ring")
    products = 6 * (text.parameters - text.vocabulary * text.hidden) * j.length / j.gpus
    assert e.seconds["linear"] == pytest.approx(products / (gpu.flops * j.constants.linear))
    pairs = j.length * (j.length + 1) / 2 * text.heads / j.gpus
    scores = (1 + BACKWARD) * text.layers * 4 * text.head_width * pairs
    # 28 heads at 4 places and zigzag order are balanced, but for the diagonals
    assert e.seconds["attention"] == pytest.approx(scores / (gpu.flops * gpu.attention), rel=1e-4)


def test_a_ring_hop_hides_behind_attention_from_the_published_length_on() -> None:
    """c = g b F / (2 BW), twice that under a causal mask (performance spec §1.4)."""
    one = job("llama3-8b", gpus=64, mode="infer", zero=0)
    f, bw = one.gpu.flops * one.gpu.attention, one.gpu.far * one.constants.ring
    c = hiding_length(one)
    assert c == pytest.approx(2 * (8 / 32) * 2 * f / (2 * bw))
    free = replace(one, constants=replace(one.constants, latency=0.0))
    for share, waits in ((0.9, True), (1.1, False)):  # the first of 64 places sends one hop less than it computes
        longer = replace(free, length=int(64 * c * share))
        waiting = estimate(longer, longer.layout(1), "ring").seconds["waiting for keys"]
        assert (waiting > 0) == waits
    assert hiding_length(one, 8) == pytest.approx(c)  # one key head and four query heads a place
    assert hiding_length(one, 16) == pytest.approx(2 * c)


def test_gathering_weights_is_the_least_a_step_takes() -> None:
    short, other = (estimate(j, j.layout(4), "ring") for j in (job(length=1024), job(length=2048)))
    assert short.total_seconds == pytest.approx(other.total_seconds, rel=1e-3)
    weights = 3 * 2 * TEXTS["qwen2-7b"].parameters * 15 / 16
    assert short.far["weights"] == pytest.approx(weights)
    assert short.total_seconds == pytest.approx(weights / (25e9 * 0.8), rel=0.01)
    assert estimate(one := job(gpus=1, length=1024), one.layout(1), "gather").seconds["waiting for weights"] == 0


def test_the_best_way_is_the_fastest_that_fits() -> None:
    found = estimates(seeing(2000))
    assert [e.fits for e in found] == sorted((e.fits for e in found), reverse=True)
    fitting = [e.total_seconds for e in found if e.fits]
    assert len(fitting) < len(found) and fitting == sorted(fitting)


def test_a_written_token_reads_weights_and_its_share_of_the_cache() -> None:
    one = job(gpus=1, gpu="H100", length=100_000, mode="infer", zero=0)
    e = estimate(one, one.layout(1), "gather")
    assert e.decode == pytest.approx((TEXTS["qwen2-7b"].parameters * 2 + e.memory["cache"]) / 3.35e12)


# -- command line ------------------------------------------------------------------------------------------------------------


def test_the_command_prints_a_table_and_json(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["plan", "--gpus", "16", "--node", "8", "--gpu", "h100", "--model", "qwen2-7b", "--frames", "512"]
    assert main(command) == 0
    text = capsys.readouterr().out
    assert (
        "16 x H100, 8 a node" in text and "100,352 tokens (512 frames); 16 processes share 1 sequence, 1 group" in text
    )
    assert "tokens/s per GPU" in text and "longest" in text and "inside x" in text
    assert main([*command, "--sp-size", "8", "--tokens-per-frame", "256", "--mode", "infer", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["job"]["length"] == 512 * 256 and plan["job"]["shapes"]["eyes"]["image_size"] == 448
    best, others = plan["best"], plan["others"]
    assert best["total_seconds"] == sum(best["seconds"].values()) and best["decode"] > 0 and len(others) == 6
    assert plan["longest"]["tokens"] == 256 * plan["longest"]["frames"]


def test_the_command_says_when_nothing_fits(capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(["plan", "--gpus", "8", "--gpu", "L40S", "--tokens", "4096", "--zero", "0", "--model", "llama3-8b"]) == 0
    )
    text = capsys.readouterr().out
    assert "DOES NOT FIT" in text and "nothing fits" in text and "eyes" not in text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--frames", "8", "--gpu", "B52"], "gpu='B52' is not one of A100, A100-40GB, H100, H200, L40S"),
        (["--frames", "8", "--model", "qwen3"], "model='qwen3' is not one of qwen2-1.5b, qwen2-7b, llama3-8b"),
        (["--frames", "8", "--gpus", "12"], "gpus=12 is not a multiple of node=8"),
        (["--frames", "8", "--gpus", "16", "--sp-size", "3"], "sp_size=3 does not divide gpus=16"),
        (["--frames", "8", "--zero", "4"], "zero=4 is not one of 0, 1, 2, 3"),
        (["--frames", "8", "--mode", "sing"], "mode='sing' is not one of train, infer"),
        (["--frames", "8", "--batch", "0"], "batch=0 must be 1 or more"),
        (["--frames", "0"], "frames=0 must be 1 or more"),
        (["--frames", "8", "--tokens", "8"], "give one of them"),
        ([], "give one of them"),
        (["--tokens", "8", "--tokens-per-frame", "196"], "tokens_per_frame=196"),
    ],
)
def test_mistakes_name_the_value_and_what_is_known(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", *options]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_a_folder_that_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="with a config that can be read"):
        shapes_of(str(tmp_path))
    assert {gpu_named(f"{name.lower()}-80GB") for name in ("a100", "h100")} == {GPUS["A100"], GPUS["H100"]}
