"""`load`: one entry for our presets, a local folder or a hub id.

A preset is a folder beside this file. `nano` is complete, and so is `nano-short`, the same before it saw any long clip. `smol` holds
only trained parts: its backbones come from pip packages and are assembled once, in the user's cache, into an ordinary ``save_pretrained``
folder that every later load reads like any other.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any

from vlm.errors import CheckpointError, ConfigError, VLMError

PRESETS = ("smol", "nano", "nano-short")


def preset_folder(name: str) -> Path:
    """Folder of a shipped preset's own files."""
    return Path(str(resources.files("vlm.presets"))) / name


def load(
    name: str | Path = "smol", *, device: str | None = None, dtype: Any = None, attn_implementation: Any = None
) -> Any:
    """An `Assistant` for a preset (``smol``, ``nano``, ``nano-short``), a folder written by ``save_pretrained``, or a hub id.

    Args:
        name: What to load.
        device: ``cpu``, ``cuda``, ...; default: a GPU if there is one.
        dtype: torch dtype of the weights; default float32 (on a CPU it is also the fastest).
        attn_implementation: As in transformers: a name, or a dictionary per tower.

    Raises:
        CheckpointError: Not found, damaged, or not a model of this package.
        ConfigError: ``device`` cannot be used here, or the model's configuration makes no sense.
        MissingDependencyError: The preset needs an extra.
    """
    import torch

    from vlm.chat import Assistant
    from vlm.model import VLMForConditionalGeneration
    from vlm.processor import VLMProcessor

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=device)
    except (AssertionError, RuntimeError) as error:
        raise ConfigError(f"device={device!r} cannot be used here ({str(error).splitlines()[0]}); try 'cpu'") from error
    folder = _resolve(name)
    options: dict[str, Any] = {"dtype": dtype or torch.float32}
    if attn_implementation is not None:
        options["attn_implementation"] = attn_implementation
    try:
        model = VLMForConditionalGeneration.from_pretrained(folder, **options)
        processor = VLMProcessor.from_pretrained(folder)
    except VLMError:
        raise
    except (
        Exception
    ) as error:  # of any type: the readers of damaged weights, configs and tokenizers raise what they like
        raise CheckpointError(f"cannot load {str(name)!r}: {error}") from error
    return Assistant(model.eval().to(device), processor, _transcriber(model.config), str(name))


def _resolve(name: str | Path) -> str:
    if str(name) == "smol":
        from vlm.presets.smol import assembled

        return str(assembled())
    if str(name) in PRESETS:
        folder = preset_folder(str(name))
        if not (folder / "config.json").exists():
            raise CheckpointError(f"the preset {name!r} has no weights in this installation; reinstall vlm")
        return str(folder)
    if Path(name).is_dir() and not (Path(name) / "config.json").exists():
        raise CheckpointError(
            f"{name} is a folder without config.json; give a folder written by save_pretrained, or one of {PRESETS}"
        )
    return str(name)


def _transcriber(config: Any) -> Any:
    if config.audio_config is None or config.audio_config.mode != "transcript":
        return None
    from vlm.presets.smol import whisper

    return whisper()
