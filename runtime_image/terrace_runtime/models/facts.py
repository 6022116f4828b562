"""From a GGUF header to ModelFacts: bytes per layer, KV geometry, totals. Pure.

Owns: the totals and which GGUFs are refused. Does not own: reading bytes (``gguf_header``), layers
(``layers``), shortening (``fit``) or what a plan does with the facts (the planner).
Where a number cannot be known exactly it is too large, never too small. Next: ``inspect``.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final

from terrace_runtime.contract import ModelFacts
from terrace_runtime.models.classes import Kind, Refusal, classify, has_cells, recurrent_bytes
from terrace_runtime.models.errors import FetchError
from terrace_runtime.models.fit import merge_down
from terrace_runtime.models.gguf_types import REPACK_ROWS, REPACKED_TYPES
from terrace_runtime.models.layers import layer_runs
from terrace_runtime.models.metadata import Keys, invalid_model

if TYPE_CHECKING:
    from collections.abc import Iterable

    from terrace_runtime.models.gguf_header import Header, Tensor

MAX_RUNS: Final = 64
"""Most runs that ModelFacts takes."""


def model_facts(header: Header, digest: str) -> ModelFacts:
    """Facts of the file that ``header`` describes; raises FetchError when it is no language model.

    ``digest`` is the file's sha256 in hex.
    """
    keys = Keys(header.metadata)
    _refuse_other_kinds(keys)
    kind = _kind(keys)
    layers = layer_runs(keys, header.tensors, has_cells=has_cells(keys.architecture))
    runs = merge_down(layers, MAX_RUNS)
    embedding = sum(t.num_bytes for t in header.tensors if t.name == "token_embd.weight")
    inside = sum(run.count * run.weight_bytes for run in layers)
    total = sum(t.num_bytes for t in header.tensors)
    return ModelFacts(
        digest=digest,
        file_bytes=header.file_bytes,
        architecture=keys.architecture,
        name=_printable(keys.text("general.name"), 128),
        quantization=_main_type(header.tensors),
        parameters=sum(t.elements for t in header.tensors),
        context_length=keys.positive("context_length"),
        embedding_length=keys.positive("embedding_length"),
        feed_forward_length=max(keys.per_layer("feed_forward_length", 1, 0)),
        heads=max(keys.per_layer("attention.head_count", 1, 0)),
        vocabulary=_vocabulary(keys, header.tensors),
        layers=runs,
        layers_are_merged=len(runs) < len(layers),
        token_embedding_bytes=embedding,
        output_bytes=total - inside - embedding,
        repacked_bytes=_repacked_bytes(header.tensors),
        chat_template="tokenizer.chat_template" in header.metadata,
        model_class=kind.model_class,
        pooling=kind.pooling,
        recurrent_bytes=recurrent_bytes(keys, (t.name for t in header.tensors)),
    )


def _refuse_other_kinds(keys: Keys) -> None:
    kind = keys.text("general.type")
    if keys.architecture == "clip" or kind == "mmproj":
        what = "a multimodal projector"
    elif kind == "adapter":
        what = "a LoRA adapter"
    elif kind == "imatrix":
        what = "an importance matrix"
    elif keys.array_length("split.tensors.count") or _split_count(keys) > 1:
        what = "one part of a split model (merge the parts with llama-gguf-split --merge)"
    else:
        return
    raise FetchError("UnsupportedFormat", f"the GGUF is {what}, not a whole language model")


def _kind(keys: Keys) -> Kind:
    """Class and pooling; raises FetchError for what this build cannot serve."""
    is_causal = keys.get("attention.causal") is not False
    has_pooling = keys.get("pooling_type") is not None
    pooling = keys.number("pooling_type", 0) if has_pooling else None
    kind = classify(keys.architecture, is_causal=is_causal, pooling=pooling)
    if isinstance(kind, Refusal):
        raise FetchError("UnsupportedFormat", f"the model is {kind.reason}")
    return kind


def _split_count(keys: Keys) -> int:
    value = keys.raw("split.count") or 0
    return value if isinstance(value, int) else 2


def _vocabulary(keys: Keys, tensors: Iterable[Tensor]) -> int:
    tokens = keys.array_length("tokenizer.ggml.tokens")
    rows = next((t.shape[-1] for t in tensors if t.name == "token_embd.weight"), 0)
    count = tokens or keys.number("vocab_size", 0)
    if not count or not rows:
        invalid_model("it has no vocabulary (tokenizer.ggml.tokens) or no token_embd.weight")
    if tokens and rows < tokens:
        invalid_model(f"its vocabulary has {tokens} tokens and its embedding {rows} rows")
    return count


def _main_type(tensors: Iterable[Tensor]) -> str:
    sizes = Counter[str]()
    for tensor in tensors:
        sizes[tensor.type.name] += tensor.num_bytes
    return sizes.most_common(1)[0][0] if sizes else ""


def _repacked_bytes(tensors: tuple[Tensor, ...]) -> int:
    """Bytes that the CPU backend copies; a tied embedding is copied as the output head."""
    tied = all(tensor.name != "output.weight" for tensor in tensors)
    total = 0
    for tensor in tensors:
        is_matrix = len(tensor.shape) > 1 and tensor.name.endswith(".weight")
        only_looked_up = tensor.name == "token_embd.weight" and not tied
        repacks = tensor.type.name in REPACKED_TYPES and is_matrix and not only_looked_up
        if repacks and tensor.shape[1] % REPACK_ROWS == 0:
            total += tensor.num_bytes
    return total


def _printable(text: str, limit: int) -> str:
    return "".join(c if c.isprintable() else " " for c in text)[:limit]
