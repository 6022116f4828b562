"""Plans of files that lie elsewhere: only their headers are downloaded."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from support.gguf_files import model_file
from support.origins import Cdn, Hub

if TYPE_CHECKING:
    from aiohttp import web

PROGRAM = Path(sys.executable).with_name("terrace")
NODE = ("--node", "cpu=8,memory=16Gi")
LOCAL = ("--allow-network", "127.0.0.0/8")
HOLE = b"\0" * (32 << 20)
"""What follows the tensors: a file that is worth not downloading."""


async def terrace(*arguments: str, **environment: str) -> tuple[int, str, str]:
    child = await asyncio.create_subprocess_exec(
        PROGRAM,
        *arguments,
        env={**os.environ, **environment},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await asyncio.wait_for(child.communicate(), 240)
    assert child.returncode is not None
    return child.returncode, out.decode(), err.decode()


def content(tmp_path: Path) -> bytes:
    path = model_file(tmp_path / "m.gguf", layers=4, embedding=512, vocabulary=512)
    return path.read_bytes() + HOLE


def bytes_asked(requests: list[web.Request]) -> int:
    total = 0
    for request in requests:
        start, _, end = request.headers["Range"].removeprefix("bytes=").partition("-")
        total += int(end) + 1 - int(start)
    return total


async def test_a_quantisation_of_the_hub_is_planned_by_its_header(tmp_path: Path) -> None:
    held = content(tmp_path)
    async with Hub(files={"m-Q8_0.gguf": held}).running() as hub:
        code, out, err = await terrace(
            "plan", "hf://owner/repo:Q8_0", *NODE, *LOCAL, "--json", HF_ENDPOINT=hub.url
        )
        assert (code, err) == (0, "")
        document = json.loads(out)
        assert document["model"]["fileBytes"] == len(held)
        assert set(document["model"]["digest"]) != {"0"}
        assert bytes_asked(hub.asked("/resolve/")) < len(held) // 2


async def test_a_file_that_is_not_there_is_bad_input(tmp_path: Path) -> None:
    async with Hub(files={"m-Q8_0.gguf": content(tmp_path)}).running() as hub:
        code, out, err = await terrace(
            "plan", "hf://owner/repo:Q2_K", *NODE, *LOCAL, HF_ENDPOINT=hub.url
        )
        assert (code, out) == (2, "")
        assert "m-Q8_0.gguf" in err


async def test_the_manifest_of_a_plain_server_has_the_checksum_it_needs(tmp_path: Path) -> None:
    async with Cdn(files={"m.gguf": content(tmp_path)}).running() as server:
        uri = f"{server.url}/m.gguf"
        code, out, err = await terrace("plan", uri, *NODE, *LOCAL)
        assert (code, err) == (0, "")
        assert "* Auto        host" in out
        code, out, err = await terrace("plan", uri, *NODE, *LOCAL, "-o", "yaml")
        assert (code, out) == (2, "")
        assert "needs a checksum: use https://" in err
