"""From a Request to a Sequence: what is refused, and why.

Owns: validation and tokenization of requests. Does not own: queueing (``core.py``). A request is a
client's, so every number is bounded here before llama.cpp sees it. Next: ``runner.py`` calls
``make_sequence`` on a thread of its own, for a long prompt takes longer than a step.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from terrace_runtime.engine.image_intake import PromptTokens
from terrace_runtime.engine.request import InvalidRequestError, PromptPart
from terrace_runtime.engine.sampling import check_sampling, prepare_sampler
from terrace_runtime.engine.sequence import Sequence

if TYPE_CHECKING:
    from terrace_runtime.backend import Backend
    from terrace_runtime.contract import Capabilities, RuntimeConfig
    from terrace_runtime.engine.detokenizer import PieceTable
    from terrace_runtime.engine.image_spans import ImageSpan
    from terrace_runtime.engine.request import Request

MAX_STOPS = 16
MAX_STOP_CHARS = 512


def check_request(request: Request, vocabulary: int, config: RuntimeConfig) -> None:
    """Raise InvalidRequestError for all that shows without tokenizing."""
    check_sampling(request.sampling, vocabulary)
    if request.max_tokens is not None and request.max_tokens < 1:
        raise InvalidRequestError(
            f"max_tokens is {request.max_tokens}, not 1 or more", "max_tokens"
        )
    if len(request.stop) > MAX_STOPS or any(len(stop) > MAX_STOP_CHARS for stop in request.stop):
        message = f"stop may hold {MAX_STOPS} strings of at most {MAX_STOP_CHARS} characters"
        raise InvalidRequestError(message, "stop")
    if bool(request.prompt) == bool(request.prompt_tokens):
        raise InvalidRequestError("a prompt is needed, as text or as tokens", "prompt")
    for token in request.prompt_tokens:
        if not 0 <= token < vocabulary:
            message = f"token {token} is not in the model's vocabulary of {vocabulary}"
            raise InvalidRequestError(message, "prompt")
    if request.prompt_tokens:
        _check_length(len(request.prompt_tokens), config, embeds=request.embed)


def make_sequence(
    request: Request, backend: Backend, table: PieceTable, config: RuntimeConfig
) -> Sequence:
    """Tokenize a checked request; raises InvalidRequestError when the context cannot hold it."""
    prompt, spans = _tokenize(request, backend, table, config)
    if not prompt:
        raise InvalidRequestError("the prompt is empty", "prompt")
    _check_length(len(prompt), config, embeds=request.embed)
    if request.embed:
        return Sequence(request, prompt, 0, table)
    prepare_sampler(backend, request.sampling)
    room = config.context_tokens - len(prompt)
    bounds = (request.max_tokens, config.max_tokens)
    limit = min([room, *(bound for bound in bounds if bound)])
    if backend.info.capabilities.model_class != "encoder-decoder":
        return Sequence(request, prompt, limit, table, spans)
    sequence = Sequence(request, [backend.info.decoder_start], limit, table)
    sequence.encoded = prompt
    return sequence


def check_class(request: Request, found: Capabilities) -> None:
    """Raise InvalidRequestError when a model of this class cannot do what is asked."""
    if request.embed and not found.can_embed:
        message = (
            "this model generates text and gives no embeddings: its architecture is no encoder's "
            "and its file names no pooling type"
        )
        raise InvalidRequestError(message, "model")
    if not request.embed and found.can_embed:
        message = (
            f"this model gives embeddings ({found.model_class}, pooling {found.pooling}) and "
            "generates no text: use /v1/embeddings"
        )
        raise InvalidRequestError(message, "model")
    if request.images and not found.takes_images:
        message = "this model takes no images; its InferenceModel names no spec.projector"
        raise InvalidRequestError(message, "prompt")


def _tokenize(
    request: Request, backend: Backend, table: PieceTable, config: RuntimeConfig
) -> tuple[list[int], tuple[ImageSpan, ...]]:
    if request.prompt_tokens:
        return list(request.prompt_tokens), ()
    # A token is at most so long, hence a text too long to fit is refused without tokenizing it.
    # Not so with an encoder's vocabulary, which drops spaces and takes any word it does not know.
    if not request.embed:
        texts = [part.text for part in request.prompt if isinstance(part, PromptPart)]
        num_bytes = sum(map(len, texts))
        _check_length(-(-num_bytes // table.longest), config, "at least ", embeds=False)
    found = PromptTokens(backend, config)
    found.add_all(request, lambda count: _check_length(count, config, "at least ", embeds=False))
    if request.embed or backend.info.capabilities.model_class == "encoder-decoder":
        found.tokens += backend.info.tail
    return found.tokens, tuple(found.spans)


def _check_length(
    num_tokens: int, config: RuntimeConfig, qualifier: str = "", *, embeds: bool
) -> None:
    if embeds and num_tokens > config.context_tokens:
        raise InvalidRequestError(
            f"the input has {qualifier}{num_tokens} tokens, but the context holds "
            f"{config.context_tokens}",
            "prompt",
        )
    if not embeds and num_tokens >= config.context_tokens:
        raise InvalidRequestError(
            f"the prompt has {qualifier}{num_tokens} tokens, but the context holds "
            f"{config.context_tokens} and the answer needs one of them",
            "prompt",
        )
