"""Whatever images a prompt holds: where prefixes may end, and the same answers in any company."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

from hypothesis import given, settings
from hypothesis import strategies as st

from support.engine_builders import CoreDriver
from support.pictures import image_request, picture, seeing_config
from terrace_runtime.backend.fake import FakeBackend
from terrace_runtime.backend.fake_projector import FakeProjector
from terrace_runtime.contract import KvTiers
from terrace_runtime.engine.image_spans import (
    FIRST_PSEUDO_TOKEN,
    ImageSpan,
    pseudo_tokens,
    span_from,
    whole,
    whole_blocks,
    without_images,
)
from terrace_runtime.kv.keys import block_keys

if TYPE_CHECKING:
    from terrace_runtime.engine.request import ImagePart, Request


@st.composite
def prompts(draw: st.DrawFn) -> tuple[list[int], tuple[ImageSpan, ...]]:
    """Tokens with pieces of four different images among them."""
    tokens: list[int] = []
    spans = []
    pieces = st.tuples(st.integers(0, 3), st.integers(1, 40))
    texts = st.lists(st.integers(0, 99), max_size=12)
    for part in draw(st.lists(st.one_of(pieces, texts), max_size=8)):
        if isinstance(part, list):
            tokens += part
            continue
        image, rows = part
        key, start = bytes([image, rows]), len(tokens)
        tokens += pseudo_tokens(key, rows)
        spans.append(ImageSpan(start, len(tokens), key, image, 1))
    return tokens, tuple(spans)


@given(prompts(), st.integers(0, 400), st.integers(1, 33))
def test_a_whole_prefix_is_the_longest_that_ends_in_no_piece(
    prompt: tuple[list[int], tuple[ImageSpan, ...]], count: int, block: int
) -> None:
    tokens, spans = prompt
    count = min(count, len(tokens))
    good = [n for n in range(count + 1) if not any(s.start < n < s.stop for s in spans)]
    assert whole(spans, count) == good[-1]
    assert whole_blocks(spans, count, block) == [n for n in good if n % block == 0][-1]


@given(prompts(), st.integers(0, 400))
def test_the_piece_from_a_position_on_is_the_first_that_is_not_over(
    prompt: tuple[list[int], tuple[ImageSpan, ...]], position: int
) -> None:
    _, spans = prompt
    assert span_from(spans, position) == next((s for s in spans if s.stop > position), None)


@given(prompts())
def test_pseudo_tokens_are_beyond_every_vocabulary_and_inside_of_int32(
    prompt: tuple[list[int], tuple[ImageSpan, ...]],
) -> None:
    tokens, spans = prompt
    for span in spans:
        piece = tokens[span.start : span.stop]
        assert all(FIRST_PSEUDO_TOKEN <= token < 2**31 for token in piece)
    assert without_images(tokens, spans) == [t for t in tokens if t < FIRST_PSEUDO_TOKEN]


@given(prompts(), prompts())
def test_prompts_share_keys_as_far_as_their_texts_and_images_are_the_same(
    one: tuple[list[int], tuple[ImageSpan, ...]], other: tuple[list[int], tuple[ImageSpan, ...]]
) -> None:
    def content(prompt: tuple[list[int], tuple[ImageSpan, ...]]) -> list[object]:
        tokens, spans = prompt
        found: list[object] = list(tokens)
        for span in spans:
            names = [(span.key, row) for row in range(span.stop - span.start)]
            found[span.start : span.stop] = names
        return found

    ours, theirs = content(one), content(other)
    pairs = zip(block_keys(b"root", one[0], 8), block_keys(b"root", other[0], 8), strict=False)
    for index, (a, b) in enumerate(pairs):
        stop = (index + 1) * 8
        assert (a == b) == (ours[:stop] == theirs[:stop])


def random_requests(seed: int) -> list[Request]:
    chance = random.Random(seed)
    requests = []
    for index in range(chance.randint(1, 7)):
        parts: list[str | ImagePart] = [
            chance.choice(["", "look: ", "a long common beginning of it all "])
        ]
        for _ in range(chance.randint(0, 3)):
            shape = chance.choice([(16, 16), (48, 48), (96, 32), (64, 48)])
            parts += [picture(chance.randint(0, 2), *shape), chance.choice(["", "and", "x" * 20])]
        parts.append(chance.choice(["?", "what is it?"]))
        values = {
            "max_tokens": chance.choice([1, 5, 30]),
            "tenant": chance.choice(["", "a"]),
            "priority": chance.choice([0, 1]),
        }
        requests.append(image_request(str(index), *parts, **values))
    return requests


@settings(deadline=None, max_examples=60)
@given(
    st.integers(0, 10**6),
    st.sampled_from([True, False]),
    st.sampled_from([True, False]),
    st.sampled_from(["blocks", "checkpoints", "none"]),
    st.sampled_from([None, 200]),
)
def test_every_request_gets_the_answer_that_it_gets_alone(
    seed: int, is_causal: object, unified: object, reuse: Any, cells: int | None
) -> None:
    kv = KvTiers(block_tokens=8, host_bytes=4096 if seed % 2 else 1 << 20, checkpoint_tokens=16)
    config = seeing_config(kv=kv, kv_unified=bool(unified), parallel=3, context_tokens=192)

    def driver(num_cells: int | None) -> CoreDriver:
        eyes = FakeProjector(is_causal=bool(is_causal))
        return CoreDriver(config, FakeBackend(images=eyes, reuse=reuse, kv_cells=num_cells))

    chance = random.Random(seed)
    together = driver(cells)
    for request in random_requests(seed):
        together.submit(request)
        for _ in range(chance.randint(0, 6)):
            if together.core.has_work:
                together.step()
    together.run()
    for request in random_requests(seed):
        lonely = driver(None)
        lonely.submit(request)
        assert together.answers[request.id].facts == lonely.run()[request.id].facts
    eyes = together.backend.projector
    assert eyes is not None
    assert sum(not made.closed for made in eyes.prepared) <= 1
