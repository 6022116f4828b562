"""Model files in parts, from every kind of source, down to llama.cpp loading them."""

from __future__ import annotations

import ctypes
import resource
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import llama_cpp
import pytest

import terrace_runtime
from support.fetching import LOOPBACK, QUICK, failure, get, leftovers, sha
from support.origins import Cdn, Hub, Registry, S3Store, cut
from support.split_files import split_file, split_model
from terrace_runtime.contract import FetchOutcome, FetchSpec
from terrace_runtime.models.errors import FetchError
from terrace_runtime.models.remote import digest_of
from terrace_runtime.models.split import cached_name, part_paths, split_name

if TYPE_CHECKING:
    from collections.abc import Sequence

DEMO = Path(terrace_runtime.__file__).parent / "demo" / "draft.gguf"
NAMES = tuple(cached_name(number, 3) for number in (1, 2, 3))


@pytest.fixture
def parts(tmp_path: Path) -> list[bytes]:
    return [path.read_bytes() for path in split_model(tmp_path / "m", 3, layers=4)]


def of(parts: Sequence[bytes], prefix: str = "") -> dict[str, bytes]:
    return {prefix + name: part for name, part in zip(NAMES, parts, strict=True)}


def check(pod: Path, outcome: FetchOutcome, parts: Sequence[bytes]) -> None:
    """All parts lie side by side, and the facts are those of the whole."""
    assert outcome.failure is None, outcome.failure
    facts = outcome.facts
    assert facts is not None
    assert (facts.parts, facts.layer_count) == (3, 4)
    assert facts.file_bytes == sum(map(len, parts))
    assert facts.digest == digest_of([sha(part) for part in parts])
    assert outcome.path == f"/models/blobs/{facts.digest}/{NAMES[0]}"
    folder = (pod / outcome.path.lstrip("/")).parent
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == of(parts)
    assert leftovers(pod) == []


async def test_parts_come_from_the_hub(pod: Path, parts: list[bytes]) -> None:
    async with Hub(files=of(parts, "Q8_0/")).running() as hub:
        spec = FetchSpec(uri="hf://owner/repo:Q8_0", hf_endpoint=hub.url, allowed_networks=LOOPBACK)
        outcome = await get(spec)
        check(pod, outcome, parts)
        before = len(hub.requests)
        assert await get(spec) == outcome
        assert len(hub.requests) == before


async def test_parts_come_by_https_and_go_on_where_they_broke(
    pod: Path, parts: list[bytes]
) -> None:
    async with Cdn(files=of(parts, "x/")).running() as server:
        server.faults = [*[server.answer] * 4, cut(parts[1], 700)]
        uri = f"{server.url}/x/{NAMES[0]}"
        outcome = await get(FetchSpec(uri=uri, sha256=sha(parts[0]), allowed_networks=LOOPBACK))
        check(pod, outcome, parts)
        asked = [(request.path, request.headers.get("Range")) for request in server.requests]
        first, second, third = (f"/x/{name}" for name in NAMES)
        assert asked[:3] == [(path, "bytes=0-0") for path in (first, second, third)]
        assert asked[3:] == [(first, None), (second, None), (second, "bytes=700-"), (third, None)]


async def test_parts_come_from_s3(pod: Path, parts: list[bytes]) -> None:
    async with S3Store(objects=of(parts, "bucket/m/")).running() as store:
        uri = f"s3://bucket/m/{NAMES[0]}"
        check(
            pod,
            await get(FetchSpec(uri=uri, s3_endpoint=store.url, allowed_networks=LOOPBACK)),
            parts,
        )


@pytest.mark.parametrize("titled", [True, False])
async def test_parts_are_layers_of_an_artifact(
    pod: Path, parts: list[bytes], *, titled: bool
) -> None:
    layers = [
        ("application/vnd.docker.ai.gguf.v3", name if titled else "", part)
        for name, part in of(parts).items()
    ]
    async with Registry().running() as registry:
        # Titles say the order; without them it is the order of the push.
        registry.push("v1", layers[::-1] if titled else layers)
        spec = FetchSpec(
            uri="oci://r.example/ai/model:v1",
            oci_endpoint=registry.url,
            allowed_networks=LOOPBACK,
        )
        check(pod, await get(spec), parts)


async def test_parts_of_a_claim_are_used_in_place(pod: Path, parts: list[bytes]) -> None:
    for name, part in of(parts).items():
        (pod / "source" / name).write_bytes(part)
    outcome = await get(FetchSpec(uri=f"pvc://claim/{NAMES[0]}"))
    assert outcome.facts is not None
    assert (outcome.path, outcome.facts.parts) == (f"/source/{NAMES[0]}", 3)
    (pod / "source" / NAMES[2]).unlink()
    (pod / "source" / NAMES[2]).symlink_to(NAMES[0])
    twice = failure(await get(FetchSpec(uri=f"pvc://claim/{NAMES[0]}")))
    assert (twice.reason, "part 1 of 3" in twice.message) == ("InvalidModel", True)
    (pod / "source" / NAMES[1]).unlink()
    missing = failure(await get(FetchSpec(uri=f"pvc://claim/{NAMES[0]}")))
    assert (missing.reason, NAMES[1] in missing.message) == ("NotFound", True)


async def test_a_part_that_is_missing_or_not_the_first_is_named(
    pod: Path, parts: list[bytes]
) -> None:
    files = of(parts)
    del files[NAMES[1]]
    async with Hub(files=files).running() as hub:
        for uri, words in (
            (f"hf://owner/repo/{NAMES[0]}", NAMES[1]),
            (f"hf://owner/repo/{NAMES[2]}", f"name its first part, {NAMES[0]}"),
        ):
            found = failure(
                await get(FetchSpec(uri=uri, hf_endpoint=hub.url, allowed_networks=LOOPBACK))
            )
            assert words in found.message
            assert found.permanent


async def test_parts_of_another_model_are_refused(
    pod: Path, tmp_path: Path, parts: list[bytes]
) -> None:
    (tmp_path / "foreign").mkdir()
    foreign = split_model(tmp_path / "foreign" / "m", 3, layers=6)
    mixed = [parts[0], foreign[1].read_bytes(), parts[2]]
    async with Hub(files=of(mixed)).running() as hub:
        found = failure(
            await get(
                FetchSpec(uri="hf://owner/repo", hf_endpoint=hub.url, allowed_networks=LOOPBACK)
            )
        )
        assert (found.reason, found.permanent) == ("InvalidModel", True)
        assert list((pod / "models" / "blobs").iterdir()) == []


async def test_a_spoilt_part_alone_is_fetched_again(pod: Path, parts: list[bytes]) -> None:
    async with Hub(files=of(parts)).running() as hub:
        spec = FetchSpec(uri="hf://owner/repo", hf_endpoint=hub.url, allowed_networks=LOOPBACK)
        hub.faults = [*[hub.answer] * 3, *[cut(parts[2], 700)] * 3]
        failure(await get(spec, replace(QUICK, attempts=1)))
        (second,) = (pod / "models" / "partial").rglob(NAMES[1])
        second.write_bytes(parts[1][:-1] + b"x")
        before = len(hub.requests)
        check(pod, await get(spec), parts)
        asked = [(r.path[-21:], r.headers.get("Range")) for r in hub.requests[before + 1 :]]
        assert asked[-1] == (f"{NAMES[1]}"[-21:], None)
        assert [name for name, _ in asked].count(f"{NAMES[0]}"[-21:]) == 0


async def test_a_source_at_odds_with_itself_is_not_asked_for_ever(
    pod: Path, parts: list[bytes]
) -> None:
    async with Hub(files=of(parts), lies={NAMES[1]: "0" * 64}).running() as hub:
        spec = FetchSpec(uri="hf://owner/repo", hf_endpoint=hub.url, allowed_networks=LOOPBACK)
        for requests in (4, 2, 2):
            before = len(hub.requests)
            found = failure(await get(spec))
            assert (found.reason, found.permanent) == ("ChecksumMismatch", False)
            assert len(hub.requests) - before <= requests + 1


async def test_parts_that_the_disk_cannot_hold_stay_and_go_on(
    pod: Path, parts: list[bytes]
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    async with Hub(files=of(parts)).running() as hub:
        spec = FetchSpec(uri="hf://owner/repo", hf_endpoint=hub.url, allowed_networks=LOOPBACK)
        sizes = sorted(map(len, parts))
        resource.setrlimit(resource.RLIMIT_FSIZE, (sizes[-1] - 100, hard))
        try:
            found = failure(await get(spec))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert (found.reason, found.permanent) == ("DiskFull", False)
        assert any(name.endswith(".json") for name in leftovers(pod))
        check(pod, await get(spec), parts)


@pytest.mark.parametrize("is_first_empty", [True, False])
async def test_llama_cpp_loads_what_lies_in_the_cache(
    pod: Path, tmp_path: Path, *, is_first_empty: bool
) -> None:
    parts = [
        path.read_bytes()
        for path in split_file(DEMO, tmp_path / "d", 3, is_first_empty=is_first_empty)
    ]
    async with Hub(files=of(parts)).running() as hub:
        spec = FetchSpec(uri="hf://owner/repo", hf_endpoint=hub.url, allowed_networks=LOOPBACK)
        outcome = await get(spec)
        assert outcome.facts is not None
    path = str(pod / outcome.path.lstrip("/")).encode()
    llama_cpp.llama_backend_init()
    model = llama_cpp.llama_model_load_from_file(path, llama_cpp.llama_model_default_params())
    assert model
    assert llama_cpp.llama_model_n_params(model) == outcome.facts.parameters
    assert llama_cpp.llama_model_n_layer(model) == outcome.facts.layer_count
    llama_cpp.llama_model_free(model)


@pytest.mark.parametrize("number", [1, 7, 512])
def test_names_are_those_that_llama_cpp_makes(number: int) -> None:
    buffer = ctypes.create_string_buffer(256)
    llama_cpp.llama_split_path(buffer, 256, b"/models/x/model", number - 1, 512)
    assert buffer.value.decode() == f"/models/x/{cached_name(number, 512)}"
    assert split_name(buffer.value.decode()) is not None


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("m-00000-of-00003.gguf", "cannot be part"),
        ("m-00004-of-00003.gguf", "cannot be part"),
        ("m-00001-of-00000.gguf", "cannot be part"),
        ("m-00001-of-99999.gguf", "the limit is 512"),
        ("m-00002-of-00003.gguf", "first part"),
    ],
)
def test_names_that_cannot_be_are_refused(name: str, words: str) -> None:
    with pytest.raises(FetchError, match=words):
        part_paths(name)


@pytest.mark.parametrize(
    "name", ["m.gguf", "m-1-of-3.gguf", "m-00001-of-00003.bin", "m-00001-of-00001.gguf"]
)
def test_other_names_stand_for_themselves(name: str) -> None:
    assert part_paths(name) == (name,)
