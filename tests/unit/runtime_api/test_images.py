"""Images in messages: what is taken, what is refused and how, over the engine's fake backend."""

from __future__ import annotations

import asyncio
import io
import random
import struct
import zlib
from functools import partial
from typing import TYPE_CHECKING, Any

import openai
import orjson
import pytest
from PIL import Image

from support.engine_builders import runtime_config
from support.pictures import data_url, file_of, picture, seeing_config
from support.runtime_http import LONG_S, ScriptedEngine, raw, running
from terrace_runtime.api.chat_template import TemplateRenderer
from terrace_runtime.api.content_parts import ImageField
from terrace_runtime.api.errors import ApiError
from terrace_runtime.api.image_child import decode
from terrace_runtime.api.image_decoder import ImageDecoder
from terrace_runtime.api.middleware import body_bounds
from terrace_runtime.backend.fake import FakeBackend
from terrace_runtime.backend.fake_projector import FakeProjector
from terrace_runtime.contract import IMAGE_SIDE, MAX_IMAGE_PIXELS
from terrace_runtime.engine.inprocess import InProcessEngine

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from terrace_runtime.contract import RuntimeConfig

CONFIG = seeing_config(context_tokens=512, kv={"block_tokens": 8, "host_bytes": 1 << 20})
RED = data_url(file_of(picture(1)))
BLUE = data_url(file_of(picture(2)))


def image(url: str, **more: Any) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url, **more}}


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def body(*parts: dict[str, Any], **more: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": list(parts)}]
    return {"model": "chat", "messages": messages, "temperature": 0, "max_tokens": 20, **more}


class Pair:
    """A replica over the fake backend, and a client of it."""

    def __init__(self, client: openai.AsyncOpenAI, port: int) -> None:
        self.client = client
        self.port = port

    async def ask(self, *parts: dict[str, Any], **more: Any) -> Any:
        return await self.client.chat.completions.create(**body(*parts, **more))

    async def refusal(self, *parts: dict[str, Any], **more: Any) -> openai.BadRequestError:
        with pytest.raises(openai.BadRequestError) as caught:
            await self.ask(*parts, **more)
        return caught.value


@pytest.fixture
async def pair() -> AsyncIterator[Pair]:
    async with serving(CONFIG) as found:
        yield found


class serving:  # noqa: N801 - reads as a function
    """``async with``: a Pair on ``config``."""

    def __init__(self, config: RuntimeConfig, **backend: Any) -> None:
        engine = InProcessEngine(config, FakeBackend(**backend))
        renderer = partial(TemplateRenderer, render_s=LONG_S)
        self._running = running(engine, config, renderer=renderer)

    async def __aenter__(self) -> Pair:
        site = await self._running.__aenter__()
        self._client = site.client()
        return Pair(self._client, site.port)

    async def __aexit__(self, *_: object) -> None:
        await self._client.close()
        await self._running.__aexit__(None, None, None)


async def test_an_answer_depends_on_the_image_and_a_second_look_is_cached(pair: Pair) -> None:
    first = await pair.ask(text("what is it?"), image(RED))
    other = await pair.ask(text("what is it?"), image(BLUE))
    again = await pair.ask(text("what is it?"), image(RED))
    assert first.choices[0].message.content != other.choices[0].message.content
    assert first.choices[0].message.content == again.choices[0].message.content
    rows = 9
    assert first.usage.prompt_tokens == again.usage.prompt_tokens > rows
    assert again.usage.prompt_tokens_details.cached_tokens >= rows


async def test_images_stream_and_come_several_at_once(pair: Pair) -> None:
    parts = text("compare"), image(RED), text("with"), image(BLUE), text("please")
    whole = await pair.ask(*parts)
    stream = await pair.ask(*parts, stream=True)
    pieces = [chunk.choices[0].delta.content or "" async for chunk in stream]
    assert "".join(pieces) == whole.choices[0].message.content


async def test_the_same_pixels_in_any_format_give_the_same_answer(pair: Pair) -> None:
    pixels = picture(3)
    urls = [
        data_url(file_of(pixels)),
        data_url(file_of(pixels, "WEBP", lossless=True), "image/webp"),
        data_url(file_of(pixels), "image/jpeg"),  # The bytes count, not the word before them.
    ]
    answers = {(await pair.ask(image(url))).choices[0].message.content for url in urls}
    assert len(answers) == 1


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("https://example.com/x.png", "https URLs are not fetched: send the image itself"),
        ("http://127.0.0.1/x.png", "http URLs are not fetched"),
        ("file:///etc/passwd", "it is no data URL"),
        ("data:image/png,abc", "the data must be base64"),
        ("data:image/svg+xml;base64,AAAA", "'image/svg+xml'; PNG, JPEG, WebP and GIF are taken"),
        ("data:text/html;base64,AAAA", "PNG, JPEG, WebP and GIF are taken"),
        ("data:image/png;base64,", "the image is empty"),
        ("data:image/png;base64,***", "not valid base64"),
        ("data:image/png;base64,AAAA", "it is no PNG, JPEG, WebP or GIF file"),
        (data_url(file_of(picture(1))[:-200]), "it cannot be decoded"),
    ],
)
async def test_what_is_no_image_is_refused_by_name(pair: Pair, url: str, words: str) -> None:
    error = await pair.refusal(text("look"), image(url))
    assert words in str(error)
    assert error.param == "messages[0].content[1].image_url.url"
    assert error.code == "bad_image"


async def test_an_image_of_too_many_pixels_is_refused_before_it_is_decoded(pair: Pair) -> None:
    error = await pair.refusal(image(data_url(vast_png(40_000, 40_000))))
    assert f"1600000000 pixels, {MAX_IMAGE_PIXELS} are the most: scale it down" in str(error)


def vast_png(width: int, height: int) -> bytes:
    """A file of a few bytes that says it is vast."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = chunk(b"IDAT", zlib.compress(b"\0" * 1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + data + chunk(b"IEND", b"")


async def test_too_many_images_are_refused(pair: Pair) -> None:
    error = await pair.refusal(*[image(RED)] * 17)
    assert "hold 17 images, a request may hold 16" in str(error)
    assert (error.param, error.code) == ("messages", "too_many_images")


async def test_an_image_too_large_is_refused(pair: Pair) -> None:
    url = "data:image/png;base64," + "A" * (14 * 2**20)
    error = await pair.refusal(image(url))
    assert "10485760 are the most: scale it down or compress it" in str(error)


async def test_pixels_of_all_images_together_are_bounded(pair: Pair) -> None:
    url = data_url(png(Image.new("RGB", (2048, 2048))))
    error = await pair.refusal(*[image(url)] * 5)
    assert "20971520 pixels, 16777216 are the most" in str(error)
    assert error.param == "messages[0].content[4].image_url.url"
    error = await pair.refusal(*[image(url)] * 3, n=2)
    assert "2 times for n" in str(error)


async def test_an_image_without_its_url_is_refused_by_name(pair: Pair) -> None:
    error = await pair.refusal({"type": "image_url"})
    assert error.param == "messages[0].content[0].image_url"


async def test_a_model_without_a_projector_says_what_is_missing() -> None:
    async with serving(runtime_config()) as blind:
        error = await blind.refusal(text("look"), image(RED))
        assert "this model takes no images; its InferenceModel names no spec.projector" in str(
            error
        )
        assert (error.param, error.code) == (
            "messages[0].content[1].image_url.url",
            "images_not_supported",
        )
        models = orjson.loads((await raw(blind.port, "GET", "/v1/models")).body)
        assert models["data"][0]["input_modalities"] == ["text"]


async def test_models_and_the_report_tell_that_images_are_taken(pair: Pair) -> None:
    models = orjson.loads((await raw(pair.port, "GET", "/v1/models")).body)
    assert models["data"][0]["input_modalities"] == ["text", "image"]
    report = orjson.loads((await raw(pair.port, "GET", "/v1/runtime")).body)
    assert report["capabilities"]["takes_images"] is True
    assert report["memory"]["projector_bytes"] == 0


async def test_metrics_tell_what_became_of_images(pair: Pair) -> None:
    await pair.ask(text("what is it?"), image(RED))
    await pair.ask(text("and behind another beginning?"), image(RED))

    async def lines() -> list[str]:
        return (await raw(pair.port, "GET", "/metrics")).body.decode().splitlines()

    kept = 'terrace_runtime_images_total{outcome="kept"} 1.0'
    async with asyncio.timeout(LONG_S):
        while kept not in await lines():  # noqa: ASYNC110 - reports come now and then
            await asyncio.sleep(0.05)
    found = await lines()
    assert 'terrace_runtime_images_total{outcome="encoded"} 1.0' in found
    assert 'terrace_runtime_images_total{outcome="failed"} 0.0' in found
    assert 'terrace_runtime_image_encode_seconds_bucket{le="+Inf"} 1.0' in found
    assert "terrace_runtime_image_encode_seconds_count 1.0" in found


async def test_an_image_that_cannot_be_encoded_fails_its_request_alone() -> None:
    def fails() -> None:
        raise RuntimeError("out of luck")

    async with serving(CONFIG, images=FakeProjector(on_encode=fails)) as found:
        plain = asyncio.create_task(found.ask(text("no image")))
        with pytest.raises(openai.InternalServerError, match="image 1 cannot be encoded"):
            await found.ask(image(RED))
        assert (await plain).choices[0].message.content


# Decoding -----------------------------------------------------------------------------------------


def png(pixels: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    pixels.save(buffer, kind, **options)
    return buffer.getvalue()


def decoded(file: bytes, side: int = IMAGE_SIDE) -> Image.Image:
    return decode(file, side, MAX_IMAGE_PIXELS)


def test_an_image_is_turned_upright() -> None:
    upright = Image.new("RGB", (20, 10), "red")
    exif = Image.Exif()
    exif[0x0112] = 6
    assert decoded(png(upright, "JPEG", exif=exif)).size == (10, 20)


def test_white_shines_through_what_is_transparent() -> None:
    clear = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    assert decoded(png(clear)).getpixel((0, 0)) == (255, 255, 255)
    palette = Image.new("P", (4, 4), 0)
    assert decoded(png(palette, transparency=0)).getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize(
    ("mode", "color", "expected"),
    [
        ("L", 128, (128, 128, 128)),
        ("1", 1, (255, 255, 255)),
        ("I;16", 32_768, (128, 128, 128)),
        ("P", 0, (0, 0, 0)),
    ],
)
def test_every_mode_becomes_rgb(mode: str, color: int, expected: tuple[int, int, int]) -> None:
    found = decoded(png(Image.new(mode, (4, 4), color))).getpixel((1, 1))
    assert isinstance(found, tuple)
    assert max(abs(a - b) for a, b in zip(found, expected, strict=True)) <= 1


def test_of_an_animation_the_first_frame_is_taken() -> None:
    frames = [Image.new("P", (8, 8), index) for index in range(3)]
    frames[0].putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    file = png(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert decoded(file).getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_large_image_is_scaled_to_fit(kind: str) -> None:
    wide = Image.new("RGB", (3000, 1500), "blue")
    assert decoded(png(wide, kind)).size == (2048, 1024)
    assert decoded(png(wide, kind), 512).size == (512, 256)
    assert decoded(png(Image.new("RGB", (30, 20)), kind), 512).size == (30, 20)


def field_of(pixels: Image.Image, **more: Any) -> ImageField:
    is_small = more.get("is_small", False)
    return ImageField(data_url(png(pixels)), is_small=is_small, where="field")


async def test_detail_low_is_a_small_image_and_the_child_is_used_again() -> None:
    decoder = ImageDecoder()
    try:
        large = Image.new("RGB", (1000, 500), "green")
        (whole,) = await decoder.decode([field_of(large)])
        child = decoder._child.process
        (small,) = await decoder.decode([field_of(large, is_small=True)])
        assert (whole.width, whole.height) == (1000, 500)
        assert (small.width, small.height) == (512, 256)
        assert len(small.rgb) == 512 * 256 * 3
        assert small.rgb[:3] == bytes((0, 128, 0))
        assert decoder._child.process is child
    finally:
        await decoder.close()


async def test_a_child_that_takes_too_long_is_killed_and_replaced() -> None:
    decoder = ImageDecoder(decode_s=0)
    try:
        dot = field_of(Image.new("RGB", (4, 4)))
        await decoder.decode([dot])
        first = decoder._child.process
        assert first is not None
        with pytest.raises(ApiError, match="it took longer than 0 s to decode"):
            await decoder.decode([field_of(Image.new("RGB", (2000, 2000)))])
        assert await first.wait() != 0
        (part,) = await decoder.decode([dot])
        assert part.width == 4
    finally:
        await decoder.close()


async def test_images_of_many_requests_are_decoded_one_after_the_other() -> None:
    decoder = ImageDecoder()
    try:
        fields = [field_of(Image.new("RGB", (n + 1, 4))) for n in range(12)]
        found = await asyncio.gather(*(decoder.decode([one]) for one in fields))
        assert [part.width for (part,) in found] == list(range(1, 13))
    finally:
        await decoder.close()


async def test_broken_files_are_pixels_or_refusals_and_never_more() -> None:
    chance = random.Random(7)
    pixels = picture(4, 40, 30)
    files = [
        file_of(pixels),
        file_of(pixels, "JPEG"),
        file_of(pixels, "WEBP"),
        file_of(pixels, "GIF"),
    ]
    decoder = ImageDecoder()
    refused = 0
    answers: set[tuple[int, str | None]] = set()
    try:
        for number in range(240):
            file = bytearray(files[number % 4])
            for _ in range(chance.randint(1, 12)):
                file[chance.randrange(len(file) if number % 3 else 64)] = chance.randrange(256)
            broken = ImageField(data_url(bytes(file)), is_small=False, where="field")
            try:
                (part,) = await decoder.decode([broken])
            except ApiError as error:
                answers.add((error.status, error.code))
                refused += 1
            else:
                assert len(part.rgb) == part.width * part.height * 3
                assert max(part.width, part.height) <= IMAGE_SIDE
        (whole,) = await decoder.decode(
            [ImageField(data_url(files[0]), is_small=False, where="field")]
        )
        assert whole == pixels
    finally:
        await decoder.close()
    assert refused > 20
    assert answers == {(400, "bad_image")}


# Bodies -------------------------------------------------------------------------------------------


def test_bodies_may_be_larger_where_images_are_taken() -> None:
    one, together = body_bounds(8192, takes_images=True)
    plain, _ = body_bounds(8192)
    assert one - plain == 16 * 2**20 * 4 // 3 + 2**20
    assert together == 2 * one
    assert body_bounds(1_048_576, takes_images=True)[0] <= 32 * 2**20


async def test_a_large_body_is_refused_where_none_are_taken() -> None:
    async with running(ScriptedEngine()) as site:
        reply = await raw(site.port, "POST", "/v1/chat/completions", b"x" * 2**20)
        assert reply.status == 413
        assert b"images are not taken" in reply.body
