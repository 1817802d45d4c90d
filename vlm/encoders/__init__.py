"""Vision towers and audio encoders behind one small protocol."""

from vlm.encoders.audio import AudioTower, Transcriber, log_mel
from vlm.encoders.vision import VisionTower, build_vision_tower

__all__ = ["AudioTower", "Transcriber", "VisionTower", "build_vision_tower", "log_mel"]
