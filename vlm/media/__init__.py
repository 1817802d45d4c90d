"""Files, bytes and arrays in; frames with true times, images and waveforms out. All distrust of input lives here."""

from __future__ import annotations

from vlm.media.audio import load_audio
from vlm.media.images import load_image
from vlm.media.limits import MediaLimits
from vlm.media.load import VideoPlan, iter_video, load_video, plan_video, probe
from vlm.media.sampling import sample_times
from vlm.media.types import Audio, Video, VideoInfo
from vlm.media.write import write_video

__all__ = [
    "Audio",
    "MediaLimits",
    "Video",
    "VideoInfo",
    "VideoPlan",
    "iter_video",
    "load_audio",
    "load_image",
    "load_video",
    "plan_video",
    "probe",
    "sample_times",
    "write_video",
]
