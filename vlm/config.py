"""Configuration of the whole model and of each part.

Everything is a `transformers` config, so ``save_pretrained``/``from_pretrained`` and the Auto classes work as for any other model.
`VLMConfig` holds the language model's own config (any causal LM that transformers knows), a `VisionConfig`, an optional
`AudioConfig`, and three small dictionaries of options: ``connector``, ``pooling`` and ``time``.
"""

from __future__ import annotations

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from vlm.errors import ConfigError

VISION_BACKENDS = ("transformers", "timm", "open_clip")
AUDIO_MODES = ("features", "transcript")
TIME_LAYOUT = ("codec", "interleave", "tag")  # keys of `VLMConfig.time` that are no options of the codec


def _options(name: str, key: str, given: Any, default: dict[str, Any]) -> dict[str, Any]:
    """A copy of ``given``, or of ``default`` if nothing is given.

    Raises:
        ConfigError: ``key``, which says what the other options belong to, is missing.
    """
    options = dict(given or default)
    if key not in options:
        raise ConfigError(f"{name}={options} lacks {key!r}; the default is {default}")
    return options


@strict
class VisionConfig(PreTrainedConfig):
    """A vision tower and how its pixels are prepared.

    Attributes:
        backend: ``transformers`` (SigLIP, CLIP, DINOv2, ...), ``timm`` or ``open_clip``.
        name: transformers model type, timm model name or open_clip model name.
        tower: Extra options: the tower's own transformers config, or keyword arguments of the timm / open_clip constructor.
        image_size: Side of the square input, pixels.
        image_mean: Per-channel mean of the pixels in 0..1.
        image_std: Per-channel standard deviation of the pixels in 0..1.
        select_layer: Which hidden state feeds the projector (transformers towers); -2 is the next-to-last block without the final norm.
        select_feature: ``patch`` drops a class token if there is one, ``cls_patch`` keeps every token.
    """

    model_type = "vlm_vision"

    backend: str = "transformers"
    name: str = "siglip_vision_model"
    tower: Any = None  # a dictionary; None becomes an empty one
    image_size: int = 224
    image_mean: list[float] | tuple[float, ...] = (0.5, 0.5, 0.5)
    image_std: list[float] | tuple[float, ...] = (0.5, 0.5, 0.5)
    select_layer: int = -2
    select_feature: str = "patch"

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        if self.backend not in VISION_BACKENDS:
            raise ConfigError(f"vision_config.backend={self.backend!r} is not one of {VISION_BACKENDS}")
        if self.select_feature not in ("patch", "cls_patch"):
            raise ConfigError(f"vision_config.select_feature={self.select_feature!r} is not 'patch' or 'cls_patch'")
        self.tower = dict(self.tower or {})


@strict
class AudioConfig(PreTrainedConfig):
    """An audio encoder.

    Attributes:
        mode: ``features`` sends encoder states through an audio projector; ``transcript`` lets a Whisper model write down what is
            said, with times, and gives the language model that text (ours: a cascade, no training needed).
        tower: Whisper config as a dictionary (`transformers.WhisperConfig`).
        rate: Sample rate the encoder expects, Hz.
        stride: Average this many neighbouring encoder states (50 a second) into one token.
        window: Seconds the encoder has positions for; longer sound is read window by window.
        connector: Options of the audio projector (`vlm.connectors.projectors.build_projector`).
    """

    model_type = "vlm_audio"

    mode: str = "features"
    tower: Any = None  # a dictionary; None becomes an empty one
    rate: int = 16000
    stride: int = 1
    window: float = 30.0
    connector: Any = None

    @property
    def num_mel_bins(self) -> int:
        """Height of the spectrogram the tower reads."""
        return int((self.tower or {}).get("num_mel_bins", 80))

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        if self.mode not in AUDIO_MODES:
            raise ConfigError(f"audio_config.mode={self.mode!r} is not one of {AUDIO_MODES}")
        self.tower = dict(self.tower or {})
        self.connector = _options("audio_config.connector", "type", self.connector, {"type": "mlp2x_gelu"})


@strict
class VLMConfig(PreTrainedConfig):
    """The whole model: language model, eyes, ears, connector, token layout and time codec.

    Attributes:
        text_config: Config of any causal LM of transformers.
        vision_config: The vision tower.
        audio_config: The audio encoder, or None for a model without ears.
        connector: ``{"type": ...}`` plus options of `vlm.connectors.build_connector`.
        pooling: ``{"mode": "frame" | "changes" | "slowfast" | "tsp" | "mean" | "segments", ...}``, see `vlm.time.slowfast`. The extra key
            ``before_connector`` (segments only) averages features before they are projected.
        time: ``{"codec": "relative" | "seconds" | "digits", "interleave": bool, "tag": float, ...}``; with ``interleave`` the input
            names the time before every group of visual tokens, and with ``tag`` as well each of them carries that many times the
            embedding of its time (`vlm.connectors.fuse.tag`); the rest are options of the codec.
        image_token_id, video_token_id, audio_token_id: Placeholder ids in the language model's vocabulary.
        time_token_ids: Ids of the codec's time tokens in the order of time; None if it has none, or if its tokens are no times.
    """

    model_type = "vlm"
    sub_configs_defaults = {
        "text_config": SubConfigSpec(config_class=AutoConfig, model_type="llama"),
        "vision_config": VisionConfig,
        "audio_config": SubConfigSpec(config_class=AudioConfig, optional=True),
    }

    # Given as dictionaries, configs or None; `__post_init__` makes configs and dictionaries of them.
    text_config: Any = None
    vision_config: Any = None
    audio_config: Any = None
    connector: Any = None
    pooling: Any = None
    time: Any = None
    image_token_id: int | None = None
    video_token_id: int | None = None
    audio_token_id: int | None = None
    time_token_ids: list[int] | None = None
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        self.connector = _options("connector", "type", self.connector, {"type": "mlp2x_gelu"})
        self.pooling = _options("pooling", "mode", self.pooling, {"mode": "frame"})
        self.time = _options("time", "codec", self.time, {"codec": "relative", "interleave": False})
        super().__post_init__(**kwargs)
        self.tie_word_embeddings = bool(getattr(self.text_config, "tie_word_embeddings", False))
        if self.time.get("tag") and not self.time.get("interleave"):
            raise ConfigError(f"time.tag={self.time['tag']} needs time.interleave: the tag is the time written before")
        if self.pooling.get("before_connector") and self.pooling.get("mode") != "segments":
            raise ConfigError("pooling.before_connector is only defined for pooling.mode='segments'")


AutoConfig.register("vlm_vision", VisionConfig)
AutoConfig.register("vlm_audio", AudioConfig)
AutoConfig.register("vlm", VLMConfig)
