"""`VLMForConditionalGeneration`: eyes, ears, connector and any causal language model. Single-device code only.

    pixels ─ vision_tower ─► [F, P, E] ─ mm_projector ─► [F, P', D] ─ pooler ─► tokens [N, D] ─┐
    log-mel ─ audio_tower ─► [A, S, E] ─ audio_projector ─► tokens [M, D] ─────────────────────┤
    input_ids ─ embed ─────────────────────────────────────────────────────── fuse.scatter ────┴─► language_model

Shape legend: B batch, L sequence, F frames of the whole batch, P grid positions, E feature width, D language width,
N visual tokens of the whole batch, M media (images and videos) of the whole batch, in reading order.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForImageTextToText, GenerationMixin, PreTrainedModel
from transformers.cache_utils import Cache
from transformers.modeling_outputs import CausalLMOutputWithPast

from vlm.compat import CACHE_NAME, CACHE_NAMES
from vlm.config import VLMConfig
from vlm.connectors import build_connector, build_projector
from vlm.connectors.fuse import locate, scatter, tag
from vlm.encoders import AudioTower, build_vision_tower
from vlm.errors import AlignmentError, CheckpointError, ConfigError
from vlm.loss import head_loss, next_tokens
from vlm.time.slowfast import make_pooler, pooler_of

MEDIA_KEYS = ("pixel_values", "vision_features", "frames_per_medium", "is_video", "segments", "mel", "audio_lengths")


class VLMForConditionalGeneration(PreTrainedModel, GenerationMixin):
    """A video-language model over any causal LM of transformers."""

    config_class = VLMConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    input_modalities = ("image", "video", "audio", "text")
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _skip_keys_device_placement = CACHE_NAMES

    # What they are depends on the config; each follows a small protocol (see `vlm.encoders`, `vlm.connectors`).
    vision_tower: Any
    mm_projector: Any
    audio_tower: Any
    audio_projector: Any
    language_model: Any

    def __init__(self, config: VLMConfig) -> None:
        super().__init__(config)
        width = config.text_config.hidden_size
        self.vision_tower = build_vision_tower(config.vision_config)
        self.mm_projector = build_connector(config.connector, self.vision_tower.out_dim, width, self.vision_tower.grid)
        if config.audio_config is not None and config.audio_config.mode == "features":
            self.audio_tower = AudioTower(config.audio_config)
            options = dict(config.audio_config.connector)
            self.audio_projector = build_projector(options.pop("type"), self.audio_tower.out_dim, width, **options)
        self.language_model = AutoModelForCausalLM.from_config(config.text_config)
        self.pooler = pooler_of(config.pooling)
        self.image_pooler = make_pooler("frame")
        self.post_init()

    # -- the usual accessors -------------------------------------------------------------------------------------------------

    def get_input_embeddings(self) -> Any:
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.language_model.set_input_embeddings(value)

    def get_output_embeddings(self) -> Any:
        return self.language_model.get_output_embeddings()

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        self.language_model.set_output_embeddings(new_embeddings)

    def get_decoder(self) -> Any:
        return self.language_model.get_decoder()

    @property
    def token_grid(self) -> tuple[int, int]:
        """(rows, columns) of the tokens the connector makes of one frame."""
        return self.mm_projector.out_grid(self.vision_tower.grid)

    @property
    def pooled_grid(self) -> tuple[int, int]:
        """(rows, columns) of a frame when videos are pooled: before the connector or after it, as the config says."""
        return self.vision_tower.grid if self.config.pooling.get("before_connector") else self.token_grid

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        residual_owner = getattr(module, "zero_residual", None)
        if residual_owner is not None:
            residual_owner()

    # -- media -> tokens -----------------------------------------------------------------------------------------------------

    def encode_frames(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Vision features ``[F, P, E]`` of normalised pixels ``[F, 3, H, W]``."""
        return self.vision_tower(pixel_values)

    def media_tokens(
        self,
        features_FPE: torch.Tensor,
        frames_per_medium: torch.Tensor,
        is_video: torch.Tensor,
        segments: list[list[int] | None] | None = None,
    ) -> torch.Tensor:
        """Visual tokens ``[N, D]`` of all media in order: project, then pool (or pool shots first when the config says so)."""
        if int(frames_per_medium.sum()) != features_FPE.shape[0]:
            raise AlignmentError(
                f"frames_per_medium sums to {int(frames_per_medium.sum())} but {features_FPE.shape[0]} frames were given"
            )
        token_grid = self.token_grid
        shots = segments if segments is not None else [None] * len(frames_per_medium)
        pool_first = bool(self.config.pooling.get("before_connector"))
        media = list(features_FPE.split(frames_per_medium.tolist()))
        if pool_first:
            media = [
                self.pooler(x, self.vision_tower.grid, s).view(-1, *x.shape[1:]) if v else x
                for x, v, s in zip(media, is_video.tolist(), shots, strict=True)
            ]
        sizes = [x.shape[0] for x in media]
        projected = self.mm_projector(torch.cat(media)).split(sizes)
        if pool_first:
            return torch.cat([x.flatten(0, 1) for x in projected])
        tokens = [
            (self.pooler if v else self.image_pooler)(x, token_grid, s if v else None)
            for x, v, s in zip(projected, is_video.tolist(), shots, strict=True)
        ]
        return torch.cat(tokens)

    def part_tokens(
        self,
        features_FPE: torch.Tensor,
        start: int,
        num_frames: int,
        *,
        is_video: bool,
        segments: list[int] | None = None,
    ) -> torch.Tensor:
        """Visual tokens ``[n, D]`` of some frames of one medium, as `media_tokens` makes them of all.

        Args:
            features_FPE: Of the frames from ``start`` (less what the pooler looks back) up to one of its `cuts`.
            start: First frame whose tokens are wanted.
            num_frames: Of the whole medium.
            is_video: Or an image.
            segments: Frames per shot of the whole medium.
        """
        pooler, shots = (self.pooler, segments) if is_video else (self.image_pooler, None)
        if not self.config.pooling.get("before_connector"):
            return pooler.part(self.mm_projector(features_FPE), start, num_frames, self.token_grid, shots)
        if is_video:
            pooled = pooler.part(features_FPE, start, num_frames, self.vision_tower.grid, shots)
            features_FPE = pooled.view(-1, *features_FPE.shape[1:])
        return self.mm_projector(features_FPE).flatten(0, 1)

    def audio_tokens(self, mel_AMT: torch.Tensor, audio_lengths: torch.Tensor) -> torch.Tensor:
        """Audio tokens: the first ``audio_lengths[i]`` states of each window, projected and joined."""
        states = self.audio_projector(self.audio_tower(mel_AMT))
        return torch.cat([x[:n] for x, n in zip(states, audio_lengths.tolist(), strict=True)])

    def fuse(
        self,
        input_ids: torch.Tensor,
        *,
        pixel_values: torch.Tensor | None = None,
        vision_features: torch.Tensor | None = None,
        frames_per_medium: torch.Tensor | None = None,
        is_video: torch.Tensor | None = None,
        segments: list[list[int] | None] | None = None,
        mel: torch.Tensor | None = None,
        audio_lengths: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Input embeddings ``[B, L, D]`` with every media placeholder replaced.

        Raises:
            AlignmentError: Placeholders and features disagree in number.
        """
        embeds_BLD = self.get_input_embeddings()(input_ids)
        visual_BL = locate(input_ids, (self.config.image_token_id, self.config.video_token_id))
        if vision_features is None and pixel_values is not None:
            vision_features = self.encode_frames(pixel_values.to(self.dtype))
        tokens_ND = embeds_BLD.new_zeros(0, embeds_BLD.shape[-1])
        if vision_features is not None and frames_per_medium is not None and is_video is not None:
            features = vision_features.to(self.dtype)
            tokens_ND = self.media_tokens(features, frames_per_medium, is_video, segments)
        embeds_BLD = scatter(embeds_BLD, visual_BL, tokens_ND, what="visual")
        if self.config.audio_token_id is not None and hasattr(self, "audio_tower"):
            audio_BL = locate(input_ids, (self.config.audio_token_id,))
            heard = embeds_BLD.new_zeros(0, embeds_BLD.shape[-1])
            if mel is not None and audio_lengths is not None:
                heard = self.audio_tokens(mel.to(self.dtype), audio_lengths)
            embeds_BLD = scatter(embeds_BLD, audio_BL, heard, what="audio")
        if weight := self.config.time.get("tag"):
            timed = locate(input_ids, (self.config.video_token_id, self.config.audio_token_id))
            embeds_BLD = tag(embeds_BLD, timed, float(weight))
        return embeds_BLD

    # -- forward and generate ------------------------------------------------------------------------------------------------

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        loss_only: bool | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        pixel_values: torch.Tensor | None = None,
        vision_features: torch.Tensor | None = None,
        frames_per_medium: torch.Tensor | None = None,
        is_video: torch.Tensor | None = None,
        segments: list[list[int] | None] | None = None,
        mel: torch.Tensor | None = None,
        audio_lengths: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """One pass over a batch.

        Args:
            input_ids: ``[B, L]`` with media placeholders in place.
            attention_mask: ``[B, L]``, 0 for padding (either side).
            cache: Keys and values of what was read before; ``past_key_values`` is its older name.
            labels: ``[B, L]``, -100 where no loss is wanted.
            loss_only: Compute logits only where a label needs them and return ``logits=None``; default: while training.
            num_items_in_batch: Divide the summed loss by this instead of by the number of targets (gradient accumulation).
            pixel_values: ``[F, 3, H, W]`` normalised frames of all media in order, or
            vision_features: ``[F, P, E]`` what the tower would have made of them.
            frames_per_medium: ``[M]``.
            is_video: ``[M]`` bool; images keep all their tokens, videos go through the pooler.
            segments: Frames per shot for every medium (pooling mode ``segments``).
            mel: ``[A, mel, T]`` log-mel spectrograms, a window each; audio_lengths ``[A]`` encoder states to keep of each.

        Raises:
            AlignmentError: Placeholders and features disagree in number.
        """
        if inputs_embeds is None:
            if input_ids is None:
                raise ConfigError("forward needs input_ids or inputs_embeds")
            inputs_embeds = self.fuse(
                input_ids,
                pixel_values=pixel_values,
                vision_features=vision_features,
                frames_per_medium=frames_per_medium,
                is_video=is_video,
                segments=segments,
                mel=mel,
                audio_lengths=audio_lengths,
            )
        loss_only = self.training if loss_only is None else loss_only
        targets = None
        if labels is not None:
            targets = next_tokens(labels)
            if loss_only and not kwargs and _head_is_linear(self.config.text_config):
                return self._loss_at_targets(inputs_embeds, attention_mask, position_ids, targets, num_items_in_batch)
            if loss_only:
                logits_to_keep = (targets != -100).any(0).nonzero().flatten()
                targets = targets[:, logits_to_keep]
        outputs = self.language_model(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            logits_to_keep=logits_to_keep,
            **{CACHE_NAME: past_key_values if cache is None else cache},
            **kwargs,
        )
        loss = None if targets is None else _token_loss(outputs.logits, targets, num_items_in_batch)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=None if loss_only and targets is not None else outputs.logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            **{CACHE_NAME: outputs.get(CACHE_NAME)},
        )

    def _loss_at_targets(
        self,
        embeds_BLD: torch.Tensor,
        attention_mask: torch.Tensor | None,
        position_ids: torch.Tensor | None,
        targets_BL: torch.Tensor,
        num_items: torch.Tensor | int | None,
    ) -> CausalLMOutputWithPast:
        """The loss, with logits made only at the positions that have a target (most of a video's positions have none), some at a
        time."""
        decoder = self.get_decoder()
        hidden_BLD = decoder(
            inputs_embeds=embeds_BLD, attention_mask=attention_mask, position_ids=position_ids, use_cache=False
        ).last_hidden_state
        count = (targets_BL != -100).sum().clamp_min(1) if num_items is None else num_items
        total = head_loss(self.get_output_embeddings(), hidden_BLD.flatten(0, 1), targets_BL.flatten())
        return CausalLMOutputWithPast(loss=total / count, logits=None)

    @torch.no_grad()
    def generate(self, inputs: torch.Tensor | None = None, **kwargs: Any) -> Any:
        """`generate` of transformers; media are encoded once, before the prompt is repeated for beams or samples."""
        media = {k: kwargs.pop(k) for k in MEDIA_KEYS if k in kwargs}
        input_ids: Any = kwargs.get("input_ids", inputs)
        if any(v is not None for v in media.values()):
            kwargs["inputs_embeds"] = self.fuse(input_ids, **media)
        kwargs.pop("input_ids", None)
        return super().generate(input_ids, **kwargs)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, *args: Any, **kwargs: Any) -> Any:
        """Like transformers', but strict: a weight that is missing, unexpected or of another shape is an error.

        Raises:
            CheckpointError: Names the component (language_model, vision_tower, ...) and the keys.
        """
        want_info = kwargs.pop("output_loading_info", False)
        kwargs |= {"output_loading_info": True, "ignore_mismatched_sizes": True}
        model, info = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        _check_loading(str(pretrained_model_name_or_path), info)
        return (model, info) if want_info else model


def _head_is_linear(text_config: Any) -> bool:
    """Whether logits are just ``lm_head(hidden)``; some models cap or scale them."""
    return not any(getattr(text_config, n, None) for n in ("final_logit_softcapping", "logits_scaling", "logit_scale"))


def _token_loss(logits: torch.Tensor, targets: torch.Tensor, num_items: torch.Tensor | int | None) -> torch.Tensor:
    """Cross entropy per target token: mean, or sum / ``num_items``. Zero (not NaN) when the batch has no target."""
    flat = logits.flatten(0, -2)
    flat = flat if flat.dtype == torch.float64 else flat.float()
    total = nn.functional.cross_entropy(flat, targets.flatten(), ignore_index=-100, reduction="sum")
    count = (targets != -100).sum().clamp_min(1) if num_items is None else num_items
    return total / count


def _check_loading(source: str, info: dict[str, Any]) -> None:
    problems = []
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        keys = sorted(str(k[0]) if isinstance(k, tuple) else str(k) for k in info.get(what, ()))
        by_part: dict[str, list[str]] = {}
        for key in keys:
            by_part.setdefault(key.split(".", 1)[0], []).append(key)
        problems += [f"{part}: {len(k)} {what.replace('_', ' ')}, first {k[0]!r}" for part, k in by_part.items()]
    if problems:
        raise CheckpointError(f"{source} does not fit this model. " + "; ".join(problems))


AutoModel.register(VLMConfig, VLMForConditionalGeneration)
AutoModelForCausalLM.register(VLMConfig, VLMForConditionalGeneration)
AutoModelForImageTextToText.register(VLMConfig, VLMForConditionalGeneration)
