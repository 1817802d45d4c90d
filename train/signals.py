"""Pre-emption: SIGTERM or Ctrl-C saves a checkpoint and leaves within ten seconds, with an exit code of its own."""

from __future__ import annotations

import logging
import os
import select
import signal
import socket
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
        self._bell: tuple[socket.socket, socket.socket] | None = None
        self._wakeup_before = -1

    def __enter__(self) -> Preemption:
        if threading.current_thread() is threading.main_thread():
            self._bell = socket.socketpair()
            for end in self._bell:
                end.setblocking(False)
            self._wakeup_before = signal.set_wakeup_fd(self._bell[1].fileno(), warn_on_full_buffer=False)
            threading.Thread(target=self._listen, args=(self._bell[0],), name="train-signals", daemon=True).start()
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._left.set()
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self._bell is not None:
            signal.set_wakeup_fd(self._wakeup_before)
            self._bell[1].close()  # the listener ends

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            if number == signal.SIGINT:
                raise KeyboardInterrupt
            return
        self.requested = True

    def _listen(self, bell: socket.socket) -> None:
        """Hear signals while the main thread is in native code, where Python's handlers have to wait."""
        with bell:
            while select.select([bell], [], [])[0]:
                numbers = bell.recv(64)
                if not numbers:
                    return
                if any(number in (signal.SIGTERM, signal.SIGINT) for number in numbers):
                    self._save_if_late()
                    return

    def _save_if_late(self) -> None:
        if self._left.wait(self.patience):
            return
        with self.updating:
            if self.rescue is not None:
                self.rescue()
                log.warning("the step did not end within %.1f s; saved what was before it", self.patience)
            os._exit(EXIT_PREEMPTED)
