"""A sequence shared by several processes gives the loss, the logits and every gradient of one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from eval.world import run_world
from tests.tiny import tiny_assistant
from vlm.errors import AlignmentError, ConfigError
from vlm.parallel.interface import check_plain
from vlm.parallel.layout import Layout
from vlm.parallel.mesh import Mesh, build_mesh
from vlm.parallel.model import SequenceParallel, shifted

CASES: dict[str, dict[str, Any]] = {
    "frame": {},
    "changes": {
        "pooling": {"mode": "changes"},
        "time": {"codec": "relative", "num_tokens": 20, "interleave": True, "tag": 1.0},
    },
    "slowfast": {"pooling": {"mode": "slowfast", "pool_size": 2}},
    "tsp": {"pooling": {"mode": "tsp", "pool_sizes": [[2, 2, 2]]}},
    "segments": {"pooling": {"mode": "segments", "before_connector": True}, "connector": {"type": "mlp2x_gelu"}},
}
MEDIA: tuple[list[tuple[str, int]], ...] = ([("video", 7)], [("image", 1), ("video", 3)], [], [("video", 5)])


def build(case: str, kv: int, dtype: torch.dtype) -> Any:
    return tiny_assistant(0, text={"num_key_value_heads": kv}, **CASES[case]).model.to(dtype).train()


def batch(model: Any, dtype: torch.dtype, media: Any = MEDIA, seed: int = 1) -> dict[str, Any]:
    """Four padded rows of different lengths, with and without pictures; 60 % of the words are targets."""
    torch.manual_seed(seed)
    config, rows = model.config, []
    frames, videos, segments = [], [], []
    cells = model.token_grid[0] * model.token_grid[1]
    shots = config.pooling["mode"] == "segments"
    for i, shown in enumerate(media):
        ids = torch.randint(0, 200, (6 + 5 * i,)).tolist()
        for kind, count in shown:
            parts = [1, count - 1] if count > 1 else [1]
            pooled = len(parts) * cells if shots else model.pooler.count(count, model.token_grid)
            video = kind == "video"
            ids += [config.video_token_id] * pooled if video else [config.image_token_id] * cells
            ids += torch.randint(0, 200, (4 + i,)).tolist()
            frames.append(count)
            videos.append(video)
            segments.append(parts if video and shots else None)
        rows.append(torch.tensor(ids))
    input_ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
    wanted = (input_ids < 200) & mask.bool() & (torch.rand(input_ids.shape) < 0.6)
    found: dict[str, Any] = {
        "input_ids": input_ids,
        "attention_mask": mask,
        "labels": torch.where(wanted, input_ids, -100),
    }
    if frames:
        found |= {"frames_per_medium": torch.tensor(frames), "is_video": torch.tensor(videos), "segments": segments}
        found["pixel_values"] = torch.randn(sum(frames), 3, 32, 32, dtype=dtype)
    return found


def compare(rank: int, sizes: list[tuple[int, int]], cases: list[tuple[str, int, str, str, str]]) -> dict[str, Any]:
    """Worst errors (loss, logits, gradients) of each case for each mesh."""
    errors: dict[str, Any] = {}
    for ulysses, ring in sizes:
        mesh = build_mesh(ulysses, ring)
        for case, kv, inner, order, precision in cases:
            dtype = getattr(torch, precision)
            model, twin = build(case, kv, dtype), build(case, kv, dtype)
            inputs = batch(model, dtype)
            alone = model(**inputs, loss_only=False)
            alone.loss.backward()
            shared = SequenceParallel(twin, mesh, inner=inner, order=order)
            out = shared(**shared.own_media(inputs), return_logits=True)
            out.loss.backward()
            loss = out.loss.detach().clone()
            dist.all_reduce(loss)
            logits = alone.logits[inputs["attention_mask"].bool()][out.rows]
            gradient = 0.0
            largest = max(float(p.grad.abs().max()) for p in model.parameters() if p.grad is not None)
            for (name, p), (_, q) in zip(model.named_parameters(), twin.named_parameters(), strict=True):
                total = torch.zeros_like(q) if q.grad is None else q.grad.clone()
                dist.all_reduce(total)
                wanted = torch.zeros_like(p) if p.grad is None else p.grad
                scale = max(
                    float(wanted.abs().max()), 1e-3 * largest
                )  # some (biases of keys) are zero but for rounding
                gradient = max(gradient, float((total - wanted).abs().max()) / scale)
                assert p.grad is not None or "vision_tower" in name, name
            key = f"{ulysses} x {ring} {case} kv={kv} {inner} {order} {precision}"
            worst = float((out.logits - logits).detach().abs().max()) if len(out.rows) else 0.0
            errors[key] = (float((loss - alone.loss.detach()).abs()), worst, gradient)
    return errors


EVERY = [
    ("frame", 1, "gather", "zigzag", "float64"),
    ("frame", 2, "ring", "zigzag", "float64"),
    ("changes", 4, "gather", "contiguous", "float64"),
    ("slowfast", 2, "gather", "zigzag", "float64"),
    ("tsp", 2, "ring", "contiguous", "float64"),
    ("segments", 2, "gather", "zigzag", "float64"),
    ("changes", 2, "ring", "zigzag", "float32"),
]
FEW = [("frame", 1, "gather", "zigzag", "float64"), ("changes", 2, "ring", "contiguous", "float64")]


@pytest.mark.parametrize(
    ("world", "sizes", "cases"),
    [
        (1, [(1, 1)], EVERY),
        (2, [(1, 2), (2, 1)], EVERY),
        (4, [(1, 4), (2, 2), (4, 1)], EVERY),
        (8, [(1, 8), (2, 4), (4, 2)], FEW),
    ],
)
def test_loss_logits_and_every_gradient_are_those_of_one_process(
    world: int, sizes: list[tuple[int, int]], cases: list[tuple[str, int, str, str, str]], tmp_path: Path
) -> None:
    for errors in run_world(compare, world, sizes, cases):
        assert len(errors) == len(sizes) * len(cases)
        for name, (loss, logits, gradient) in errors.items():
            exact = name.endswith("float64")
            assert loss <= (1e-12 if exact else 1e-5), name
            assert logits <= (1e-12 if exact else 1e-5), name
            assert gradient <= (1e-10 if exact else 1e-5), name


def two_sequences(rank: int) -> tuple[float, float]:
    """Four processes, two sequences of two each; the second has no picture, so its eyes get no gradient."""
    mesh = build_mesh(1, 2)
    model, twin = build("frame", 2, torch.float64), build("frame", 2, torch.float64)
    batches = [batch(model, torch.float64), batch(model, torch.float64, ([], []), seed=5)]
    targets = sum(int((b["labels"][:, 1:] != -100).sum()) for b in batches)
    total = sum(model(**b, loss_only=False, num_items_in_batch=targets).loss for b in batches)
    total.backward()
    shared = SequenceParallel(twin, mesh)
    loss = shared(**shared.own_media(batches[rank // 2]), num_items_in_batch=targets).loss
    loss.backward()
    loss = loss.detach().clone()
    dist.all_reduce(loss)
    worst = 0.0
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        if p.grad is not None:
            grad = torch.zeros_like(q) if q.grad is None else q.grad.clone()
            dist.all_reduce(grad)
            worst = max(worst, float((grad - p.grad).abs().max() / p.grad.abs().max().clamp_min(1e-8)))
    return float(loss - total.detach()), worst


def test_sequences_beside_each_other_add_up() -> None:
    for loss, gradient in run_world(two_sequences, 4):
        assert abs(loss) <= 1e-12
        assert gradient <= 1e-10


def only_the_projector(rank: int, inner: str) -> list[float]:
    """Two frames for four processes, and everything but the projector frozen: most processes hold nothing that is trained."""
    model, twin = build("frame", 2, torch.float64), build("frame", 2, torch.float64)
    for net in (model, twin):
        net.requires_grad_(False)
        net.mm_projector.requires_grad_(True)
    inputs = batch(model, torch.float64, ([], [("video", 2)], []))
    model(**inputs, loss_only=False).loss.backward()
    shared = SequenceParallel(twin, build_mesh(1, 4), inner=inner, order="contiguous")
    shared(**shared.own_media(inputs)).loss.backward()
    errors = []
    for p, q in zip(model.mm_projector.parameters(), twin.mm_projector.parameters(), strict=True):
        grad = torch.zeros_like(q) if q.grad is None else q.grad
        dist.all_reduce(grad)
        assert p.grad is not None
        errors.append(float((grad - p.grad).abs().max() / p.grad.abs().max()))
    return errors


@pytest.mark.parametrize("inner", ["gather", "ring"])
def test_processes_with_nothing_to_train_do_not_hold_up_the_others(inner: str) -> None:
    for errors in run_world(only_the_projector, 4, inner):
        assert len(errors) > 2 and max(errors) <= 1e-10


def nothing_to_learn(rank: int) -> tuple[float, bool]:
    """All targets are in the first quarter: other processes have none."""
    shared = SequenceParallel(build("frame", 2, torch.float32), build_mesh(1, 4), order="contiguous")
    ids = torch.arange(40)[None]
    labels = torch.full_like(ids, -100)
    labels[0, 3] = 7
    loss = shared(input_ids=ids, labels=labels).loss
    loss.backward()
    return float(loss), all(p.grad is None or bool(p.grad.isfinite().all()) for p in shared.parameters())


def test_a_process_without_targets_adds_nothing_and_never_nan() -> None:
    found = run_world(nothing_to_learn, 4)
    assert found[0][0] > 1.0
    assert [loss for loss, _ in found[1:]] == [0.0, 0.0, 0.0]
    assert all(finite for _, finite in found)


def test_targets_are_shifted_within_documents() -> None:
    layout = Layout((3, 2))
    assert shifted(torch.tensor([1, 2, 3, 4, 5]), layout).tolist() == [2, 3, -100, 5, -100]


def test_what_cannot_be_exact_is_refused() -> None:
    model = build("frame", 2, torch.float32)
    with pytest.raises(ConfigError, match="sliding_attention"):
        check_plain(type("Config", (), {"layer_types": ["full_attention", "sliding_attention"]})())
    with pytest.raises(ConfigError, match="attention_dropout"):
        check_plain(type("Config", (), {"attention_dropout": 0.1})())
    shared = SequenceParallel(model, Mesh())
    ids = torch.arange(8)[None]
    with pytest.raises(ConfigError, match="call it through"):
        model(input_ids=ids, labels=ids)
    with pytest.raises(ConfigError, match="padding"):
        model.get_decoder()(input_ids=ids, attention_mask=torch.tensor([[0, 1, 1, 1, 1, 1, 1, 1]]))
    with pytest.raises(AlignmentError, match="documents sum to 5"):
        shared(input_ids=ids, documents=[5])


def test_missing_media_are_named_with_both_numbers() -> None:
    model = build("frame", 2, torch.float32)
    shared = SequenceParallel(model, Mesh())
    inputs = batch(model, torch.float32)
    with pytest.raises(AlignmentError, match="16 frames were expected of this process, 15"):
        shared(**{**inputs, "pixel_values": inputs["pixel_values"][1:]})
    lost = inputs["input_ids"].clone()
    lost[lost == model.config.image_token_id] = 3
    with pytest.raises(AlignmentError, match="media placeholders but the media become"):
        shared(**{**inputs, "input_ids": lost})
