"""The nano model's tokenizer: a small byte-level BPE that knows the shapes world's words whole and can write any text.

It is trained on the world's own sentences, so it is built from nothing, deterministically and in a second. Digits are single
tokens; each role marker of the ChatML-like template is one token, and so is the end of a turn.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from data_recipes.synth.shapes_phrasings import NUMBERS, PHRASINGS
from data_recipes.synth.shapes_questions import article, plural
from data_recipes.synth.shapes_render import COLOURS, SHAPES

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

VOCABULARY = 640
"""Entries before the processor adds placeholders and time tokens: 256 bytes, 5 markers, the rest merges."""

SPECIAL = ("<|pad|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>")

CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{- '<|' + message['role'] + '|>' -}}"
    "{%- set text -%}"
    "{%- if message['content'] is string -%}{{- message['content'] -}}{%- else -%}"
    "{%- for part in message['content'] -%}"
    "{%- if part['type'] == 'text' -%}{{- part['text'] -}}{%- else -%}{{- '<' + part['type'] + '>' -}}{%- endif -%}"
    "{%- endfor -%}{%- endif -%}"
    "{%- endset -%}"
    "{%- if message['role'] == 'assistant' -%}{% generation %}{{- text + '<|end|>' -}}{% endgeneration %}"
    "{%- else -%}{{- text + '<|end|>' -}}{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}"
)

_EXTRA = (
    "from to, from and to, then the a an at is are it second seconds minute sound voice says",
    "A, B, C, D, E: answer with the letter only.",
    "Please answer in one word. Answer with the start and the end.",
    "it stays still it moves in a straight line it bounces it moves in a circle it hits another shape",
    "in the middle at the top left at the top right at the bottom left at the bottom right at the left at the right",
)


def build_nano_tokenizer(vocabulary: int = VOCABULARY) -> PreTrainedTokenizerFast:
    """Train the tokenizer on the world's sentences.

    Args:
        vocabulary: Upper bound of the number of entries.

    Returns:
        A fast tokenizer with chat template, padding on the right and ``<|end|>`` as end of sequence.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_sentences(), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|pad|>",
        eos_token="<|end|>",
        extra_special_tokens=["<|system|>", "<|user|>", "<|assistant|>"],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=8192,
    )


def _sentences() -> Iterator[str]:
    """Every phrasing with every colour and shape, the answers' words, and letters."""
    for colour in COLOURS:
        for shape in SHAPES:
            noun = f"{colour} {shape}"
            words = {"a": article(noun), "the": f"the {noun}", "the2": f"the {noun}", "c": colour, "s": shape, "t": ""}
            for train, held_out in PHRASINGS.values():
                for phrasing in train + held_out:
                    for medium in ("picture", "video", "clip", "image"):
                        yield phrasing.format(m=medium, ss=plural(shape), **words)
            yield f"{article(noun)}, {article(noun)} and {article(shape)}"
            yield f"{noun} {shape} {colour} {' '.join(NUMBERS)} yes no"
            yield from (*SHAPES, *COLOURS, *NUMBERS, "yes", "no")
            yield from _EXTRA
