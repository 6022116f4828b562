"""Each generated token has its log probabilities, however its output travels."""

from __future__ import annotations

import asyncio

import pytest

from support.engine_builders import CoreDriver, runtime_config, text_request
from terrace_runtime.engine.request import RequestOutput, SamplingParams
from terrace_runtime.engine.stream import MAX_UNREAD, OutputStream

WANTED = SamplingParams(temperature=0, logprobs=1)


@pytest.mark.parametrize("stop", [(), ("th",), ("llama", "terrace")])
def test_every_token_has_one_entry_and_only_when_they_are_wanted(stop: tuple[str, ...]) -> None:
    driver = CoreDriver(runtime_config())
    driver.submit(
        text_request("with", sampling=WANTED, stop=stop, max_tokens=60),
        text_request("without", stop=stop, max_tokens=60),
    )
    found: dict[str, list[RequestOutput]] = {"with": [], "without": []}
    while driver.core.has_work:
        for output in driver.step():
            found[output.id].append(output)
    assert sum(output.num_tokens for output in found["with"]) > 1
    for output in found["with"]:
        assert len(output.logprobs) == output.num_tokens
        for entry in output.logprobs:
            assert entry.top[0].piece == entry.piece, "greedy takes the likeliest"
    assert not any(output.logprobs for output in found["without"])
    assert driver.answers["with"].text == driver.answers["without"].text


def test_a_reader_who_is_behind_gets_them_all() -> None:
    async def read() -> list[RequestOutput]:
        driver = CoreDriver(runtime_config(context_tokens=2048))
        driver.backend.eos_odds = 10**9
        stream = OutputStream("a", driver.core.abort)
        driver.submit(text_request("a", sampling=WANTED, max_tokens=MAX_UNREAD + 40))
        while driver.core.has_work:
            for output in driver.step():
                stream.put(output)
        return [output async for output in stream]

    (output,) = asyncio.run(read())
    assert output.num_tokens == len(output.logprobs) == MAX_UNREAD + 40
    text = "".join(entry.piece for entry in output.logprobs).encode("latin-1")
    assert text.decode("utf-8", "replace") == output.text
