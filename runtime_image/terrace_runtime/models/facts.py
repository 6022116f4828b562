"""From a GGUF header to ModelFacts: bytes per layer, KV geometry, totals. Pure.

Owns: the totals and which GGUFs are refused. Does not own: reading bytes (``gguf_header``), layers
(``layers``), shortening (``fit``) or what a plan does with the facts (the planner).
Where a number cannot be known exactly it is too large, never too small. Next: ``inspect``.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final

from terrace_runtime.contract import ModelFacts
from terrace_runtime.models.classes import Kind, Refusal, classify, has_cells
from terrace_runtime.models.errors import FetchError
from terrace_runtime.models.layers import is_in_a_block, layer_runs, repacked_bytes
from terrace_runtime.models.metadata import Keys, invalid_model
from terrace_runtime.models.parts import joined
from terrace_runtime.models.recurrent import MAX_STATE_BYTES
from terrace_runtime.models.widths import widths_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from terrace_runtime.contract import LayerRun
    from terrace_runtime.models.gguf_header import Header, Tensor

_MAX_TYPES: Final = 32
"""Most weight types that ModelFacts takes; the format knows about as many."""
_EMBEDDING_TABLE: Final = "token_embd.weight"


def facts_of(headers: Sequence[Header], digest: str) -> ModelFacts:
    """Facts of a model that lies in one file or several, given in order; raises FetchError.

    ``digest`` is the sha256 in hex that names the model.
    """
    return _facts(joined(headers), digest, len(headers))


def model_facts(header: Header, digest: str) -> ModelFacts:
    """``facts_of`` a model in one file."""
    return facts_of((header,), digest)


def _facts(header: Header, digest: str, parts: int) -> ModelFacts:
    keys = Keys(header.metadata)
    _refuse_other_kinds(keys)
    kind = _kind(keys)
    layers = layer_runs(keys, header.tensors, has_cells=has_cells(keys.architecture))
    recurrent = sum(run.count * run.state_bytes for run in layers)
    if recurrent > MAX_STATE_BYTES:
        invalid_model(f"its recurrent state would take {recurrent} bytes per sequence")
    outside = [tensor for tensor in header.tensors if not is_in_a_block(tensor)]
    embedding = sum(t.num_bytes for t in outside if t.name == _EMBEDDING_TABLE)
    experts = keys.number("expert_count", 0)
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
        layers=layers,
        token_embedding_bytes=embedding,
        output_bytes=sum(t.num_bytes for t in outside) - embedding,
        repacked_bytes=_repacked_bytes(outside, layers),
        chat_template="tokenizer.chat_template" in header.metadata,
        model_class=kind.model_class,
        pooling=kind.pooling,
        recurrent_bytes=recurrent,
        weight_types=tuple(sorted({t.type.name for t in header.tensors}))[:_MAX_TYPES],
        experts=experts,
        experts_used=max(keys.per_layer("expert_used_count", 1, 0)) if experts else 0,
        parts=parts,
        widths=widths_of(keys, header.tensors),
    )


def _refuse_other_kinds(keys: Keys) -> None:
    kind = keys.text("general.type")
    if keys.architecture == "clip" or kind == "mmproj":
        what = "a multimodal projector (name it under spec.projector)"
    elif kind == "adapter":
        what = "a LoRA adapter (name it under spec.adapters)"
    elif kind == "imatrix":
        what = "an importance matrix"
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


def _repacked_bytes(outside: Sequence[Tensor], layers: Iterable[LayerRun]) -> int:
    """Bytes that the CPU backend copies; a tied embedding is copied as the output head."""
    is_tied = all(tensor.name != "output.weight" for tensor in outside)
    heads = (t for t in outside if is_tied or t.name != _EMBEDDING_TABLE)
    return sum(map(repacked_bytes, heads)) + sum(run.count * run.repacked_bytes for run in layers)


def _printable(text: str, limit: int) -> str:
    return "".join(c if c.isprintable() else " " for c in text)[:limit]
