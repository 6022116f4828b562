"""One generation on its way: its tokens, how far they are computed, and when it ends.

Owns: the state of a sequence and its rules of ending. Does not own: which tokens are computed next
(``batch_planner.py``) or KV cells (``backend``). Next: ``core.py`` moves sequences along.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from terrace_runtime.contract import SequenceReport
from terrace_runtime.engine.detokenizer import Detokenizer, PieceTable
from terrace_runtime.engine.image_spans import SequenceImages, whole, without_images
from terrace_runtime.engine.request import FinishReason, RequestOutput

if TYPE_CHECKING:
    from collections.abc import Sequence as Seq

    from terrace_runtime.backend import SamplerChain
    from terrace_runtime.engine.image_spans import ImageSpan
    from terrace_runtime.engine.request import Request, TokenLogprobs


class Sequence:
    """A request with its prompt as tokens; lives from admission to its one last output."""

    __slots__ = (
        "_num_new",
        "_text",
        "adapter",
        "arrival",
        "cached_tier",
        "deadline",
        "detokenizer",
        "draft",
        "encoded",
        "first_token_at",
        "id",
        "images",
        "is_aborted",
        "is_restoring",
        "is_resumed",
        "keys",
        "limit",
        "logprobs",
        "num_cached",
        "num_computed",
        "num_prompt",
        "order",
        "priority",
        "queued_s",
        "request",
        "rests_until",
        "root",
        "sampler",
        "slot",
        "started",
        "stop_at",
        "tenant",
        "text",
        "tokens",
        "waits_for",
        "wants_logprobs",
    )

    def __init__(
        self,
        request: Request,
        prompt: list[int],
        max_tokens: int,
        table: PieceTable,
        spans: Seq[ImageSpan] = (),
    ) -> None:
        """``max_tokens`` is already clipped to what the context leaves.

        ``spans`` are the images of ``prompt``, which has pseudo tokens in their places.
        """
        self.request = request
        self.id, self.tenant, self.priority = request.id, request.tenant, request.priority
        self.tokens = prompt
        """Prompt and answer so far; the engine's own list."""
        self.images = SequenceImages(spans)
        self.text = without_images(prompt, spans) if spans else prompt
        """The same without images: what samplers and guesses look back over."""
        self.num_prompt = len(prompt)
        self.limit = len(prompt) + max_tokens
        """Length at which the answer is cut."""
        self.num_computed = 0
        """Tokens whose KV cells exist."""
        self.slot: int | None = None
        """llama.cpp's sequence id while it runs."""
        self.adapter = request.adapter
        self.root = b""
        """Root of its block keys: model, settings, adapter and tenant."""
        self.keys: list[bytes] = []
        """Keys of the full blocks of its tokens, as far as they were needed."""
        self.num_cached = 0
        """Prompt tokens that were found in a tier when it was placed first."""
        self.cached_tier = ""
        self.queued_s = 0.0
        """From arrival to the slot."""
        self.is_restoring = False
        """It has a slot, and its cells are on their way there."""
        self.is_resumed = False
        """It lost a slot with cells of its own: what is found from now on, it had itself before."""
        self.waits_for: tuple[Sequence, int] | None = None
        """It waits until this one has computed so many tokens, which are its own first ones."""
        self.stop_at = 0
        """Its next chunk ends here at the latest, for a checkpoint; 0: no bound."""
        self.draft: list[int] = []
        """Tokens guessed for this step."""
        self.encoded: list[int] = []
        """Encoder-decoder: the prompt, whose answer ``tokens`` is from the start token on."""
        self.sampler: SamplerChain | None = None
        self.detokenizer = Detokenizer(table, request.stop)
        self.arrival = self.deadline = self.first_token_at = self.rests_until = 0.0
        """Seconds on the engine's clock; until the last one it needs no slot, for its reader is
        busy (``parking.py``)."""
        self.order = 0
        """Position among all arrivals."""
        self.is_aborted = False
        self.started = False
        """An output was handed out."""
        self.wants_logprobs = request.sampling.logprobs is not None
        self.logprobs: list[TokenLogprobs] = []
        """Of the tokens since the last output."""
        self._text, self._num_new = "", 0

    @property
    def num_pending(self) -> int:
        """Tokens known but not computed; 1 while it decodes, more while its prompt is computed."""
        return len(self.tokens) - self.num_computed

    @property
    def image(self) -> ImageSpan | None:
        """The image piece at its next position, begun or not."""
        span = self.images.following(self.num_computed)
        return span if span is not None and span.start <= self.num_computed else None

    @property
    def is_idle(self) -> bool:
        """It has a slot, and its cells or the rows of an image are on their way there."""
        return self.is_restoring or self.images.awaits_rows

    @property
    def num_text_ahead(self) -> int:
        """Pending tokens before the next image piece."""
        span = self.images.following(self.num_computed)
        return self.num_pending if span is None else span.start - self.num_computed

    def whole(self, count: int) -> int:
        """The longest of its prefixes of at most ``count`` tokens that ends in no image."""
        return whole(self.images.spans, count)

    @property
    def error(self) -> str:
        """Why its sampler cannot go on; empty while it can."""
        return "" if self.sampler is None else self.sampler.error

    @property
    def num_generated(self) -> int:
        """Tokens of the answer so far."""
        return len(self.tokens) - self.num_prompt

    def report(self, now: float) -> SequenceReport:
        """Numbers alone: a report shows nobody's text or name."""
        return SequenceReport(
            slot=-1 if self.slot is None else self.slot,
            prompt_tokens=self.num_prompt,
            computed_tokens=self.num_computed,
            generated_tokens=self.num_generated,
            cached_tokens=self.num_cached,
            age_s=round(now - self.arrival, 3),
            adapter=self.adapter,
        )

    def append(self, token: int, *, is_eog: bool) -> FinishReason | None:
        """Take the sampled ``token``; says whether it is the last one."""
        self.tokens.append(token)
        if self.images.spans:
            self.text.append(token)
        self._text += self.detokenizer.add(token)
        self._num_new += 1
        if self.detokenizer.stopped or (is_eog and not self.request.sampling.ignore_eos):
            return FinishReason.STOP
        return FinishReason.LENGTH if len(self.tokens) >= self.limit else None

    def output(self) -> RequestOutput:
        """What the tokens since the last output brought."""
        text, count = self._text, self._num_new
        self._text, self._num_new = "", 0
        if self.started and not self.wants_logprobs:
            return RequestOutput(self.id, text, count)
        self.started = True
        return self._counted(text, count)

    def end(self, finish: FinishReason, *, error: str = "") -> RequestOutput:
        """The one last output, with all text that was held back."""
        text, count = self._text + self.detokenizer.finish(), self._num_new
        if self.detokenizer.stopped and finish is FinishReason.LENGTH:
            finish = FinishReason.STOP
        return replace(self._counted(text, count), finish=finish, error=error)

    def _counted(self, text: str, count: int) -> RequestOutput:
        logprobs = tuple(self.logprobs)
        self.logprobs.clear()
        return RequestOutput(
            self.id,
            text,
            count,
            len(self.encoded) or self.num_prompt,
            self.num_cached,
            cached_tier=self.cached_tier,
            logprobs=logprobs,
            queued_s=self.queued_s,
        )
