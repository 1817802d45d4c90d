"""Ears: log-mel features, the Whisper encoder as an audio tower, and Whisper as a transcriber with times.

Shape legend: A clips of audio, S encoder states, D feature width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from vlm.config import AudioConfig
from vlm.errors import MissingDependencyError

WINDOW_SECONDS = 30.0
_N_FFT, _HOP = 400, 160


@dataclass(frozen=True)
class TranscriptPiece:
    """Words heard between ``start`` and ``end`` (seconds)."""

    start: float
    end: float
    text: str


def log_mel(samples: np.ndarray, *, rate: int, num_mel_bins: int = 80, seconds: float | None = None) -> torch.Tensor:
    """Whisper's log-mel spectrogram ``[num_mel_bins, frames]``, 100 frames a second, computed with torchaudio.

    Args:
        samples: Mono float32 ``[S]`` in -1..1.
        rate: Sample rate in Hz; Whisper expects 16000.
        num_mel_bins: Height of the spectrogram.
        seconds: Pad or cut to this length; None keeps the length.
    """
    try:
        from torchaudio.functional import melscale_fbanks
    except ImportError as error:
        raise MissingDependencyError("torchaudio", "audio", "log-mel features") from error
    wave = torch.as_tensor(samples, dtype=torch.float32)
    if seconds is not None:
        wanted = round(seconds * rate)
        wave = nn.functional.pad(wave[:wanted], (0, max(0, wanted - wave.numel())))
    spectrum = (
        torch.stft(wave, _N_FFT, _HOP, window=torch.hann_window(_N_FFT), return_complex=True)[..., :-1].abs() ** 2
    )
    filters = melscale_fbanks(_N_FFT // 2 + 1, 0.0, rate / 2, num_mel_bins, rate, norm="slaney", mel_scale="slaney")
    log_spec = (filters.T @ spectrum).clamp_min(1e-10).log10()
    return (torch.maximum(log_spec, log_spec.max() - 8.0) + 4.0) / 4.0


class AudioTower(nn.Module):
    """The Whisper encoder of transformers: log-mel ``[A, mel, T]`` -> states ``[A, ceil(T/2/stride), D]``.

    Attributes:
        out_dim: Feature width D.
    """

    def __init__(self, config: AudioConfig) -> None:
        super().__init__()
        from transformers import WhisperConfig
        from transformers.models.whisper.modeling_whisper import WhisperEncoder

        whisper = WhisperConfig(**(config.tower or {}))
        if config._attn_implementation is not None:
            whisper._attn_implementation = config._attn_implementation
        self.encoder = WhisperEncoder(whisper)
        self.out_dim = whisper.d_model
        self.stride = config.stride

    def forward(self, mel_AMT: torch.Tensor) -> torch.Tensor:
        states_ASD = self.encoder(mel_AMT).last_hidden_state
        if self.stride == 1:
            return states_ASD
        return nn.functional.avg_pool1d(states_ASD.transpose(1, 2), self.stride, ceil_mode=True).transpose(1, 2)


class Transcriber:
    """Whisper as a writer: what is said, and when (ours: a cascade in place of an audio projector).

    Long audio is read in windows of 30 s. Each gives one piece, from its first to its last loud moment: Whisper's own segment times
    are not asked for.
    """

    def __init__(self, model: Any, tokenizer: Any, rate: int = 16000) -> None:
        self.model, self.tokenizer, self.rate = model.eval(), tokenizer, rate

    @torch.inference_mode()
    def __call__(self, samples: np.ndarray, *, max_new_tokens: int = 200) -> list[TranscriptPiece]:
        """Pieces of speech in mono float32 ``samples`` at `rate`; times in seconds from the first sample."""
        pieces: list[TranscriptPiece] = []
        step = round(WINDOW_SECONDS * self.rate)
        for first in range(0, len(samples), step):
            window = samples[first : first + step]
            start, end = _voiced_range(window, self.rate)
            if end <= start:
                continue
            mel = log_mel(window, rate=self.rate, seconds=WINDOW_SECONDS)
            ids = self.model.generate(mel[None], max_new_tokens=max_new_tokens, do_sample=False)[0]
            text = self.tokenizer.decode(ids, skip_special_tokens=True).strip()
            if text:
                offset = first / self.rate
                pieces.append(TranscriptPiece(offset + start, offset + end, text))
        return pieces


def _voiced_range(
    samples: np.ndarray, rate: int, *, frame_seconds: float = 0.05, floor: float = 0.01
) -> tuple[float, float]:
    """(start, end) seconds of the part louder than ``floor`` (and than a tenth of the loudest frame); (0, 0) when silent."""
    size = max(1, round(frame_seconds * rate))
    count = len(samples) // size
    if count == 0:
        return 0.0, 0.0
    loudness = np.sqrt(np.mean(samples[: count * size].reshape(count, size) ** 2, axis=1))
    loud = np.flatnonzero(loudness > max(floor, 0.1 * float(loudness.max())))
    if loud.size == 0:
        return 0.0, 0.0
    return float(loud[0]) * frame_seconds, float(loud[-1] + 1) * frame_seconds
