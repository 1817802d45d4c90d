"""The chat in a browser: ``vlm demo``. Gradio loads only when `launch` is called."""

from __future__ import annotations

from pathlib import Path


def launch(model: str | Path = "smol", *, host: str = "127.0.0.1", port: int = 7860, share: bool = False) -> None:
    """Load a model and serve the chat until interrupted.

    Args:
        model: ``smol``, ``nano``, a folder or a hub id.
        host: Address to listen on; the default is reachable from this machine only.
        port: Port to listen on.
        share: Ask Gradio for a public link (the page then goes through Gradio's servers).

    Raises:
        MissingDependencyError: Gradio is not installed.
        CheckpointError: The model cannot be loaded.
        ConfigError: The port cannot be used.
    """
    from vlm.errors import MissingDependencyError

    try:
        import gradio  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError("gradio", "demo", "the chat in a browser") from error
    from demo.app import serve
    from vlm.presets import load

    serve(load(model), host=host, port=port, share=share)
