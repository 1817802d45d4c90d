"""MM-SP: one long multi-modal sequence over several processes, exact. ``torch.distributed`` only."""

from __future__ import annotations
