"""Shots: cut a list of sampled frames where the picture changes, from pixels alone (ours).

The processor needs to know how many tokens a video becomes before any encoder runs, so cuts are found on tiny grey-and-colour thumbnails.
"""

from __future__ import annotations

import itertools

import numpy as np

_SIDE = 16


def frame_changes(frames: np.ndarray) -> np.ndarray:
    """Mean absolute thumbnail difference ``[T-1]`` in 0..1 between consecutive frames ``uint8 [T, H, W, 3]``."""
    count, height, width = frames.shape[:3]
    rows = np.linspace(0, height, _SIDE + 1).astype(int)[:-1]
    columns = np.linspace(0, width, _SIDE + 1).astype(int)[:-1]
    step_y, step_x = max(1, height // _SIDE // 4), max(1, width // _SIDE // 4)
    small = np.zeros((count, len(rows), len(columns), 3), np.float32)
    samples = 0
    for dy in range(0, max(1, height // _SIDE), step_y):
        for dx in range(0, max(1, width // _SIDE), step_x):
            small += frames[:, np.minimum(rows + dy, height - 1)][:, :, np.minimum(columns + dx, width - 1)]
            samples += 1
    small /= 255.0 * samples
    return np.abs(np.diff(small, axis=0)).mean(axis=(1, 2, 3))


def find_shots(
    frames: np.ndarray, *, threshold: float = 0.06, contrast: float = 3.0, max_shots: int = 32, max_share: float = 0.25
) -> list[int]:
    """Number of frames in each shot (sums to T).

    A cut is a change above ``threshold`` that also stands ``contrast`` times above the median change. When there are more than
    ``max_shots`` shots only the strongest cuts stay. Shots longer than ``max_share`` of all frames are halved until they fit, so that
    one long take still becomes several tokens.

    Args:
        frames: ``uint8 [T, H, W, 3]``, in order.
    """
    count = len(frames)
    if count <= 1:
        return [count] if count else []
    change = frame_changes(frames)
    limit = max(threshold, contrast * float(np.median(change)) if count > 4 else 0.0)
    cuts = np.flatnonzero(change > limit)
    if len(cuts) >= max_shots:
        cuts = np.sort(cuts[np.argsort(-change[cuts], kind="stable")[: max_shots - 1]])
    edges = [0, *(int(c) + 1 for c in cuts), count]
    return split_long([b - a for a, b in itertools.pairwise(edges)], max_share=max_share)


def split_long(shots: list[int], *, max_share: float = 0.25) -> list[int]:
    """Split shots longer than ``max_share`` of the total (at least 2 frames) into near-equal parts."""
    limit = max(2, int(np.ceil(sum(shots) * max_share)))
    pieces: list[int] = []
    for length in shots:
        parts = -(-length // limit)
        pieces += [length * (i + 1) // parts - length * i // parts for i in range(parts)]
    return pieces
