"""A video-language model over one sequence that several processes share: MM-SP (LongVILA, 2408.10188 §3.3), exact.

    stage 1   my frames ─ eyes ─ connector ─ pooler ─► media tokens ─┐ all-to-all: only rows that change owner move
    stage 2   my token ids ─ embed ─► my embeddings ◄────────────────┘ ─► language model, attention shared ─► my logits, my loss

Every process gets all token ids (integers) and the pixels of its own frames; none holds all embeddings, keys or logits. Parameters are
whole on every process; their gradients add up over the sequence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from vlm.connectors.fuse import locate
from vlm.errors import AlignmentError, ConfigError
from vlm.loss import head_loss
from vlm.parallel.attention import ParallelAttention
from vlm.parallel.cache import ShardedCache
from vlm.parallel.frames import Dealer, Part, Segments, move_to_places, token_ranges, windows
from vlm.parallel.interface import use_shared_attention
from vlm.parallel.layout import Layout
from vlm.parallel.mesh import Mesh


@dataclass
class ParallelOutput:
    """What one process gets.

    Attributes:
        loss: Its share of the loss; the shares of all processes add up to the loss.
        logits: ``[N, V]`` of its tokens, if asked for.
        rows: Places of its tokens in the packed sequence ``[N]``.
    """

    loss: torch.Tensor | None
    logits: torch.Tensor | None
    rows: torch.Tensor


class SequenceParallel(nn.Module):
    """Runs a `VLMForConditionalGeneration` on sequences shared by the processes of a mesh.

    Args:
        model: The model, whole on every process. Its text tower's attention is replaced by the shared one.
        mesh: The processes.
        order: How the sequence is dealt out over the ring: "zigzag" (balanced) or "contiguous".
        inner: "gather" or "ring"; see `vlm.parallel.attention`.

    Raises:
        ConfigError: The text tower's attention is not plain causal attention.
    """

    def __init__(self, model: Any, mesh: Mesh, *, order: str = "zigzag", inner: str = "gather") -> None:
        super().__init__()
        self._before = model.language_model.config._attn_implementation
        use_shared_attention(model.language_model)
        self.model, self.mesh, self.order, self.inner = model, mesh, order, inner
        self.dealer = Dealer(model.pooler, model.image_pooler, model.pooled_grid, mesh.size, mesh.rank)

    # -- stage one -------------------------------------------------------------------------------------------------------

    def own_media(self, batch: dict[str, Any]) -> dict[str, Any]:
        """See `Dealer.own_media`."""
        return self.dealer.own_media(batch)

    def release(self) -> None:
        """Give the text tower the attention back that it had."""
        self.model.language_model.set_attn_implementation(self._before)

    def media_tokens(
        self, features_FPE: torch.Tensor, parts: Sequence[Part], is_video: Sequence[bool], segments: Segments | None
    ) -> torch.Tensor:
        """Visual tokens ``[N, D]`` of this process's frames, those of `parts` laid end to end."""
        model = self.model
        shots = segments if segments is not None else [None] * len(is_video)
        counts = [part.stop - part.first for part in parts]
        if sum(counts) != len(features_FPE):
            raise AlignmentError(f"{sum(counts)} frames were expected of this process, {len(features_FPE)} were given")
        if not counts:
            return features_FPE.new_zeros(0, model.config.text_config.hidden_size)

        return torch.cat(
            [
                model.part_tokens(x, p.start, p.num_frames, is_video=is_video[p.medium], segments=shots[p.medium])
                for x, p in zip(features_FPE.split(counts), parts, strict=True)
            ]
        )

    # -- stage two -------------------------------------------------------------------------------------------------------

    def fuse(
        self,
        ids_L: torch.Tensor,
        layout: Layout,
        *,
        pixel_values: torch.Tensor | None = None,
        vision_features: torch.Tensor | None = None,
        frames_per_medium: torch.Tensor | None = None,
        is_video: torch.Tensor | None = None,
        segments: Segments | None = None,
        mel: torch.Tensor | None = None,
        audio_lengths: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Input embeddings ``[N, D]`` of this process's tokens.

        Args:
            ids_L: Token ids of the whole packed sequence.
            layout: Who holds which of them.
            pixel_values: Frames of this process (see `Dealer.frames_of`), or
            vision_features: what the eyes made of them.
            frames_per_medium: ``[M]`` of the whole batch; likewise ``is_video``, ``segments`` and ``audio_lengths``.
            is_video: ``[M]``.
            segments: Frames per shot.
            mel: Windows of sound of this process (`vlm.parallel.frames.windows`).
            audio_lengths: ``[A]`` states to keep of each window.
        """
        model, config = self.model, self.model.config
        rows = layout.rows(self.mesh.rank).to(ids_L.device)
        table = model.get_input_embeddings()
        embeds_ND = table(ids_L[rows])
        if frames_per_medium is not None and is_video is not None:
            videos = [bool(v) for v in is_video.tolist()]
            dealt = self.dealer.frames_of(frames_per_medium.tolist(), videos, segments)
            parts = dealt[self.mesh.rank]
            if vision_features is None and pixel_values is not None and parts:
                vision_features = model.encode_frames(pixel_values.to(model.dtype))
            features = embeds_ND.new_zeros(0) if vision_features is None else vision_features.to(model.dtype)
            made = self.media_tokens(features, parts, videos, segments)
            tokens = [[i for part in mine for i in part.tokens] for mine in dealt]
            placeholders = (config.image_token_id, config.video_token_id)
            embeds_ND = self._place(embeds_ND, made, tokens, ids_L, placeholders, layout)
        if audio_lengths is not None and config.audio_token_id is not None and hasattr(model, "audio_tower"):
            dealt_windows = windows(len(audio_lengths), self.mesh.size)
            own = dealt_windows[self.mesh.rank]
            heard = embeds_ND.new_zeros(0, embeds_ND.shape[-1])
            if mel is not None and len(own):
                heard = model.audio_tokens(mel.to(model.dtype), audio_lengths[own.start : own.stop])
            tokens = token_ranges(audio_lengths.tolist(), dealt_windows)
            embeds_ND = self._place(embeds_ND, heard, tokens, ids_L, (config.audio_token_id,), layout)
        if weight := config.time.get("tag"):
            embeds_ND = self._tag(embeds_ND, ids_L, layout, float(weight))
        return embeds_ND

    def _place(
        self,
        embeds_ND: torch.Tensor,
        made_ND: torch.Tensor,
        tokens: list[list[int]],
        ids_L: torch.Tensor,
        placeholders: tuple[int | None, ...],
        layout: Layout,
    ) -> torch.Tensor:
        places = locate(ids_L[None], placeholders)[0].nonzero().flatten().cpu()
        at, rows_MD = move_to_places(made_ND, tokens, places, layout, self.mesh)
        at = at.to(embeds_ND.device)
        return embeds_ND.index_copy(0, at, rows_MD.to(embeds_ND.dtype))

    def _tag(self, embeds_ND: torch.Tensor, ids_L: torch.Tensor, layout: Layout, weight: float) -> torch.Tensor:
        """As `vlm.connectors.fuse.tag`; the token that says the time is looked up again, wherever it is held."""
        config = self.model.config
        timed = locate(ids_L[None], (config.video_token_id, config.audio_token_id))[0]
        starts = torch.tensor(layout.starts, device=ids_L.device)
        positions = torch.arange(len(ids_L), device=ids_L.device)
        before = positions.masked_fill(timed, -1).cummax(0).values
        document = torch.searchsorted(starts, positions, right=True) - 1
        found = timed & (before >= starts[document])
        rows = layout.rows(self.mesh.rank).to(ids_L.device)
        speaker = ids_L[before[rows].clamp_min(0)]
        mine = found[rows]
        if bool((speaker[mine] == config.image_token_id).any()):
            raise ConfigError("a video token follows a picture with nothing between: its time cannot be looked up")
        times = nn.functional.normalize(self.model.get_input_embeddings()(speaker), dim=-1)
        return embeds_ND + weight * mine[:, None] * times * embeds_ND.detach().norm(dim=-1, keepdim=True)

    # -- forward ---------------------------------------------------------------------------------------------------------

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        documents: Sequence[int] | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        return_logits: bool = False,
        **media: Any,
    ) -> ParallelOutput:
        """One pass; every process of the sequence calls it with the same ids.

        Args:
            input_ids: ``[B, L]``, the same on all processes. Rows are packed without their padding and do not attend to each other.
            attention_mask: ``[B, L]``, 0 for padding.
            labels: ``[B, L]``, -100 where no loss is wanted.
            documents: Lengths of the documents of the packed sequence, if a row holds several.
            num_items_in_batch: Divide the summed loss by this instead of by the number of targets.
            return_logits: Give the logits of this process's tokens.
            media: See `fuse`.

        Raises:
            AlignmentError: Placeholders and features disagree in number.
        """
        keep = torch.ones_like(input_ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
        lengths = tuple(int(n) for n in (keep.sum(1).tolist() if documents is None else documents))
        ids_L = input_ids[keep]
        if sum(lengths) != len(ids_L):
            raise AlignmentError(f"documents sum to {sum(lengths)} tokens, the batch holds {len(ids_L)}")
        layout = Layout(lengths, self.mesh.ulysses, self.mesh.ring, self.order)
        attention = ParallelAttention(self.mesh, layout, self.inner)
        hidden_ND = self._hidden(self.fuse(ids_L, layout, **media), layout.positions(self.mesh.rank), attention)
        rows = layout.rows(self.mesh.rank).to(ids_L.device)
        head, loss = self.model.get_output_embeddings(), None
        if labels is not None:
            targets_L = shifted(labels[keep], layout)
            count = (targets_L != -100).sum().clamp_min(1) if num_items_in_batch is None else num_items_in_batch
            loss = head_loss(head, hidden_ND, targets_L[rows]) / count
        return ParallelOutput(loss, head(hidden_ND) if return_logits else None, rows)

    def _hidden(self, embeds_ND: torch.Tensor, positions_N: torch.Tensor, attention: Any) -> torch.Tensor:
        out = self.model.get_decoder()(
            inputs_embeds=embeds_ND[None],
            position_ids=positions_N.to(embeds_ND.device)[None],
            use_cache=False,
            shared=attention,
        )
        return out.last_hidden_state[0]

    # -- reading and writing ---------------------------------------------------------------------------------------------

    def read(self, input_ids: torch.Tensor, cache: ShardedCache, **media: Any) -> torch.Tensor:
        """Read a prompt ``[1, L]`` into an empty cache; logits ``[V]`` after it, on every process."""
        ids_L = input_ids[0]
        layout = Layout((len(ids_L),), self.mesh.ulysses, self.mesh.ring, self.order)
        attention = ParallelAttention(self.mesh, layout, self.inner, cache.keep)
        hidden_ND = self._hidden(self.fuse(ids_L, layout, **media), layout.positions(self.mesh.rank), attention)
        cache.length = len(ids_L)
        last, owner = hidden_ND[-1:], int(layout.owners()[-1])
        if owner != self.mesh.rank:  # the last token, if it is held here, is the last row
            last = hidden_ND.new_empty(1, hidden_ND.shape[1])
        if self.mesh.group is not None:
            dist.broadcast(last, dist.get_global_rank(self.mesh.group, owner), group=self.mesh.group)
        return self.model.get_output_embeddings()(last)[0]

    def step(self, token: int, cache: ShardedCache) -> torch.Tensor:
        """Read one more token; logits ``[V]`` after it, on every process."""
        embeds = self.model.get_input_embeddings()(torch.tensor([token], device=self.model.device))
        hidden_1D = self._hidden(embeds, torch.tensor([cache.length]), cache)
        cache.length += 1
        return self.model.get_output_embeddings()(hidden_1D)[0]


def shifted(labels_L: torch.Tensor, layout: Layout) -> torch.Tensor:
    """What each token of the packed sequence is to predict: the next label of its document. Shifted before anything is dealt out, so that
    no target is lost where two processes meet."""
    targets = nn.functional.pad(labels_L[1:], (0, 1), value=-100)
    targets[torch.tensor(layout.starts[1:]) - 1] = -100
    return targets
