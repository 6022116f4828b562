"""One generation on its way: its tokens, how far they are computed, and when it ends.

Owns: the state of a sequence and its rules of ending. Does not own: which tokens are computed next
(``batch_planner.py``) or KV cells (``backend``). Next: ``core.py`` moves sequences along.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from terrace_runtime.engine.detokenizer import Detokenizer, PieceTable
from terrace_runtime.engine.request import FinishReason, RequestOutput

if TYPE_CHECKING:
    from terrace_runtime.backend import SamplerChain
    from terrace_runtime.engine.request import Request


class Sequence:
    """A request with its prompt as tokens; lives from admission to its one last output."""

    __slots__ = (
        "arrival",
        "detokenizer",
        "id",
        "is_aborted",
        "limit",
        "num_computed",
        "num_prompt",
        "order",
        "priority",
        "request",
        "sampler",
        "slot",
        "started",
        "tenant",
        "tokens",
    )

    def __init__(
        self, request: Request, prompt: list[int], max_tokens: int, table: PieceTable
    ) -> None:
        """``max_tokens`` is already clipped to what the context leaves."""
        self.request = request
        self.id = request.id
        self.tenant = request.tenant
        self.priority = request.priority
        self.tokens = prompt
        """Prompt and answer so far; the engine's own list."""
        self.num_prompt = len(prompt)
        self.limit = len(prompt) + max_tokens
        """Length at which the answer is cut."""
        self.num_computed = 0
        """Tokens whose KV cells exist."""
        self.slot: int | None = None
        """llama.cpp's sequence id while it runs."""
        self.sampler: SamplerChain | None = None
        self.detokenizer = Detokenizer(table, request.stop)
        self.arrival = 0.0
        """Seconds on the engine's clock."""
        self.order = 0
        """Position among all arrivals."""
        self.is_aborted = False
        self.started = False
        """An output was handed out."""

    @property
    def num_pending(self) -> int:
        """Tokens known but not computed; 1 while it decodes, more while its prompt is computed."""
        return len(self.tokens) - self.num_computed

    @property
    def num_generated(self) -> int:
        """Tokens of the answer so far."""
        return len(self.tokens) - self.num_prompt

    def append(self, token: int, *, is_eog: bool) -> RequestOutput:
        """Take the sampled ``token``; the output ends the sequence when ``finish`` is set."""
        self.tokens.append(token)
        text = self.detokenizer.add(token)
        finish: FinishReason | None = None
        if self.detokenizer.stopped or (is_eog and not self.request.sampling.ignore_eos):
            finish = FinishReason.STOP
        elif len(self.tokens) >= self.limit:
            finish = FinishReason.LENGTH
        if finish is not None:
            return self.end(finish, text=text, num_tokens=1)
        if self.started:
            return RequestOutput(self.id, text, 1)
        self.started = True
        return RequestOutput(self.id, text, 1, self.num_prompt)

    def end(
        self, finish: FinishReason, *, text: str = "", num_tokens: int = 0, error: str = ""
    ) -> RequestOutput:
        """The one last output, with all text that was held back."""
        text += self.detokenizer.finish()
        if self.detokenizer.stopped and finish is FinishReason.LENGTH:
            finish = FinishReason.STOP
        return RequestOutput(self.id, text, num_tokens, self.num_prompt, 0, finish, error)
