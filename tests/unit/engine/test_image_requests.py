"""Requests with images on their way into the engine: socket, bounds, the encoder's thread."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
from typing import TYPE_CHECKING

import pytest

from support.engine_builders import answer_of, runtime_config
from support.pictures import image_request, picture, seeing_config
from terrace_runtime.backend.fake import FakeBackend
from terrace_runtime.backend.fake_projector import FakeProjector
from terrace_runtime.contract import HELD_PIXEL_BYTES
from terrace_runtime.engine.image_encoder import EncodeJob, EncodingThread
from terrace_runtime.engine.inprocess import InProcessEngine
from terrace_runtime.engine.messages import (
    Abort,
    FrameReader,
    Submit,
    decode_commands,
    encode_commands,
)
from terrace_runtime.engine.request import (
    EngineError,
    FinishReason,
    ImagePart,
    InvalidRequestError,
    QueueFullError,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from terrace_runtime.backend import BackendInfo
    from terrace_runtime.engine.messages import Command

RED = picture(1)


@pytest.fixture
async def engine() -> AsyncIterator[InProcessEngine]:
    made = InProcessEngine(seeing_config(), FakeBackend())
    await made.start()
    yield made
    await made.close()


def test_a_request_with_images_comes_through_the_socket_whole() -> None:
    request = image_request("a", "see", RED, "and", picture(2, 3, 5), "?")
    commands: list[Command] = [Abort("x"), Submit(request), Submit(image_request("b", RED, "?"))]
    data = encode_commands(commands)
    reader = FrameReader()
    *pixels, value = [one for byte in data for one in reader.feed(bytes((byte,)))]
    assert [len(one) for one in pixels] == [len(RED.rgb), 3 * 5 * 3, len(RED.rgb)]
    assert decode_commands(value, pixels) == commands


def test_pixels_are_not_shown_where_a_request_is() -> None:
    assert "rgb" not in repr(image_request("a", RED))


async def test_pixels_of_all_requests_together_are_bounded_while_they_are_open(
    engine: InProcessEngine,
) -> None:
    vast = ImagePart(bytes(HELD_PIXEL_BYTES // 2), 1, HELD_PIXEL_BYTES // 6)
    streams = [engine.submit(image_request(name, vast, "?")) for name in "ab"]
    with pytest.raises(QueueFullError, match="images of 2 requests under way fill the room"):
        engine.submit(image_request("c", RED, "?"))
    assert (await answer_of(engine, image_request("t", "no image"))).num_tokens > 0
    for stream in streams:
        with pytest.raises(InvalidRequestError, match="image 1 of the prompt cannot be used"):
            await anext(stream)
    assert (await answer_of(engine, image_request("d", RED, "?"))).num_tokens > 0


async def test_a_model_without_a_projector_refuses_images() -> None:
    engine = InProcessEngine(runtime_config(), FakeBackend())
    await engine.start()
    try:
        assert not engine.info.capabilities.takes_images
        with pytest.raises(InvalidRequestError, match=r"names no spec\.projector"):
            engine.submit(image_request("a", RED, "?"))
    finally:
        await engine.close()


async def test_a_projector_beside_a_model_that_is_no_decoder_is_refused_by_name() -> None:
    class Reader(FakeBackend):
        @property
        def info(self) -> BackendInfo:
            found = super().info
            able = found.capabilities.model_copy(update={"model_class": "encoder-decoder"})
            return dataclasses.replace(found, capabilities=able)

    engine = InProcessEngine(seeing_config(), Reader())
    with pytest.raises(EngineError, match=r"projector_path: .* leave spec\.projector out"):
        await engine.start()


async def test_others_are_answered_while_an_image_is_encoded() -> None:
    may_go, has_begun = threading.Event(), threading.Event()

    def wait() -> None:
        has_begun.set()
        may_go.wait()

    engine = InProcessEngine(seeing_config(), FakeBackend(images=FakeProjector(on_encode=wait)))
    await engine.start()
    try:
        stream = engine.submit(image_request("a", "see", RED, "?"))
        assert await asyncio.to_thread(has_begun.wait, 60)
        assert (await answer_of(engine, image_request("b", "no image"))).num_tokens > 0
        leaving = engine.submit(image_request("c", "see", picture(2), "?"))
        engine.abort("c")
        assert [one.finish async for one in leaving] == [FinishReason.ABORT]
        may_go.set()
        ends = [one.finish async for one in stream]
        assert ends[-1] in (FinishReason.STOP, FinishReason.LENGTH)
    finally:
        may_go.set()
        await engine.close()


def test_the_encoders_thread_makes_an_image_once_for_all_its_pieces_and_lets_go_of_it() -> None:
    eyes, done = FakeProjector(), threading.Semaphore(0)
    thread = EncodingThread(eyes, done.release)
    wide = picture(1, 96, 32)
    for chunk in (1, 3):
        thread.start(EncodeJob(b"key", wide, chunk, 6))
        assert done.acquire(timeout=60)
        found = thread.collect()
        assert found is not None
        assert found.rows is not None
        assert len(found.rows) == 6
        assert found.seconds >= 0
    assert thread.collect() is None
    thread.close()
    assert [one.closed for one in eyes.prepared] == [True]


def test_rows_that_are_not_as_many_as_were_planned_are_an_error() -> None:
    done = threading.Semaphore(0)
    thread = EncodingThread(FakeProjector(), done.release)
    thread.start(EncodeJob(b"key", RED, 1, 8))
    assert done.acquire(timeout=60)
    found = thread.collect()
    assert found is not None
    assert found.error == "9 rows came, 8 were planned"
    thread.close()
