"""Weights from elsewhere: what pip packages carry, other people's formats in and out."""

from vlm.checkpoints.backbones import BACKBONES, backbone
from vlm.checkpoints.fetch import cache_dir

__all__ = ["BACKBONES", "backbone", "cache_dir"]
