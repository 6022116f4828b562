"""From the parts of a prompt to tokens, where some of them are images.

Owns: tokens of text in the prompt's order, pseudo tokens and spans of images, and what of an image
is refused. Does not own: the length of a prompt (``intake.py``), encoding (``image_encoder.py``).
On the intake's thread. Next: ``intake.py`` makes a Sequence of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from terrace_runtime.backend.projector import ProjectorError
from terrace_runtime.engine.image_spans import ImageSpan, image_digest, piece_key, pseudo_tokens
from terrace_runtime.engine.request import ImagePart, InvalidRequestError

if TYPE_CHECKING:
    from collections.abc import Callable

    from terrace_runtime.backend import Backend
    from terrace_runtime.backend.projector import MediaChunk
    from terrace_runtime.contract import RuntimeConfig
    from terrace_runtime.engine.request import Request


class PromptTokens:
    """A prompt while it grows part by part."""

    def __init__(self, backend: Backend, config: RuntimeConfig) -> None:
        self.tokens: list[int] = []
        self.spans: list[ImageSpan] = []
        self._backend = backend
        self._config = config
        self._num_images = 0

    def add_all(self, request: Request, check_length: Callable[[int], None]) -> None:
        """Take all parts; ``check_length`` is asked after each image, before the next costs time.

        Raises InvalidRequestError, and what ``check_length`` raises.
        """
        for index, part in enumerate(request.prompt):
            if isinstance(part, ImagePart):
                self._add_image(part)
                check_length(len(self.tokens))
            else:
                add_bos = request.add_bos and index == 0
                self.tokens += self._backend.tokenize(
                    part.text, special=part.special, add_bos=add_bos
                )
        if self.spans and self.spans[-1].stop == len(self.tokens):
            message = "the prompt ends with an image: some text must come after it"
            raise InvalidRequestError(message, "prompt")

    def _add_image(self, image: ImagePart) -> None:
        digest = image_digest(image, self._config.projector_digest)
        for index, chunk in enumerate(self._chunks(image)):
            if not chunk.rows:
                self.tokens += chunk.tokens
                continue
            key, start = piece_key(digest, index), len(self.tokens)
            self.tokens += pseudo_tokens(key, chunk.rows)
            self.spans.append(
                ImageSpan(
                    start,
                    len(self.tokens),
                    key,
                    self._num_images,
                    index,
                    is_causal=chunk.is_causal,
                    grid=chunk.grid,
                )
            )
        self._num_images += 1

    def _chunks(self, image: ImagePart) -> tuple[MediaChunk, ...]:
        projector = self._backend.projector
        assert projector is not None, "check_class refuses images of a model without one"
        try:
            prepared = projector.prepare(image.rgb, image.width, image.height)
        except ProjectorError as error:
            message = f"image {self._num_images + 1} of the prompt cannot be used: {error}"
            raise InvalidRequestError(message, "prompt") from None
        try:
            return prepared.chunks
        finally:
            # Scaled pixels take many times the image's own, and requests wait: made again later.
            prepared.close()
