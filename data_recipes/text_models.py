"""Language models that write or judge text: any OpenAI-compatible endpoint, or a local model, behind one call."""

from __future__ import annotations

import json
import os
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

from vlm.errors import ConfigError, DataError

_AGAIN = (408, 409, 429, 500, 502, 503, 504)  # statuses that pass


class TextModel(Protocol):
    """Answers one prompt."""

    @property
    def name(self) -> str:
        """For results files."""

    def complete(
        self, prompt: str, *, system: str = "", max_tokens: int = 512, temperature: float = 0.0, seed: int = 0
    ) -> str:
        """Its answer.

        Raises:
            DataError: There is no answer to be had.
        """


@dataclass(frozen=True)
class Endpoint:
    """A server that speaks OpenAI's chat completions.

    Attributes:
        url: Up to and including ``/v1``.
        model: Name of the model there.
        key: Secret; default: the environment variable ``OPENAI_API_KEY``.
        timeout: Seconds that one request may take.
        retries: Further tries where the server is busy or out of reach, after 1, 2, 4, ... seconds.
    """

    url: str
    model: str
    key: str | None = field(default=None, repr=False)
    timeout: float = 120.0
    retries: int = 3

    def __post_init__(self) -> None:
        if not self.url.startswith(("http://", "https://")):
            raise ConfigError(f"url={self.url!r} is no http address; give one like https://api.example.com/v1")

    @property
    def name(self) -> str:
        return self.model

    def complete(
        self, prompt: str, *, system: str = "", max_tokens: int = 512, temperature: float = 0.0, seed: int = 0
    ) -> str:
        """See `TextModel`."""
        turns = [*([{"role": "system", "content": system}] if system else []), {"role": "user", "content": prompt}]
        body = {
            "model": self.model,
            "messages": turns,
            "max_tokens": max_tokens,
            "temperature": temperature,
            "seed": seed,
        }
        reply = self._post({k: v for k, v in body.items() if v is not None})
        try:
            text = reply["choices"][0]["message"]["content"]
        except (KeyError, IndexError, TypeError) as error:
            raise DataError(f"{self.url} answered without choices: {str(reply)[:200]}") from error
        if not isinstance(text, str):
            raise DataError(f"{self.url} answered with {text!r} instead of a text")
        return text

    def _post(self, body: dict[str, Any]) -> Any:
        key = self.key or os.environ.get("OPENAI_API_KEY")
        headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}
        address = f"{self.url.rstrip('/')}/chat/completions"
        for attempt in range(self.retries + 1):
            request = urllib.request.Request(address, json.dumps(body).encode(), headers)
            try:
                with urllib.request.urlopen(request, timeout=self.timeout) as response:
                    return json.load(response)
            except urllib.error.HTTPError as error:
                cause, passes = (
                    f"{error.code} {error.reason}: {error.read(300).decode(errors='replace')}",
                    error.code in _AGAIN,
                )
            except (OSError, ValueError) as error:  # out of reach, too slow, or no JSON
                cause, passes = str(error), True
            if not passes or attempt == self.retries:
                raise DataError(f"{address} cannot be asked: {cause}")
            time.sleep(2.0**attempt)
        raise AssertionError("unreachable")


@dataclass
class LocalModel:
    """A causal language model of transformers, on this machine.

    Attributes:
        source: Folder or hub id.
    """

    source: str

    @property
    def name(self) -> str:
        return self.source

    @cached_property
    def _loaded(self) -> tuple[Any, Any]:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        try:
            return AutoModelForCausalLM.from_pretrained(self.source).eval(), AutoTokenizer.from_pretrained(self.source)
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"cannot read the language model {self.source!r}: {str(error).splitlines()[0]}"
            ) from error

    def complete(
        self, prompt: str, *, system: str = "", max_tokens: int = 512, temperature: float = 0.0, seed: int = 0
    ) -> str:
        """See `TextModel`."""
        import torch

        model, tokenizer = self._loaded
        turns = [*([{"role": "system", "content": system}] if system else []), {"role": "user", "content": prompt}]
        inputs = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        torch.manual_seed(seed)
        sampling = {"do_sample": True, "temperature": temperature} if temperature > 0 else {"do_sample": False}
        ids = model.generate(**inputs.to(model.device), max_new_tokens=max_tokens, **sampling)
        return str(tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))


def text_model(spec: str) -> TextModel:
    """``URL#MODEL`` for an endpoint (``http://localhost:8000/v1#qwen``), or the folder or hub id of a local model.

    Raises:
        ConfigError: An address without the name of a model.
    """
    if not spec.startswith(("http://", "https://")):
        return LocalModel(spec)
    url, mark, model = spec.partition("#")
    if not mark or not model:
        raise ConfigError(f"{spec!r} names no model; write URL#MODEL, for example http://localhost:8000/v1#qwen")
    return Endpoint(url, model)
