"""The values that cross the engine's port: what is asked and what comes back.

Owns: Request and its parts, SamplingParams, RequestOutput, FinishReason, ModelInfo, EngineStats and
the errors a submit can raise. Does not own: the OpenAI wire (``api``) or sequences (``engine``).
All values are plain, for they cross a process boundary. Next: ``client.py`` carries them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

from terrace_runtime.contract import Capabilities, DeviceMemory

if TYPE_CHECKING:
    from terrace_runtime.backend import Grammar


class FinishReason(StrEnum):
    """Why a request ended; every request ends exactly once, with one of these."""

    STOP = "stop"
    """End-of-generation token or a stop string."""
    LENGTH = "length"
    """max_tokens or the context is used up."""
    ABORT = "abort"
    """The client left or the server drains."""
    TIMEOUT = "timeout"
    """It is older than its deadline."""
    ERROR = "error"
    """The engine could not go on; ``RequestOutput.error`` says why."""


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the next token is chosen. temperature 0 is greedy; top_k 0, top_p 1, min_p 0 are off."""

    temperature: float = 0.8
    top_p: float = 0.95
    top_k: int = 40
    min_p: float = 0.05
    repeat_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    """None: drawn by the engine."""
    ignore_eos: bool = False
    """Go on after end of generation until max_tokens (benchmarks)."""
    typical_p: float = 1.0
    """Locally typical sampling; 1 is off."""
    repeat_last_n: int = 64
    """Tokens that repeat_penalty looks back, prompt included; 0 off, -1 the whole context."""
    dry_multiplier: float = 0.0
    """Strength of the DRY repetition penalty; 0 is off."""
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    """Repetitions this long are free of it."""
    dry_penalty_last_n: int = -1
    """Tokens it looks back, prompt included; 0 off, -1 the whole context."""
    dry_sequence_breakers: tuple[str, ...] = ("\n", ":", '"', "*")
    """Texts across which no repetition counts."""
    xtc_probability: float = 0.0
    """How often XTC cuts the likeliest tokens away; 0 is off."""
    xtc_threshold: float = 0.1
    """Probability from which XTC takes a token for a likely one; above 0.5 it finds none."""
    logit_bias: tuple[tuple[int, float], ...] = ()
    """(token, number added to its logit)."""
    logprobs: int | None = None
    """None: not wanted; else how many alternatives each token is shown with."""
    grammar: Grammar | None = None
    """What the answer must match."""


@dataclass(frozen=True, slots=True)
class PromptPart:
    """A piece of prompt text; ``special`` says whether control tokens in it are parsed.

    Text that a client wrote never is, so that nobody can forge a turn of the conversation.
    """

    text: str
    special: bool = False


@dataclass(frozen=True, slots=True)
class ImagePart:
    """An image between pieces of text: decoded pixels, three bytes (RGB) each, row by row."""

    rgb: bytes = field(repr=False)
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class Request:
    """One generation. Exactly one of ``prompt`` and ``prompt_tokens`` is not empty."""

    id: str
    prompt: tuple[PromptPart | ImagePart, ...] = ()
    prompt_tokens: tuple[int, ...] = ()
    sampling: SamplingParams = field(default_factory=SamplingParams)
    max_tokens: int | None = None
    """None: as the context allows."""
    stop: tuple[str, ...] = ()
    tenant: str = ""
    priority: int = 0
    """0 interactive, 1 batch: lower goes first."""
    timeout_s: float | None = None
    """Seconds after which it ends with TIMEOUT; the server's own bound holds besides."""
    adapter: str = ""
    """Name of the LoRA adapter; empty: the model alone."""
    pin: bool = False
    """Keep the prompt's blocks in host memory, within what the server allows for all pins."""
    add_bos: bool = True
    """Let the vocabulary's own rule add its BOS token; chat templates write theirs themselves."""
    stream: bool = False
    """Somebody reads the answer while it is made: see ``parking.py``."""
    embed: bool = False
    """Asks for the prompt's embedding; nothing is generated."""

    @property
    def images(self) -> tuple[ImagePart, ...]:
        """Of the prompt, in order."""
        return tuple(part for part in self.prompt if isinstance(part, ImagePart))

    @property
    def pixel_bytes(self) -> int:
        """Memory of its images."""
        return sum(len(image.rgb) for image in self.images)


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token's log probability (natural, of the model's own distribution at temperature 1)."""

    piece: str
    """The token's bytes, each as the character of that number (latin-1): JSON holds no bytes."""
    logprob: float


@dataclass(frozen=True, slots=True)
class TokenLogprobs(TokenLogprob):
    """A generated token with the likeliest ones in its place, the likeliest first."""

    top: tuple[TokenLogprob, ...] = ()
    num_bytes: int = 0
    """Bytes of the answer that it stands for: a control token has a piece, but no text."""


@dataclass(frozen=True, slots=True)
class RequestOutput:
    """What one step gave one request: text (may be empty while UTF-8 is incomplete) and an end."""

    id: str
    text: str = ""
    num_tokens: int = 0
    """Tokens generated since the last output."""
    num_prompt_tokens: int = 0
    """Set in the first output of a request and in its last."""
    num_cached_tokens: int = 0
    """Prompt tokens that were not computed anew; set where ``num_prompt_tokens`` is."""
    finish: FinishReason | None = None
    error: str = ""
    embedding: str = ""
    """Base64 of the normalised vector as little-endian float32; of a request that embeds."""
    cached_tier: str = ""
    """The coldest tier they came from: device, host or disk; empty for none."""
    logprobs: tuple[TokenLogprobs, ...] = ()
    """One for each of ``num_tokens``, when they are wanted."""
    queued_s: float = 0.0
    """Seconds until it began; set where ``num_prompt_tokens`` is."""


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What the API side knows of the loaded model, sent once when the engine is up."""

    context_tokens: int
    parallel: int
    vocabulary: int
    threads: int
    chat_template: str = ""
    bos: str = ""
    eos: str = ""
    special_tokens: tuple[str, ...] = ()
    """Texts of all control tokens; the longest first."""
    build: str = ""
    weights_bytes: int | None = None
    kv_bytes: int | None = None
    compute_bytes: int | None = None
    devices: tuple[DeviceMemory, ...] = ()
    capabilities: Capabilities = field(default_factory=Capabilities)
    embedding_width: int = 0
    """Numbers of one embedding; 0: the model gives none."""
    projector_bytes: int | None = 0
    """Memory of the projector's weights and graph; 0: there is none, None: not told."""
    tier_bytes: int = 0
    """Of the memory for the tiers, what the engine held when it sent this."""


@dataclass(frozen=True, slots=True)
class EngineStats:
    """A picture of the engine after a step; counters since start, seconds summed."""

    waiting: int = 0
    running: int = 0
    steps: int = 0
    batch_tokens: int = 0
    """Tokens of the last step."""
    step_seconds: float = 0.0
    """Duration of the last step."""
    prompt_tokens: int = 0
    prompt_seconds: float = 0.0
    generated_tokens: int = 0
    generated_seconds: float = 0.0
    kv_used_tokens: int = 0
    kv_total_tokens: int = 0


class EngineError(Exception):
    """The engine is dead or dying; the message says why. Health is red from here on."""


class QueueFullError(Exception):
    """As many requests wait as may, or as long; try again after ``retry_after_s`` seconds."""

    def __init__(
        self, waiting: int, retry_after_s: int, wait_s: float = 0.0, why: str = ""
    ) -> None:
        """``waiting`` requests are queued; one more would wait ``wait_s`` seconds (0: unknown).

        ``why`` says it where it is something else.
        """
        expected = f" and one more would wait about {wait_s:.0f} s" if wait_s >= 1 else ""
        super().__init__(why or f"{waiting} requests wait already{expected}")
        self.waiting = waiting
        self.retry_after_s = retry_after_s


class InvalidRequestError(Exception):
    """The request can never run here: ``param`` names the field that is at fault."""

    def __init__(self, message: str, param: str) -> None:
        """``message`` is meant for the client."""
        super().__init__(message)
        self.param = param
