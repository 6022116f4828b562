"""From a GGUF header to what there is to know of a LoRA adapter. Pure.

Owns: which files are adapters. Does not own: reading bytes (``gguf_header``), whether it fits the
model (``backend.adapters``, when it loads). Next: ``inspect_child``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

from terrace_runtime.contract import FileFacts
from terrace_runtime.models.errors import FetchError
from terrace_runtime.models.metadata import Keys

if TYPE_CHECKING:
    from collections.abc import Sequence

    from terrace_runtime.models.gguf_header import Header


def adapter_facts(headers: Sequence[Header], digest: str) -> FileFacts:
    """Facts of an adapter in one file; raises FetchError when it is none."""
    header, keys = headers[0], Keys(headers[0].metadata)
    if len(headers) > 1 or keys.raw("split.count") not in {None, 1}:
        _refuse("split into parts; merge them with llama-gguf-split --merge")
    if keys.text("general.type") != "adapter":
        kind = keys.text("general.type") or "model"
        if keys.architecture == "clip":
            _refuse("a multimodal projector and not a LoRA adapter; name it under spec.projector")
        what = "a whole model" if kind == "model" else f"of the type {kind[:32]!r}"
        _refuse(f"{what} and not a LoRA adapter; serve it as spec.source of its own model")
    if keys.text("adapter.type") != "lora":
        _refuse(
            f"an adapter of the type {keys.text('adapter.type')[:32]!r}; only lora is supported"
        )
    if not header.tensors or not all(
        t.name.endswith((".lora_a", ".lora_b")) for t in header.tensors
    ):
        raise FetchError("InvalidModel", "the LoRA adapter holds no tensors, or foreign ones")
    return FileFacts(digest=digest, file_bytes=header.file_bytes, architecture=keys.architecture)


def _refuse(what: str) -> NoReturn:
    raise FetchError("UnsupportedFormat", f"the file under spec.adapters is {what}")
