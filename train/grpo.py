"""Reinforcement learning of localisation: GRPO through TRL, with the overlap of the answered span and its form as reward.

After Time-R1 and TimeLens, as our specification has them (tIoU as reward, no thinking text, frozen eyes); numbers here are ours.

TRL knows nothing of our videos. It is given a model whose prompts are on a shelf: for the ids of a prompt there are the features that its
video became, computed once, because the eyes are frozen. Everything else, sampling groups, advantages, the clipped loss, is TRL's.
"""

from __future__ import annotations

import json
import typing
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from data_recipes.sample import Sample
from train.build import call
from train.recipe_files import as_call, check_keys, naming, parse, read_tree
from train.stages import Call
from vlm.compat import CACHE_NAME
from vlm.errors import ConfigError, DataError, MissingDependencyError, TrainingError
from vlm.files import write_text
from vlm.model import VLMForConditionalGeneration
from vlm.processor import VLMProcessor
from vlm.time import Span, TimeCodec


@dataclass(frozen=True)
class GrpoRecipe:
    """A run.

    Attributes:
        model: Preset or folder to start from.
        data: Makes samples whose last turn has one true span (``meta["turns"][-1].spans`` or ``meta["spans"]``).
        out: Folder of the run; the result is in ``OUT/final``.
        trainer: ``grpo``; says what kind of recipe this is.
        samples: Different questions.
        steps: Optimizer steps.
        prompts: Questions in a step.
        generations: Answers to each.
        learning_rate: Peak rate; cosine, no warm-up.
        temperature: Of the answers.
        beta: Weight of the divergence from the model as it was.
        form: Weight of the reward for an answer with exactly one span, beside 1 for the overlap.
        trainable: Modules that train; the eyes never do.
        max_new_tokens: Longest answer.
        save_every: Steps between checkpoints.
        seed: Of all randomness.
    """

    model: str
    data: Call
    out: str
    trainer: str = "grpo"
    samples: int = 512
    steps: int = 100
    prompts: int = 4
    generations: int = 8
    learning_rate: float = 1e-5
    temperature: float = 1.0
    beta: float = 0.0
    form: float = 0.2
    trainable: list[str] = field(default_factory=lambda: ["language_model"])
    max_new_tokens: int = 32
    save_every: int = 25
    seed: int = 0

    def __post_init__(self) -> None:
        small = {k: getattr(self, k) for k in ("samples", "steps", "prompts", "max_new_tokens", "save_every")}
        if wrong := [k for k, v in small.items() if v < 1]:
            raise ConfigError(f"{wrong[0]}={small[wrong[0]]} must be 1 or more")
        if self.generations < 2:
            raise ConfigError(f"generations={self.generations}: answers are compared within a group; give at least 2")


def load_grpo(recipe: str | Path, overrides: list[str] | None = None) -> GrpoRecipe:
    """Read a recipe file whose trainer is ``grpo``.

    Raises:
        ConfigError: The file or an override is wrong; the message names the key.
    """
    tree = read_tree(recipe, overrides)
    with naming(recipe):
        if "data" in tree:
            tree["data"] = as_call(tree["data"])
            check_keys(Call, tree["data"], "data.")
        return typing.cast(GrpoRecipe, parse(GrpoRecipe, tree))


def describe(recipe: GrpoRecipe) -> str:
    """What a run would do, in a few lines."""
    answers_ = recipe.prompts * recipe.generations
    return (
        f"model {recipe.model}, trains {', '.join(recipe.trainable)}\nout   {recipe.out}\n"
        f"grpo  {recipe.steps:,} steps of {recipe.prompts} questions with {recipe.generations} answers each: {answers_} answers of at most "
        f"{recipe.max_new_tokens} tokens a step; reward: overlap + {recipe.form:g} x form"
    )


# -- reward --------------------------------------------------------------------------------------------------------------------


def overlap(raw: str, truth: Span, duration: float, codec: TimeCodec) -> float:
    """Intersection over union of the first span of an answer with the true one; 0 without one."""
    spans = codec.parse(raw, duration).spans
    return spans[0].iou(truth) if spans else 0.0


def well_formed(raw: str, duration: float, codec: TimeCodec) -> float:
    """1 for an answer with exactly one span that has a length, in the codec's own words; else 0."""
    result = codec.parse(raw, duration)
    own = result.how == ("tokens" if codec.tokens() or codec.name == "two_digit" else "seconds")
    return float(own and len(result.spans) == 1 and result.spans[0].length > 0)


# -- what TRL is given -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Prompt:
    """A question on the shelf.

    Attributes:
        ids: Of the prompt, as the language model reads it.
        media: What `VLMForConditionalGeneration.fuse` takes besides.
        truth: True span, seconds.
        duration: Of the video, seconds.
    """

    ids: tuple[int, ...]
    media: dict[str, Any]
    truth: Span
    duration: float


class Policy(VLMForConditionalGeneration):
    """A model that finds the video of a prompt by the prompt's ids."""

    shelf: dict[tuple[int, ...], Prompt]

    @property
    def base_model(self) -> Any:
        """What TRL calls to get hidden states: ``input_ids`` and ``attention_mask`` in, ``last_hidden_state`` out."""
        return self._hidden

    def _hidden(self, input_ids: Tensor, attention_mask: Tensor, **_: Any) -> Any:
        embeds = self.fuse(input_ids, **self._media(input_ids, attention_mask))
        return self.get_decoder()(inputs_embeds=embeds, attention_mask=attention_mask, use_cache=False)

    def _media(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Any]:
        rows = [tuple(ids[mask.bool()].tolist()) for ids, mask in zip(input_ids, attention_mask, strict=True)]
        return joined([self.prompt_of(row).media for row in rows], input_ids.device)

    def prompt_of(self, row: tuple[int, ...]) -> Prompt:
        """The prompt that ``row``, a prompt and perhaps an answer, begins with.

        Raises:
            TrainingError: There is none.
        """
        for length in {len(key) for key in self.shelf}:
            if (found := self.shelf.get(row[:length])) is not None:
                return found
        raise TrainingError("TRL asks about a prompt that is not on the shelf")


def joined(media: Sequence[dict[str, Any]], device: torch.device | str = "cpu") -> dict[str, Any]:
    """Media of several prompts in the order of a batch."""
    out: dict[str, Any] = {
        k: torch.cat([m[k] for m in media]).to(device) for k in ("vision_features", "frames_per_medium", "is_video")
    }
    return {**out, "segments": [s for m in media for s in m["segments"]]}


@torch.no_grad()
def shelve(model: VLMForConditionalGeneration, processor: VLMProcessor, samples: Sequence[Sample]) -> list[Prompt]:
    """Read every question and look at its video once. Two questions with the same ids cannot be told apart: the second is left out.

    Raises:
        DataError: A sample has no true span, or none is left.
    """
    prompts: dict[tuple[int, ...], Prompt] = {}
    for sample in tqdm(samples, desc="look at videos", unit="video"):
        spans = _spans(sample)
        if not spans:
            raise DataError(f"{sample.id} has no true span to be rewarded for")
        prompt = processor.prompt(sample.messages[:-1], add_generation_prompt=True)
        tensors = processor.tensors(prompt)
        features = model.encode_frames(tensors.pop("pixel_values"))
        media = {"vision_features": features, **{k: tensors[k] for k in ("frames_per_medium", "is_video", "segments")}}
        ids, truth = tuple(prompt.ids), spans[0] if isinstance(spans[0], Span) else Span(*spans[0])
        prompts.setdefault(ids, Prompt(ids, media, truth, prompt.media[0].duration))
    if not prompts:
        raise DataError("there is no question to learn from")
    return list(prompts.values())


def _spans(sample: Sample) -> Sequence[Any]:
    turns = sample.meta.get("turns") or []
    last = getattr(turns[-1], "spans", None) if turns else None
    return last if last is not None else sample.meta.get("spans", ())


def one_turn(sample: Sample) -> Sample:
    """The first question only: what an answer earns must not depend on the ones before."""
    return Sample(sample.id, sample.messages[:2], {**sample.meta, "turns": sample.meta["turns"][:1]})


@torch.no_grad()
def answers(
    policy: Policy, prompts: Sequence[Prompt], temperature: float, max_new_tokens: int, stop: set[int]
) -> list[list[int]]:
    """One sampled answer to each prompt, up to the first stop token; equal prompts get different answers, none a media placeholder.

    Args:
        policy: The model.
        prompts: Of a batch.
        temperature: Of the sampling.
        max_new_tokens: Of an answer.
        stop: Tokens that end one.
    """
    longest, pad = max(len(p.ids) for p in prompts), policy.config.get_text_config().pad_token_id or 0
    device = policy.device
    ids = torch.tensor([[pad] * (longest - len(p.ids)) + list(p.ids) for p in prompts], device=device)
    mask = torch.tensor([[0] * (longest - len(p.ids)) + [1] * len(p.ids) for p in prompts], device=device)
    embeds = policy.fuse(ids, **joined([p.media for p in prompts], device))
    media = [
        i for i in (getattr(policy.config, f"{kind}_token_id") for kind in ("image", "video", "audio")) if i is not None
    ]
    said: list[list[int]] = [[] for _ in prompts]
    cache = None
    for _ in range(max_new_tokens):
        out = policy.language_model(
            inputs_embeds=embeds, attention_mask=mask, **{CACHE_NAME: cache}, use_cache=True, logits_to_keep=1
        )
        scores = out.logits[:, -1].float() / temperature
        scores[:, media] = -torch.inf
        drawn = torch.multinomial(scores.softmax(-1), 1)
        for row, token in zip(said, drawn[:, 0].tolist(), strict=True):
            if not row or row[-1] not in stop:
                row.append(token)
        if all(row[-1] in stop for row in said):
            break
        embeds, cache = policy.get_input_embeddings()(drawn), getattr(out, CACHE_NAME)
        mask = torch.cat([mask, torch.ones_like(drawn)], 1)
    return said


# -- the run -------------------------------------------------------------------------------------------------------------------------


def train(recipe: GrpoRecipe) -> Path:
    """Run a recipe, going on from its newest checkpoint; returns ``OUT/final``, a folder like any other model's.

    Raises:
        ConfigError: The recipe makes no sense.
        DataError: There is nothing to learn from.
        MissingDependencyError: TRL is not installed.
    """
    try:
        from datasets import Dataset
        from trl import GRPOConfig, GRPOTrainer
    except ImportError as error:
        raise MissingDependencyError("trl", "rl", "GRPO") from error
    from transformers.trainer_callback import PrinterCallback, ProgressCallback

    import vlm
    from vlm.generate import stop_token_ids

    torch.manual_seed(recipe.seed)
    assistant = vlm.load(recipe.model)
    processor, codec = assistant.processor, assistant.processor.codec
    policy = _policy(assistant.model, recipe.trainable)
    source = call(recipe.data, where="data", seed=recipe.seed, processor=processor)
    prompts = shelve(policy, processor, [one_turn(source[i]) for i in range(min(recipe.samples, len(source)))])
    policy.shelf = {p.ids: p for p in prompts}
    stop = set(stop_token_ids(policy, processor.tokenizer))

    def roll(asked: list[str], trainer: Any) -> dict[str, Any]:
        wanted = [prompts[int(name)] for name in asked]
        said = answers(policy, wanted, recipe.temperature, recipe.max_new_tokens, stop)
        return {"prompt_ids": [list(p.ids) for p in wanted], "completion_ids": said, "logprobs": None}

    renamed = ("activation_checkpointing", "gradient_checkpointing")  # the second is the old name
    kept: dict[str, Any] = {next(n for n in renamed if hasattr(GRPOConfig, n)): False}
    settings = GRPOConfig(
        output_dir=str(Path(recipe.out) / "trl"), max_steps=recipe.steps, learning_rate=recipe.learning_rate, beta=recipe.beta,
        per_device_train_batch_size=recipe.prompts * recipe.generations, num_generations=recipe.generations,
        max_completion_length=recipe.max_new_tokens, temperature=recipe.temperature, lr_scheduler_type="cosine",
        save_steps=recipe.save_every, save_total_limit=2, logging_steps=1, report_to=[], seed=recipe.seed, bf16=False,
        remove_unused_columns=False, **kept, use_cpu=not torch.cuda.is_available(),
    )  # fmt: skip
    trainer = GRPOTrainer(
        policy, rewards(prompts, codec, processor.tokenizer, recipe.form), settings,
        train_dataset=Dataset.from_dict({"prompt": [str(i) for i in range(len(prompts))]}),
        processing_class=processor.tokenizer, rollout_func=roll,
    )  # fmt: skip
    trainer.remove_callback(ProgressCallback if not settings.disable_tqdm else PrinterCallback)
    trainer.add_callback(_bar())
    checkpoints = list((Path(recipe.out) / "trl").glob("checkpoint-*"))
    trainer.train(resume_from_checkpoint=bool(checkpoints))
    return _finish(policy, processor, recipe, trainer.state.log_history)


def _bar() -> Any:
    """A progress bar with the rewards, in place of a line of thirty numbers for every step."""
    from transformers import TrainerCallback

    class Bar(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.bar = tqdm(total=state.max_steps, initial=state.global_step, desc="grpo", unit="step")

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.bar.update(state.global_step - self.bar.n)

        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
            known = {k: (logs or {}).get(f"rewards/{k}_reward/mean") for k in ("tiou", "form")}
            self.bar.set_postfix({k: f"{float(v):.3f}" for k, v in known.items() if v is not None})

        def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.bar.close()

    return Bar()


def rewards(shelf: Sequence[Prompt], codec: TimeCodec, tokenizer: Any, form: float) -> list[Callable[..., list[float]]]:
    """The two rewards as TRL calls them: with the names of prompts, which are their places on the shelf, and the ids of answers."""

    def pairs(prompts: list[str], completion_ids: list[list[int]]) -> Iterator[tuple[str, Prompt]]:
        for name, ids in zip(prompts, completion_ids, strict=True):
            yield tokenizer.decode(ids, skip_special_tokens=True), shelf[int(name)]

    def tiou_reward(prompts: list[str], completion_ids: list[list[int]], **_: Any) -> list[float]:
        return [overlap(raw, p.truth, p.duration, codec) for raw, p in pairs(prompts, completion_ids)]

    def form_reward(prompts: list[str], completion_ids: list[list[int]], **_: Any) -> list[float]:
        return [form * well_formed(raw, p.duration, codec) for raw, p in pairs(prompts, completion_ids)]

    return [tiou_reward, form_reward]


def _policy(model: VLMForConditionalGeneration, trainable: list[str]) -> Policy:
    policy = Policy(model.config)
    policy.load_state_dict(model.state_dict())
    policy.requires_grad_(False)
    for name in trainable:
        module = dict(policy.named_modules()).get(name)
        if module is None or name.startswith("vision_tower"):
            raise ConfigError(f"trainable={name!r} is not a module of the model that may train here")
        module.requires_grad_(True)
    return policy.eval()


def _finish(policy: Policy, processor: VLMProcessor, recipe: GrpoRecipe, history: list[dict[str, Any]]) -> Path:
    final = Path(recipe.out) / "final"
    plain = VLMForConditionalGeneration(policy.config)
    plain.load_state_dict(policy.state_dict())
    plain.save_pretrained(final)
    processor.save_pretrained(final)
    write_text(Path(recipe.out) / "history.json", json.dumps(history, indent=1))
    return final
