"""The port between the engine and whatever evaluates the model.

Owns: the Backend and SamplerChain protocols, the batch they share, and their values. Does not own:
what goes into a batch (``engine.batch_planner``) or any call into llama.cpp. Next: ``llama.py`` is
the real backend and the only importer of llama_cpp; ``fake.py`` is a deterministic one for tests.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

from terrace_runtime.backend.projector import EmbeddingInput

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from terrace_runtime.backend.batch import Batch
    from terrace_runtime.backend.shortlist import Shortlist
    from terrace_runtime.contract import Capabilities, DeviceMemory, RuntimeConfig

MAX_WINDOW = 4096
"""Most tokens that a penalty looks back: each costs time at every step."""
DECODE_OK = 0
DECODE_NO_ROOM = 1
"""No KV cells for this batch; nothing was changed, a smaller batch may fit."""
DEAD_END = "the answer cannot go on within its grammar"
"""Begins the error of a sampler whose grammar is at fault, and nothing of ours."""


class BackendError(Exception):
    """The backend cannot start, cannot load the model, or broke; the message says the way out."""


@dataclass(frozen=True, slots=True)
class BackendInfo:
    """Facts of the loaded model and of the memory it took."""

    vocabulary: int
    threads: int
    eog: frozenset[int]
    """Tokens that end a generation."""
    capabilities: Capabilities
    """What the model can do in this build, probed at load."""
    pieces: tuple[bytes, ...]
    """Text of every token as bytes, by id; control tokens have none."""
    chat_template: str = ""
    bos: str = ""
    eos: str = ""
    special_tokens: tuple[str, ...] = ()
    """Texts of all control tokens; the longest first."""
    controls: Mapping[int, str] = field(default_factory=dict)
    """How control tokens are written, by id."""
    build: str = ""
    decoder_start: int = -1
    """Encoder-decoder: the token that a decoded answer begins with."""
    embedding_width: int = 0
    """Numbers of one embedding; 0: the model gives none."""
    tail: tuple[int, ...] = ()
    """Tokens that the vocabulary puts behind a text which is complete, as an input to embed is."""
    weights_bytes: int | None = None
    kv_bytes: int | None = None
    compute_bytes: int | None = None
    devices: tuple[DeviceMemory, ...] = ()
    """Bytes by device; host memory is the last."""
    adapter_switch_s: float = 0.0
    """Seconds that the first decode after ``use_adapter`` takes longer; 0: no adapters."""


@dataclass(frozen=True, slots=True)
class Grammar:
    """What an answer must match."""

    kind: Literal["json_schema", "gbnf", "regex", "choice"]
    """``choice``: one of the strings of a JSON array."""
    text: str
    field: str = "grammar"
    """The field of the request that brought it."""


class GrammarError(ValueError):
    """A grammar that cannot be used; the message says why, without the name of its field."""


@dataclass(frozen=True, slots=True)
class SamplerSettings:
    """One request's sampler chain; temperature 0 takes the likeliest token after penalties."""

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repeat_penalty: float
    presence_penalty: float
    frequency_penalty: float
    seed: int
    """0 .. 2**32 - 2 (llama.cpp draws its own for 2**32 - 1)."""
    typical_p: float = 1.0
    repeat_last_n: int = 64
    """Tokens looked back; -1: MAX_WINDOW, which none exceeds."""
    dry_multiplier: float = 0.0
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    dry_penalty_last_n: int = -1
    """As ``repeat_last_n``."""
    dry_sequence_breakers: tuple[str, ...] = ()
    xtc_probability: float = 0.0
    xtc_threshold: float = 0.1
    logit_bias: tuple[tuple[int, float], ...] = ()
    grammar: Grammar | None = None

    @property
    def has_repeat_penalty(self) -> bool:
        """repeat_penalty has an effect."""
        return self.repeat_penalty != 1 and self.repeat_last_n != 0

    @property
    def has_dry(self) -> bool:
        """DRY has an effect."""
        return self.dry_multiplier > 0 and self.dry_penalty_last_n != 0

    @property
    def has_xtc(self) -> bool:
        """XTC has an effect; above 0.5 no two tokens can be likely ones."""
        return self.xtc_probability > 0 and self.xtc_threshold <= 0.5  # noqa: PLR2004 - see there

    @property
    def changes_logits(self) -> bool:
        """Something is added to the model's own logits."""
        penalties = self.presence_penalty or self.frequency_penalty
        return bool(penalties or self.logit_bias or self.has_repeat_penalty or self.has_dry)

    @property
    def is_greedy(self) -> bool:
        """The likeliest token by the model alone is taken; a grammar may forbid it."""
        return self.temperature <= 0 and not self.changes_logits and not self.has_xtc


class SamplerChain(Protocol):
    """State of one request's sampling: random numbers and the tokens that penalties count."""

    def sample(self, row: int) -> int:
        """The next token from the logits of batch row ``row`` of the last decode; counts it."""

    @property
    def error(self) -> str:
        """Why the answer cannot go on; empty while it can. ``sample`` gave an end of generation."""
        return ""

    def close(self) -> None:
        """Free it; safe to call twice."""


class TokenChooser(SamplerChain, Protocol):
    """A chain that draws and counts apart, so that a draw can be rejected."""

    def draw(self, row: int, allowed: NDArray[np.intp] | None = None) -> int:
        """A token from the logits of batch row ``row``, one of ``allowed`` (None: any)."""

    def accept(self, token: int) -> None:
        """Count ``token`` as generated."""


class Drafter(Protocol):
    """A small model of the same vocabulary that guesses ahead; it keeps KV cells of its own.

    A slot's tokens only grow until ``forget``; guesses that were wrong are cut by the next call.
    """

    def propose(
        self, slots: Sequence[int], histories: Sequence[Sequence[int]], count: int
    ) -> list[list[int]]:
        """``count`` likeliest next tokens of each history, by ascending slot, after catching up.

        Fewer, or none, where the draft model's context ends.
        """

    def num_missing(self, slot: int, length: int) -> int:
        """Tokens of a history of ``length`` to be read before ``propose``, the last not counted."""

    def catch_up(self, slot: int, history: Sequence[int], max_tokens: int) -> int:
        """Read at most ``max_tokens`` of what is missing; how many were read."""

    def cut(self, slot: int, length: int) -> None:
        """Keep the first ``length`` tokens of ``slot``."""

    def forget(self, slot: int) -> None:
        """Drop all that ``slot`` holds."""


class Backend(EmbeddingInput, Protocol):
    """A loaded model and its KV cache.

    Positions are indices of tokens, where a row of an image is a token; what llama.cpp's are is the
    backend's business (``positions.py``).

    One thread owns it; only ``tokenize`` and what ``projector`` offers are thread-safe.
    """

    @property
    def info(self) -> BackendInfo:
        """Facts; valid after ``load``."""

    @property
    def batch(self) -> Batch:
        """The one batch to fill; capacity is RuntimeConfig.batch_tokens."""

    def load(self, config: RuntimeConfig) -> None:
        """Load and warm up. Raises BackendError with the reason and the way out."""

    @property
    def drafter(self) -> Drafter | None:
        """The draft model; None unless RuntimeConfig.speculation asks for one."""

    @property
    def shortlist(self) -> Shortlist | None:
        """The switch between whole logits and their likeliest few; None: always whole ones."""

    def tokenize(self, text: str, *, special: bool, add_bos: bool) -> list[int]:
        """Token ids; ``special`` parses control tokens in ``text``."""

    def decode(self) -> int:
        """Evaluate ``batch``: DECODE_OK, DECODE_NO_ROOM, or another code: the backend is broken.

        Raises BackendError for a batch that must not reach llama.cpp, which would abort.
        """

    def encode(self, tokens: Sequence[int]) -> None:
        """Encoder-decoder: have slot 0 look at this prompt from here on.

        Raises BackendError; at most ``batch.capacity`` tokens, and the batch is empty afterwards.
        """

    def embedding(self, slot: int) -> NDArray[np.float32]:
        """(width,) pooled vector of what ``slot`` held in the last decode, not normalised; a copy.

        For models that embed; all their rows are outputs.
        """

    def logits(self) -> NDArray[np.float32]:
        """(num_outputs, vocabulary), rows in batch order: a view, gone with the next decode.

        Without meaning while ``shortlist`` is on.
        """

    def prepare(self, settings: SamplerSettings) -> None:
        """Do now, on any thread, what takes long in ``sampler``; raises GrammarError."""

    def sampler(self, settings: SamplerSettings, prompt: Sequence[int]) -> SamplerChain:
        """A new chain in the order that ``chain.py`` documents, held to the grammar if any.

        repeat_penalty and DRY look back over the prompt's end too; presence and frequency, as
        OpenAI defines them, count generated tokens alone.
        """

    def seq_rm(self, slot: int, start: int = 0) -> bool:
        """Drop a sequence's KV cells from ``start`` on; False: only dropping all is possible."""

    def seq_pos_max(self, slot: int) -> int:
        """Highest position that ``slot`` holds; -1 when it is empty."""

    def seq_cp(self, source: int, target: int, start: int, stop: int) -> None:
        """Let ``target`` share the cells of positions start..stop-1: unified KV only, no copy."""

    @property
    def scratch(self) -> int | None:
        """A sequence id beyond the slots for moving blocks in and out; None with split KV."""

    @property
    def is_unified(self) -> bool:
        """Sequences share one pool of cells; False: each has its own (split KV)."""

    def reopen(self, *, unified: bool) -> None:
        """Give up all cells and have empty ones of the other layout, for RuntimeConfig.kv_auto.

        Samplers, adapters' choice and the draft model stay. Raises BackendError where there is no
        memory: then there are no cells until a ``reopen`` succeeds.
        """

    def state_size(self, slot: int) -> int:
        """Bytes that ``state_get`` would write for what ``slot`` holds now."""

    def state_get(self, slot: int, buffer: NDArray[np.uint8]) -> int:
        """Copy a sequence's state into ``buffer`` (uint8, contiguous); bytes written, 0: failed.

        For a model whose reuse is ``blocks`` the format is what ``kv.blob`` reads and writes.
        """

    def state_set(self, slot: int, state: NDArray[np.uint8]) -> bool:
        """Replace what ``slot`` holds by ``state``; False: refused, and the slot is empty then."""

    def use_adapter(self, name: str) -> None:
        """Compute every later batch with the LoRA adapter ``name``; empty: the model alone.

        It holds for the whole context, so a batch holds sequences of one adapter alone. Cells
        are what the adapter made of them: they fit no other. Raises BackendError for a name that
        RuntimeConfig.adapters lacks.
        """

    def on_abort(self, callback: Callable[[str], None]) -> None:
        """Have ``callback`` called with the last words of an abort, before the process dies."""

    def close(self) -> None:
        """Free everything; safe to call twice."""
