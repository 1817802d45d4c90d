"""Pre-emption: SIGTERM or Ctrl-C saves a checkpoint and leaves within ten seconds, with an exit code of its own."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

EXIT_PREEMPTED = 75
"""Exit code after a signal: saved, start again to go on (EX_TEMPFAIL of sysexits.h)."""

log = logging.getLogger(__name__)


class Preempted(Exception):
    """A signal asked the run to end; a checkpoint has been or will be written."""


class Preemption:
    """Context manager that turns SIGTERM and SIGINT into a request.

    The loop looks at ``requested`` between micro-batches. If one of them takes longer than ``patience``, a thread saves
    instead: between two optimizer updates the weights do not change, so it only has to hold ``updating``. A second
        Ctrl-C interrupts at once.

    Args:
        patience: Seconds the loop has to react.

    Attributes:
        requested: A signal has arrived.
        updating: Held while weights, optimizer and step counter change, and while a checkpoint is written.
        rescue: What the thread calls to save; None while there is nothing to save.
    """

    def __init__(self, patience: float = 5.0) -> None:
        self.patience = patience
        self.requested = False
        self.updating = threading.RLock()
        self.rescue: Callable[[], None] | None = None
        self._left = threading.Event()
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Preemption:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._left.set()
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            if number == signal.SIGINT:
                raise KeyboardInterrupt
            return
        self.requested = True
        threading.Thread(target=self._save_if_late, name="train-rescue").start()

    def _save_if_late(self) -> None:
        if self._left.wait(self.patience):
            return
        with self.updating:
            if self.rescue is not None:
                self.rescue()
                log.warning("the step did not end within %.1f s; saved what was before it", self.patience)
            os._exit(EXIT_PREEMPTED)
