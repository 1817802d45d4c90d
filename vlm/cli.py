"""The command line: ``vlm VERB ...``. Each verb is a few lines that call the library; a user's mistake ends in one line, not a traceback."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vlm.errors import VLMError

EXIT_USER_ERROR = 2


def chat(
    video: str | None = None,
    ask: str | None = None,
    *,
    model: str = "smol",
    image: str | None = None,
    audio: str | None = None,
    num_frames: int | None = None,
    fps: float | None = None,
    start: float | None = None,
    end: float | None = None,
    max_new_tokens: int = 128,
    temperature: float = 0.0,
    picture: Path | None = None,
    json: bool = False,
) -> None:
    """Ask a video a question; without a question, talk about it until an empty line.

    Args:
        video: Video file or folder of frames.
        ask: The question.
        model: ``smol``, ``nano``, a folder or a hub id.
        image: Picture to ask about instead.
        audio: Sound file to ask about instead.
        num_frames: Frames to look at (default 64).
        fps: Frames per second to look at, instead of num_frames.
        start: Begin of the window, seconds.
        end: End of the window, seconds.
        max_new_tokens: Longest answer, tokens.
        temperature: 0 always gives the same answer.
        picture: Write the sampled frames with the answer's span marked to this PNG.
        json: Print the reply as JSON.
    """
    from vlm.presets import load
    from vlm.report import print_json, print_reply, save_strip

    _quiet()
    if video is None and image is None and audio is None and ask is not None:
        print("(no video, image or audio given: answering from the text alone)", file=sys.stderr)
    assistant = load(model)
    conversation = assistant.conversation()
    media: dict[str, Any] = {"video": video, "image": image, "audio": audio}
    window = {"num_frames": num_frames, "fps": fps, "start": start, "end": end}
    question = ask
    while question or (ask is None and (question := _read_question())):
        shown = _Growing(enabled=ask is None and not json)
        for text in conversation.stream(
            question, **media, **window, max_new_tokens=max_new_tokens, temperature=temperature
        ):
            shown.update(text)
        reply = conversation.reply
        if reply is None:
            return
        shown.end(reply.text)
        print_json(question, reply) if json else print_reply(question, reply, with_text=ask is not None)
        if picture is not None and conversation.video is not None:
            written = save_strip(conversation.video, reply, picture, question=question)
            print(f"picture  {written}", file=sys.stderr if json else sys.stdout)
        media, window = {}, {}
        if ask is not None:
            return
        question = None


class _Growing:
    """Prints a text that grows, without repeating what is already on the screen."""

    def __init__(self, *, enabled: bool) -> None:
        self.enabled, self.shown = enabled, ""

    def update(self, text: str) -> None:
        if self.enabled and text.startswith(self.shown):
            print(text[len(self.shown) :], end="", flush=True)
            self.shown = text

    def end(self, final: str) -> None:
        """The whole text: its rest, or all of it on a new line if what is on the screen has changed."""
        if self.enabled:
            print(final[len(self.shown) :] if final.startswith(self.shown) else f"\n{final}")


def _quiet() -> None:
    """A command's output is its answer: no bars for loading weights, no advice for programmers."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def _read_question() -> str | None:
    try:
        return input("> ").strip() or None
    except EOFError:
        return None


def info(
    model: str = "smol", *, frames: int = 64, seconds: float = 120.0, event: float = 5.0, json: bool = False
) -> None:
    """What a model is made of: parameters, tokens per frame, memory for a number of frames, how precisely it can say when.

    Args:
        model: ``smol``, ``nano``, a folder or a hub id.
        frames: Number of frames to count memory for.
        seconds: Length of the videos that it is asked about.
        event: Length of the shortest event that it should find, seconds.
        json: Print JSON.
    """
    from vlm.presets import load
    from vlm.report import model_facts, print_facts
    from vlm.time import warn_if_coarse

    _quiet()
    assistant = load(model)
    print_facts(model_facts(assistant, frames=frames, seconds=seconds, event=event), as_json=json)
    warn_if_coarse(assistant.processor.codec, seconds, shortest_event=event)


def env(*, json: bool = False) -> None:
    """Versions, decoders and devices, for a bug report.

    Args:
        json: Print JSON.
    """
    from vlm.report import environment, print_facts

    print_facts(environment(), as_json=json)


def fetch(*names: str) -> None:
    """Fetch and convert what a preset needs, so that later commands start at once.

    Args:
        names: Presets; default ``smol``.
    """
    from vlm.presets import PRESETS, _resolve
    from vlm.presets.smol import whisper

    for name in names or ("smol",):
        if name not in PRESETS:
            raise VLMError(f"{name!r} is not a preset; presets: {PRESETS}")
        _resolve(name)
        if name == "smol":
            whisper()
        print(f"{name} is ready")


def train(recipe: str, *overrides: str, dry_run: bool = False) -> None:
    """Run a training recipe: ``vlm train RECIPE key=value ...``.

    Args:
        recipe: YAML file, or the name of a shipped recipe.
        overrides: ``key=value``, dotted keys reach inside stages.
        dry_run: Print trainable parameters, tokens and memory, and stop.
    """
    import logging

    from train import main as run

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if status := run(recipe, list(overrides), dry_run):
        raise SystemExit(status)  # 75 when the run was pre-empted and saved: a scheduler starts it again


def data(
    action: str,
    source: str,
    *,
    format: str = "",
    task: str = "",
    media: Path | None = None,
    stage: str = "",
    count: int = 3,
    model: str = "",
    writer: str = "",
    split: str = "train",
    seed: int = 0,
    out: Path = Path("rtl"),
) -> None:
    """Look at training data, ``vlm data check RECIPE``, or make questions about when, ``vlm data rtl shapes --count 100 --out FOLDER``.

    ``check`` prints what the model reads, which words the loss is on, and which times they say; media that are missing are counted.
    ``rtl`` writes questions that need reasoning, in ActivityNet-RTL's layout: about drawn clips (``shapes``), or about the videos of a file
    of captions, for which it asks ``writer``.

    Args:
        action: ``check`` or ``rtl``.
        source: A recipe (YAML file or name), a file of annotations, or ``shapes``.
        format: Of a file: ``captions`` (ActivityNet-Captions, YouCook2, ViTT), ``rtl``, ``charades_sta``, ``qvhighlights``, ``didemo`` or
            ``nextqa``.
        task: What is made of a file: ``dense``, ``localise``, ``qa`` or ``reasoning``; default: what it has.
        media: Folder of a file's videos; default: its own.
        stage: Of a recipe; default: every stage.
        count: How many conversations to look at, clips to draw, or questions to write about a video.
        model: Whose processor reads them; default: the recipe's own, ``nano`` for a file.
        writer: ``URL#MODEL`` of an OpenAI-compatible endpoint, or the folder or hub id of a local language model.
        split: Of drawn clips, ``train`` or ``heldout``.
        seed: Of what is drawn and written.
        out: Folder for drawn clips and their questions; JSON file for questions about a file's videos.
    """
    _quiet()
    if action == "check":
        from train.check import check

        for line in check(
            source, format=format or None, task=task or None, media=media, stage=stage or None, count=count,
            model=model or None, seed=seed,
        ):  # fmt: skip
            print(line)
    elif action == "rtl":
        from data_recipes.rtl import make

        print(make(source, out, count=count, media=media, writer=writer or None, split=split, seed=seed))
    else:
        raise VLMError(f"vlm data {action!r} is not known; there are: check, rtl")


def evaluate(
    task: str, *options: str, model: str = "", limit: int | None = None, out: Path = Path("docs/results")
) -> None:
    """Score a model: ``vlm eval basics``, ``vlm eval shapes``, ``vlm eval niah``; or the cost model: ``vlm eval plan``.

    Args:
        task: Which evaluation.
        options: ``key=value`` options of that evaluation.
        model: ``smol``, ``nano``, a folder or a hub id; default: the one the evaluation is made for.
        limit: Fewer items, for a quick look.
        out: Folder for the JSON and the plots.
    """
    from eval import run_task

    run_task(task, model=model or None, limit=limit, out=out, options=list(options))


def reproduce(
    paper: str,
    *,
    quick: bool = False,
    out: Path = Path("docs/results"),
    work: Path = Path("runs/reproduce"),
    seed: int = 0,
) -> None:
    """Measure small versions of a paper's claims on this machine: ``vlm reproduce longvila``.

    Args:
        paper: ``longvila``.
        quick: In minutes: smaller sizes, and no training.
        out: Folder for the JSON and the plot.
        work: Folder for trainings; what is there already is not trained again.
        seed: Of all randomness.
    """
    from eval.report import markdown_table
    from eval.reproduce import run

    _quiet()
    print(markdown_table(run(paper, quick=quick, out=out, work=work, seed=seed)))


def plan(
    *,
    model: str = "qwen2-7b",
    frames: int | None = None,
    tokens: int | None = None,
    tokens_per_frame: int | None = None,
    gpus: int = 8,
    node: int = 8,
    gpu: str = "A100",
    batch: int = 1,
    sp_size: int | None = None,
    zero: int | None = None,
    checkpointing: bool = False,
    mode: str = "train",
    json: bool = False,
) -> None:
    """What a run on a cluster would need and how long a step would take; no weight is read.

    Args:
        model: ``qwen2-7b``, ``qwen2-1.5b``, ``llama3-8b``, ``smollm2-135m`` (each with SigLIP), ``smol``, ``nano``, a folder or a hub id.
        frames: Frames of a video, or
        tokens: tokens of a text without any.
        tokens_per_frame: Instead of the model's own; 196 means SigLIP at 384 pixels, 256 at 448.
        gpus: GPUs in all.
        node: GPUs of a node.
        gpu: ``A100``, ``A100-40GB``, ``H100``, ``H200`` or ``L40S``.
        batch: Sequences that a group of processes packs together.
        sp_size: Processes that share a sequence (default: all).
        zero: Stage of ZeRO, 0 to 3; 3 is also FSDP (default: 3 to train, 0 to infer).
        checkpointing: Compute activations again instead of keeping them.
        mode: ``train``, or ``infer``: read a prompt and keep its keys and values.
        json: Print JSON.
    """
    from vlm.parallel.cost import estimates, largest
    from vlm.parallel.memory import job_for
    from vlm.presets import PRESETS, _resolve
    from vlm.report import print_plan

    _quiet()
    job = job_for(
        model, source=_resolve(model) if model in PRESETS else None, gpu=gpu, gpus=gpus, frames=frames, tokens=tokens,
        tokens_per_frame=tokens_per_frame, node=node, batch=batch, sp_size=sp_size, zero=zero,
        checkpointing=checkpointing, mode=mode,
    )  # fmt: skip
    print_plan(job, estimates(job), largest(job), as_json=json)


def demo(*, model: str = "smol", host: str = "127.0.0.1", port: int = 7860, share: bool = False) -> None:
    """Open the chat in a browser (Gradio).

    Args:
        model: ``smol``, ``nano``, a folder or a hub id.
        host: Address to listen on.
        port: Port to listen on.
        share: Ask Gradio for a public link.
    """
    from demo import launch

    launch(model=model, host=host, port=port, share=share)


VERBS: dict[str, Callable[..., None]] = {
    "chat": chat,
    "info": info,
    "env": env,
    "fetch": fetch,
    "train": train,
    "data": data,
    "eval": evaluate,
    "reproduce": reproduce,
    "plan": plan,
    "demo": demo,
}


def main(argv: list[str] | None = None) -> int:
    """Entry point of the console script; returns the exit status."""
    arguments = sys.argv[1:] if argv is None else argv
    if arguments[:1] == ["--version"]:
        from vlm import __version__

        print(f"vlm {__version__}")
        return 0
    try:
        _dispatch(arguments)
    except VLMError as error:
        print(f"vlm: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    except KeyboardInterrupt:
        print("\nvlm: stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return 0
    return 0


def _dispatch(arguments: list[str]) -> None:
    verb = arguments[0] if arguments else "--help"
    if verb in ("-h", "--help"):
        print(_overview())
        return
    if verb not in VERBS:
        raise VLMError(f"there is no verb {verb!r}; verbs: {', '.join(VERBS)}")
    warnings.formatwarning = lambda message, category, *_: f"vlm: {message}\n"
    from vlm.arguments import call_with

    call_with(VERBS[verb], arguments[1:], prog=f"vlm {verb}")


def _overview() -> str:
    lines = ["usage: vlm VERB ...   (vlm VERB --help tells its options)", ""]
    for verb, function in VERBS.items():
        lines.append(f"  {verb:7} {(function.__doc__ or '').splitlines()[0]}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
