"""fetch, inspect and prune as processes: what they print, what they leave, and being killed."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from typing import TYPE_CHECKING, Any, Final

from aiohttp import web

from support.fetching import LOOPBACK, leftovers, sha
from support.file_server import status
from support.origins import Cdn, Hub, cut
from support.split_files import split_model
from terrace_runtime.contract import (
    EXIT_BAD_CONFIG,
    FetchOutcome,
    FetchProgress,
    ModelFacts,
    PruneOutcome,
)

if TYPE_CHECKING:
    from pathlib import Path

HALF = 100_000
LARGE: Final[dict[str, Any]] = {"layers": 4, "embedding": 512, "vocabulary": 512}
TOKEN = "hf_very-secret-token"


async def start(pod: Path, *arguments: str, **environment: str) -> asyncio.subprocess.Process:
    (pod / "dev").mkdir(exist_ok=True)
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "terrace_runtime",
        *arguments,
        env={**os.environ, "TERRACE_POD_ROOT": str(pod), **environment},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


async def run(pod: Path, *arguments: str, **environment: str) -> tuple[int, str, str]:
    child = await start(pod, *arguments, **environment)
    out, err = await asyncio.wait_for(child.communicate(), 60)
    assert child.returncode is not None
    return child.returncode, out.decode(), err.decode()


def spec(uri: str, **more: object) -> str:
    return json.dumps({"uri": uri, "allowed_networks": LOOPBACK, **more})


def last_words(pod: Path) -> str:
    return (pod / "dev" / "termination-log").read_text()


async def test_a_fetch_that_is_killed_goes_on_with_what_it_had(pod: Path, tmp_path: Path) -> None:
    parts = {path.name: path.read_bytes() for path in split_model(tmp_path / "m", 3, **LARGE)}
    second = parts["m-00002-of-00003.gguf"]
    arrived, never = asyncio.Event(), asyncio.Event()

    async def stall(request: web.Request) -> web.StreamResponse:
        """Half of the file, and then nothing for ever."""
        response = web.StreamResponse(
            headers={"ETag": f'"{sha(second)[:16]}"', "Content-Length": str(len(second))}
        )
        await response.prepare(request)
        await response.write(second[:HALF])
        arrived.set()
        await never.wait()
        return response

    first = parts["m-00001-of-00003.gguf"]
    async with Hub(files=parts).running() as hub:
        environment = spec("hf://owner/repo", hf_endpoint=hub.url)
        # The repository's files, then the first two parts.
        hub.faults = [hub.answer, hub.answer, stall]
        child = await start(pod, "fetch", TERRACE_FETCH=environment)
        await asyncio.wait_for(arrived.wait(), 60)
        assert child.stdout is not None
        done = 0
        while done < len(first) + HALF:
            done = FetchProgress.model_validate_json(await child.stdout.readline()).done_bytes
        child.send_signal(signal.SIGKILL)
        await child.communicate()
        asked = len(hub.requests)
        code, _, err = await run(pod, "fetch", TERRACE_FETCH=environment)
        assert (code, err) == (0, "")
        again = [(r.path[-21:], r.headers.get("Range")) for r in hub.requests[asked + 1 :]]
        assert again == [
            ("m-00002-of-00003.gguf", f"bytes={HALF}-"),
            ("m-00003-of-00003.gguf", None),
        ]
    outcome = FetchOutcome.model_validate_json(last_words(pod))
    assert outcome.facts is not None
    assert outcome.facts.parts == 3
    assert leftovers(pod) == []


async def test_a_fetch_says_its_secret_nowhere(pod: Path, content: bytes) -> None:
    (pod / "secret").mkdir()
    (pod / "secret" / "token").write_text(TOKEN)
    async with Hub(files={"m.gguf": content}, token=TOKEN).running() as hub:
        hub.faults = [status(503, X_Error_Message=f"overloaded by {TOKEN}", Retry_After="0")]
        environment = spec("hf://owner/repo", hf_endpoint=hub.url, secret_dir="/secret")
        code, out, err = await run(pod, "fetch", TERRACE_FETCH=environment)
        assert code == 0
        assert "overloaded by ***" in err
        assert TOKEN not in out + err + last_words(pod)


async def test_inspect_prints_json_alone_whatever_happens_on_the_way(
    pod: Path, content: bytes
) -> None:
    async with Cdn(files={"m.gguf": content}).running() as server:
        server.faults = [status(503, Retry_After="0"), cut(content, 10)]
        arguments = ("inspect", "--allow-network", LOOPBACK[0], f"{server.url}/m.gguf")
        code, out, err = await run(pod, *arguments)
        assert code == 0, err
        assert ModelFacts.model_validate_json(out).file_bytes == len(content)
        assert "answers 503" in err

        server.faults = [status(404)]
        code, out, err = await run(pod, *arguments)
        assert code == 10
        failure = FetchOutcome.model_validate_json(out).failure
        assert failure is not None
        assert err == f"NotFound: {failure.message}\n"


async def test_prune_prints_what_it_freed(pod: Path) -> None:
    await run(pod, "fetch", TERRACE_FETCH=spec("demo://draft"))
    outcome = FetchOutcome.model_validate_json(last_words(pod))
    assert outcome.facts is not None
    digest = outcome.facts.digest
    code, out, _ = await run(pod, "prune", TERRACE_PRUNE=json.dumps({"digests": [digest]}))
    freed = PruneOutcome.model_validate_json(out)
    assert (code, freed.freed, freed.freed_bytes) == (0, (digest,), outcome.facts.file_bytes)
    assert out == last_words(pod) + "\n"
    code, _, err = await run(pod, "prune", TERRACE_PRUNE="{}")
    assert (code, "digests" in err) == (EXIT_BAD_CONFIG, True)
