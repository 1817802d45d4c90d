"""`smol`: SmolLM2-135M-Instruct + EfficientNet-lite0 + Whisper-tiny.en from their pip packages, joined by our trained parts.

`base` builds the model before training: backbones, and a prototype connector whose keys are the ImageNet classifier and whose values are
the language model's own embeddings of the class names. `assembled` adds the trained parts and caches the result.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from vlm.checkpoints.backbones import backbone
from vlm.checkpoints.fetch import build_once
from vlm.config import AudioConfig, VisionConfig, VLMConfig
from vlm.encoders.audio import Transcriber
from vlm.errors import CheckpointError, MissingDependencyError
from vlm.model import VLMForConditionalGeneration
from vlm.presets import preset_folder
from vlm.processor import VLMProcessor

CHAT_TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
NUM_TIME_TOKENS = 100
TOKENS_PER_REGION = 3
TRAINED_FILE = "trained.safetensors"


def imagenet_names() -> list[str]:
    """The 1000 ImageNet class names, up to the first comma ("soccer ball")."""
    try:
        from timm.data import ImageNetInfo
    except ImportError as error:
        raise MissingDependencyError("timm", "smol", "the preset 'smol'") from error
    info = ImageNetInfo()
    return [info.index_to_description(i).split(",")[0].strip() for i in range(info.num_classes())]


def smol_config(text_config: Any, *, extra_prototypes: int = 0, connector: dict[str, Any] | None = None) -> VLMConfig:
    """The architecture of `smol` around a language model's config."""
    prototypes = {
        "type": "prototypes",
        "num_prototypes": 1000 + extra_prototypes,
        "tokens_per_region": TOKENS_PER_REGION,
    }
    return VLMConfig(
        text_config=text_config,
        vision_config=VisionConfig(
            backend="timm",
            name="tf_efficientnet_lite0",
            image_size=224,
            image_mean=[127 / 255] * 3,
            image_std=[128 / 255] * 3,
        ),
        audio_config=AudioConfig(mode="transcript"),
        connector=connector or prototypes,
        pooling={"mode": "segments", "before_connector": True},
        time={"codec": "relative", "num_tokens": NUM_TIME_TOKENS, "interleave": True},
    )


def base(
    *, extra_prototypes: int = 0, connector: dict[str, Any] | None = None
) -> tuple[VLMForConditionalGeneration, VLMProcessor]:
    """Backbones joined by an untrained connector, and the processor that fits (the starting point of training).

    Args:
        extra_prototypes: Rows beyond the 1000 ImageNet classes; they start with a key that never wins.
        connector: Another connector to compare with, e.g. ``{"type": "mlp2x_gelu"}``.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    llm_folder = backbone("smollm2-135m-instruct")
    tokenizer = AutoTokenizer.from_pretrained(llm_folder)
    config = smol_config(AutoConfig.from_pretrained(llm_folder), extra_prototypes=extra_prototypes, connector=connector)
    model = VLMForConditionalGeneration(config)
    model.language_model = AutoModelForCausalLM.from_pretrained(llm_folder, dtype=torch.float32)
    classifier = _load_tower(model)
    processor = VLMProcessor.for_config(config, tokenizer, model.token_grid, chat_template=CHAT_TEMPLATE)
    _grow_vocabulary(model, processor)
    if config.connector["type"] == "prototypes":
        _name_prototypes(model, processor, *classifier)
    return model.eval(), processor


def _load_tower(model: VLMForConditionalGeneration) -> tuple[torch.Tensor, torch.Tensor]:
    """Load EfficientNet-lite0 into the tower; returns the classifier's weight ``[1000, 1280]`` and bias."""
    state = load_file(backbone("efficientnet-lite0") / "model.safetensors")
    weight, bias = state.pop("classifier.weight"), state.pop("classifier.bias")
    model.vision_tower.model.load_state_dict(state, strict=True)
    return weight, bias


def _grow_vocabulary(model: VLMForConditionalGeneration, processor: VLMProcessor) -> None:
    """Rows for the media and time tokens; time rows start smooth in time so that near times are near (ours)."""
    vocabulary = len(processor.tokenizer)
    model.language_model.resize_token_embeddings(vocabulary, mean_resizing=False)
    model.config.text_config.vocab_size = vocabulary
    table = model.get_input_embeddings().weight.data
    ids = time_token_ids(processor)
    old = table[: min(ids)]
    angles = torch.linspace(0, 1, len(ids)).unsqueeze(1) * torch.exp(
        torch.linspace(0, 5, table.shape[1] // 2)
    ).unsqueeze(0)
    waves = torch.cat([angles.sin(), angles.cos()], dim=1)
    table[ids] = old.mean(0) + waves * old.std(0)
    table[[processor.token_id(t) for t in ("<image>", "<video>", "<audio>")]] = old.mean(0)


def time_token_ids(processor: VLMProcessor) -> list[int]:
    """Ids of ``<t0>``, ``<t1>``, ... in order."""
    return [processor.tokenizer.convert_tokens_to_ids(t) for t in processor.codec.tokens()]


def _name_prototypes(
    model: VLMForConditionalGeneration, processor: VLMProcessor, weight: torch.Tensor, bias: torch.Tensor
) -> None:
    """Keys = classifier rows, values = embeddings of the first tokens of each class name."""
    connector = model.mm_projector
    names = imagenet_names()
    with torch.no_grad():
        connector.keys.weight.zero_()
        connector.keys.bias.fill_(-30.0)
        connector.keys.weight[: len(names)] = weight
        connector.keys.bias[: len(names)] = bias
        connector.values.zero_()
        for row, name in enumerate(names):
            connector.values[row] = name_embeddings(model, processor, name, connector.tokens_per_region)


def name_embeddings(model: VLMForConditionalGeneration, processor: VLMProcessor, name: str, count: int) -> torch.Tensor:
    """Embeddings ``[count, D]`` of the first tokens of `` name``; a shorter name is filled up with commas."""
    filler = processor.tokenizer(",", add_special_tokens=False)["input_ids"]
    ids = processor.tokenizer(f" {name}", add_special_tokens=False)["input_ids"][:count]
    ids += filler * (count - len(ids))
    return model.get_input_embeddings().weight.detach()[ids]


def apply_trained(model: VLMForConditionalGeneration, trained: dict[str, torch.Tensor], meta: dict[str, Any]) -> None:
    """Put trained parts into a base model: connector, vocabulary rows, and LoRA merged into the weights it adapts.

    Args:
        trained: ``mm_projector.*``, ``time_rows`` ``[T, D]`` and ``lora.<module>.{A,B}``.
        meta: ``lora_scale`` and ``time_token_ids``.

    Raises:
        CheckpointError: A name or shape does not fit the model.
    """
    connector = {
        k.removeprefix("mm_projector."): v.float() for k, v in trained.items() if k.startswith("mm_projector.")
    }
    try:
        model.mm_projector.load_state_dict(connector, strict=True)
    except RuntimeError as error:
        raise CheckpointError(f"mm_projector of the preset does not fit: {error}") from error
    with torch.no_grad():
        model.get_input_embeddings().weight[meta["time_token_ids"]] = trained["time_rows"].float()
        for key in [k for k in trained if k.startswith("lora.") and k.endswith(".A")]:
            module = model.language_model.get_submodule(key.removeprefix("lora.").removesuffix(".A"))
            module.weight += meta["lora_scale"] * trained[key[:-1] + "B"].float() @ trained[key].float()


def assembled() -> Path:
    """Folder of the complete model in the user's cache; made on first use from the backbones and the shipped trained parts."""
    shipped = preset_folder("smol")
    trained_path = shipped / TRAINED_FILE
    if not trained_path.exists():
        raise CheckpointError(f"the preset 'smol' lacks {TRAINED_FILE} in this installation; reinstall vlm")
    meta_text = (shipped / "trained.json").read_text()
    digest = hashlib.sha256(trained_path.read_bytes() + meta_text.encode()).hexdigest()[:16]

    def make(folder: Path) -> None:
        meta = json.loads(meta_text)
        model, processor = base(extra_prototypes=meta["extra_prototypes"], connector=meta.get("connector"))
        apply_trained(model, load_file(trained_path), meta)
        model.save_pretrained(folder)
        processor.save_pretrained(folder)

    return build_once(f"smol-{digest}", make)


def whisper() -> Transcriber:
    """The ears of `smol`: Whisper-tiny.en as a transcriber."""
    from transformers import PreTrainedTokenizerFast, WhisperForConditionalGeneration

    folder = backbone("whisper-tiny.en")
    model = WhisperForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    return Transcriber(model, PreTrainedTokenizerFast.from_pretrained(folder))
