"""What a file is for: a draft is a whole model, an adapter and a projector are none."""

from __future__ import annotations

from typing import TYPE_CHECKING

from support.fetching import LOOPBACK, failure, get, sha, stored
from support.gguf_files import model_file
from support.lora_files import lora_file
from support.origins import Hub, Registry, S3Store, cut
from support.projector_files import TINY, projector_file
from support.split_files import split_file
from terrace_runtime.contract import FetchOutcome, FetchSpec, FileRole

if TYPE_CHECKING:
    from pathlib import Path

LORA = "application/vnd.docker.ai.gguf.v3.lora"
MMPROJ = "application/vnd.docker.ai.mmproj"
GGUF = "application/vnd.docker.ai.gguf.v3"


async def fetched(hub: Hub, role: FileRole, file: str = "f.gguf") -> FetchOutcome:
    return await get(
        FetchSpec(
            uri=f"hf://owner/repo/{file}",
            role=role,
            hf_endpoint=hub.url,
            allowed_networks=LOOPBACK,
        )
    )


async def test_an_adapter_is_a_file_with_the_architecture_that_it_fits(
    pod: Path, tmp_path: Path
) -> None:
    content = lora_file(tmp_path / "a.gguf").read_bytes()
    async with Hub(files={"f.gguf": content}).running() as hub:
        outcome = await fetched(hub, "adapter")
        assert outcome.facts is None
        assert outcome.file is not None
        assert (outcome.file.digest, outcome.file.file_bytes) == (sha(content), len(content))
        assert outcome.file.architecture == "llama"
        assert stored(pod, outcome) == content
        before = len(hub.requests)
        assert await fetched(hub, "adapter") == outcome
        assert len(hub.requests) == before


async def test_a_draft_is_a_whole_model(pod: Path, content: bytes) -> None:
    async with Hub(files={"f.gguf": content}).running() as hub:
        draft, model = await fetched(hub, "draft"), await fetched(hub, "model")
        assert draft.facts is not None
        assert draft == model


async def test_a_model_is_no_adapter_and_an_adapter_no_model(
    pod: Path, tmp_path: Path, content: bytes
) -> None:
    files = {"model.gguf": content, "lora.gguf": lora_file(tmp_path / "a.gguf").read_bytes()}
    async with Hub(files=files).running() as hub:
        wrong = failure(await fetched(hub, "adapter", "model.gguf"))
        assert (wrong.reason, wrong.permanent) == ("UnsupportedFormat", True)
        assert "a whole model and not a LoRA adapter" in wrong.message
        for role in ("model", "draft"):
            wrong = failure(await fetched(hub, role, "lora.gguf"))
            assert (wrong.reason, wrong.permanent) == ("UnsupportedFormat", True)
            assert "a LoRA adapter (name it under spec.adapters)" in wrong.message


async def test_a_projector_is_read_for_what_encoding_an_image_takes(
    pod: Path, tmp_path: Path
) -> None:
    content = projector_file(tmp_path / "p.gguf").read_bytes()
    async with Hub(files={"mmproj.gguf": content}).running() as hub:
        outcome = await fetched(hub, "projector", "mmproj.gguf")
        facts = outcome.projector
        assert facts is not None
        assert (outcome.facts, outcome.file) == (None, None)
        assert (facts.digest, facts.file_bytes) == (sha(content), len(content))
        assert (facts.projector_type, facts.output_length) == ("gemma3", TINY.output)
        assert stored(pod, outcome) == content
        before = len(hub.requests)
        assert await fetched(hub, "projector", "mmproj.gguf") == outcome
        assert len(hub.requests) == before


async def test_what_belongs_into_another_field_says_which(
    pod: Path, tmp_path: Path, content: bytes
) -> None:
    files = {
        "model.gguf": content,
        "lora.gguf": lora_file(tmp_path / "a.gguf").read_bytes(),
        "mmproj.gguf": projector_file(tmp_path / "p.gguf").read_bytes(),
    }
    wrong: dict[tuple[FileRole, str], str] = {
        ("model", "mmproj.gguf"): "a multimodal projector (name it under spec.projector)",
        ("draft", "mmproj.gguf"): "a multimodal projector (name it under spec.projector)",
        ("adapter", "mmproj.gguf"): "name it under spec.projector",
        ("projector", "model.gguf"): "a whole model (architecture llama)",
        ("projector", "lora.gguf"): "a LoRA adapter (name it under spec.adapters)",
    }
    async with Hub(files=files).running() as hub:
        for (role, file), words in wrong.items():
            said = failure(await fetched(hub, role, file))
            assert (said.reason, said.permanent) == ("UnsupportedFormat", True)
            assert words in said.message, (role, file, said.message)


async def test_a_source_that_names_no_file_means_the_one_of_its_role(
    pod: Path, tmp_path: Path, content: bytes
) -> None:
    projector = projector_file(tmp_path / "p.gguf").read_bytes()
    files = {"m-Q8_0.gguf": content, "mmproj-m-Q8_0.gguf": projector, "mmproj-m-f16.gguf": b"x"}
    async with Hub(files=files).running() as hub:
        for role, wanted in (("model", content), ("projector", projector)):
            spec = FetchSpec.model_validate(
                {
                    "uri": "hf://owner/repo:Q8_0",
                    "role": role,
                    "hf_endpoint": hub.url,
                    "allowed_networks": LOOPBACK,
                }
            )
            # The second must not find what the first one fetched.
            assert stored(pod, await get(spec)) == wanted


async def test_a_large_file_of_the_wrong_kind_is_refused_by_its_header(
    pod: Path, tmp_path: Path
) -> None:
    path = model_file(tmp_path / "m.gguf", layers=6, embedding=1024, vocabulary=16384)
    content = path.read_bytes()
    async with (
        Hub(files={"f.gguf": content}).running() as hub,
        S3Store(objects={"bucket/f.gguf": content}).running() as store,
    ):
        for server, uri in ((hub, "hf://owner/repo"), (store, "s3://bucket/f.gguf")):
            spec = FetchSpec.model_validate(
                {
                    "uri": uri,
                    "role": "adapter",
                    f"{uri[:2]}_endpoint": server.url,
                    "allowed_networks": LOOPBACK,
                }
            )
            wrong = failure(await get(spec, peek_from_bytes=10 * 2**20))
            assert (wrong.reason, wrong.permanent) == ("UnsupportedFormat", True)
            ranges = [request.headers.get("Range") for request in server.asked("f.gguf")]
            assert ranges == [None, f"bytes=0-{8 * 2**20 - 1}"]
            had = [part.stat().st_size for part in (pod / "models" / "partial").iterdir()]
            assert sum(had) < 1000  # The note alone.


async def test_a_large_file_of_the_right_kind_is_peeked_at_and_fetched(
    pod: Path, tmp_path: Path
) -> None:
    path = model_file(tmp_path / "m.gguf", layers=6, embedding=1024, vocabulary=16384)
    content = path.read_bytes()
    async with S3Store(objects={"bucket/f.gguf": content}).running() as store:
        spec = FetchSpec(uri="s3://bucket/f.gguf", s3_endpoint=store.url, allowed_networks=LOOPBACK)
        store.faults = [cut(content, 2**20)]
        assert stored(pod, await get(spec, peek_from_bytes=10 * 2**20)) == content
        ranges = [request.headers.get("Range") for request in store.requests]
        assert ranges == [None, f"bytes=0-{8 * 2**20 - 1}", f"bytes={2**20}-"]


async def test_an_adapter_in_parts_is_refused(pod: Path, tmp_path: Path) -> None:
    parts = split_file(lora_file(tmp_path / "a.gguf"), tmp_path / "a", 2)
    files = {path.name: path.read_bytes() for path in parts}
    async with Hub(files=files).running() as hub:
        wrong = failure(await fetched(hub, "adapter", parts[0].name))
        assert "split into parts" in wrong.message


async def test_one_artifact_may_hold_a_model_its_adapter_and_its_projector(
    pod: Path, tmp_path: Path, content: bytes
) -> None:
    lora = lora_file(tmp_path / "a.gguf").read_bytes()
    seer = projector_file(tmp_path / "p.gguf").read_bytes()
    async with Registry().running() as registry:
        registry.push("v1", [(GGUF, "", content), (LORA, "", lora), (MMPROJ, "", seer)])
        for role, wanted in (("model", content), ("adapter", lora), ("projector", seer)):
            spec = FetchSpec.model_validate(
                {
                    "uri": "oci://r.example/ai/model:v1",
                    "role": role,
                    "oci_endpoint": registry.url,
                    "allowed_networks": LOOPBACK,
                }
            )
            assert stored(pod, await get(spec)) == wanted


async def test_plain_files_of_an_artifact_are_told_apart_by_their_names(
    pod: Path, tmp_path: Path, content: bytes
) -> None:
    seer = projector_file(tmp_path / "p.gguf").read_bytes()
    plain = "application/gguf"
    async with Registry().running() as registry:
        registry.push("v1", [(plain, "mmproj-m.gguf", seer), (plain, "m.gguf", content)])
        for role, wanted in (("model", content), ("projector", seer)):
            spec = FetchSpec.model_validate(
                {
                    "uri": "oci://r.example/ai/model:v1",
                    "role": role,
                    "oci_endpoint": registry.url,
                    "allowed_networks": LOOPBACK,
                }
            )
            assert stored(pod, await get(spec)) == wanted
