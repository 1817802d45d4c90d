"""Training in feature space: pictures and videos go through frozen eyes once, and what they saw is kept on the disk.

In a recipe, around any dataset::

    data:
      call: train.looked:looked_at
      args: {model: nano-short, folder: runs/features, size: 9600, data: {call: "train.mixture:mix", args: {...}}}

The first run looks; later epochs and runs with the same eyes and the same data read. The projector, the pooling and the language model may
differ from run to run, the eyes may not.
"""

from __future__ import annotations

import hashlib
import io
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from data_recipes.sample import Sample
from train.build import call
from train.recipe_files import as_call, check_keys
from train.stages import Call
from vlm.errors import ConfigError
from vlm.files import write_bytes, write_text
from vlm.presets import PRESETS, preset_folder


@dataclass(frozen=True)
class LookedAt:
    """Samples whose videos and pictures are features.

    Attributes:
        data: Samples with media.
        size: How many of them.
        folder: Where features are kept; of these data and these eyes only.
        model: Preset or folder whose eyes look.
        what: Of which data and eyes, kept beside them as ``what.json``.
        frames: Of a video given as a file.
    """

    data: Any
    size: int
    folder: Path
    model: str
    what: str
    frames: int | None = None

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < self.size:
            raise IndexError(f"sample {index} of {self.size}")
        path = self.folder / f"{index // 1000:04d}" / f"{index % 1000:03d}.npz"
        if not path.exists():
            if not (self.folder / "what.json").exists():
                write_text(self.folder / "what.json", self.what)
            write_bytes(path, self._look(self.data[index]))
        with np.load(path) as stored:
            content = json.loads(stored["sample"].tobytes())
            for message in content["messages"]:
                for part in message["content"] if isinstance(message["content"], list) else ():
                    part.update({key: stored[part[key]] for key in ("features", "timestamps") if key in part})
        return Sample(content["id"], content["messages"], {})

    @cached_property
    def _assistant(self) -> Any:
        import vlm

        return vlm.load(self.model)

    def _look(self, sample: Sample) -> bytes:
        """The sample as a file, features for media."""
        options = {"num_frames": self.frames} if self.frames else {}
        media = iter(self._assistant.processor.prompt(sample.messages, **options).media)
        arrays: dict[str, np.ndarray] = {}
        messages = []
        for message in sample.messages:
            parts = message["content"]
            if isinstance(parts, list):
                parts = [
                    p if p["type"] in ("text", "transcript") else self._seen(next(media), sample.id, arrays)
                    for p in parts
                ]
            messages.append({**message, "content": parts})
        if (left := next(media, None)) is not None:
            raise ConfigError(f"{sample.id} has {left.kind} besides its pictures; what is heard cannot be looked at")
        text = json.dumps({"id": sample.id, "messages": messages})
        file = io.BytesIO()
        np.savez(file, sample=np.frombuffer(text.encode(), np.uint8), **arrays)  # type: ignore[arg-type]
        return file.getvalue()

    def _seen(self, medium: Any, name: str, arrays: dict[str, np.ndarray]) -> dict[str, Any]:
        """The content part of one medium; its arrays are added to ``arrays``."""
        import torch

        if medium.kind not in ("image", "video") or medium.start:
            raise ConfigError(f"{name}: {medium.kind} that starts at {medium.start:g} s cannot be kept as features")
        with torch.inference_mode():
            features = self._assistant.model.encode_frames(medium.pixel_values[:])
        seen, times = f"features{len(arrays)}", f"timestamps{len(arrays)}"
        arrays[seen] = features.to(torch.float16).numpy()
        if medium.kind == "image":
            arrays[seen] = arrays[seen][0]
            return {"type": "image", "features": seen}
        arrays[times] = medium.timestamps
        part = {"type": "video", "features": seen, "timestamps": times, "duration": medium.duration}
        return {**part, **({"segments": medium.segments} if medium.segments else {})}


def looked_at(
    *,
    data: dict[str, Any],
    model: str,
    folder: str,
    size: int,
    seed: int = 0,
    frames: int | None = None,
) -> LookedAt:
    """The dataset as a recipe names it.

    Args:
        data: ``call`` and ``args`` of the samples.
        model: Whose eyes look.
        folder: Holds a folder for every such data and eyes.
        size: How many samples.
        seed: Of samples that do not state their own.
        frames: Of a video given as a file.

    Raises:
        ConfigError: The data make no sense, or there are fewer samples.
    """
    spec = as_call(data)
    check_keys(Call, spec, "data.")
    args = dict(spec.get("args") or {})
    inner = call(Call(spec["call"], args), where="data", seed=seed, frames=frames)
    if not 1 <= size <= len(inner):
        raise ConfigError(f"size={size} must be 1 or more, and at most the {len(inner)} samples of {spec['call']}")
    what = {
        "data": spec,
        "seed": args.get("seed", seed),
        "frames": frames,
        "model": model,
        "files": _files(model),
        "code": _code(),
    }
    text = json.dumps(what, indent=1, sort_keys=True)
    own = Path(folder) / hashlib.sha256(text.encode()).hexdigest()[:12]
    return LookedAt(inner, size, own, model, text, frames)


def _files(model: str) -> list[tuple[str, int, int]]:
    """Name, size and time of the files of a model: other weights in the same place are other eyes."""
    folder = preset_folder(model) if model in PRESETS else Path(model)
    return [(p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in sorted(folder.iterdir()) if p.is_file()]


def _code() -> str:
    """Hash of our recipes of data: when they change, so may the samples."""
    import data_recipes

    digest = hashlib.sha256()
    for path in sorted(Path(str(data_recipes.__file__)).parent.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]
