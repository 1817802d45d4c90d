"""What every process of the benchmark needs, imported once by the server that the processes are forked from."""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import warnings

MODULES = (
    "transformers.models.llama.modeling_llama",
    "vlm.parallel.model",
    "deepspeed.runtime.sequence_parallel.ulysses_sp",
    "yunchang",
)


def import_all() -> None:
    """Import what is there; what is missing says so where it is used."""
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    warnings.simplefilter("ignore")
    for name in MODULES:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    logging.disable(logging.WARNING)


import_all()
