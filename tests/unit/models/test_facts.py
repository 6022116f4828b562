"""What planning learns from a header, on models of every family that matters."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from support.gguf_files import matrix_bytes, model_file
from terrace_runtime.contract import MAX_TERMINATION_BYTES, FetchOutcome, LayerRun, ModelFacts
from terrace_runtime.models.errors import FetchError
from terrace_runtime.models.facts import facts_of as facts_of_parts
from terrace_runtime.models.facts import model_facts
from terrace_runtime.models.fit import fit, message
from terrace_runtime.models.gguf_header import read_header

if TYPE_CHECKING:
    from pathlib import Path

DIGEST = "a" * 64


def facts_of(folder: Path, **shape: Any) -> ModelFacts:
    path = model_file(folder / "m.gguf", **shape)
    with path.open("rb") as file:
        return model_facts(read_header(file, path.stat().st_size), DIGEST)


def windows(facts: ModelFacts) -> list[int]:
    return [run.window for run in facts.layers for _ in range(run.count)]


def kv_heads(facts: ModelFacts) -> list[int]:
    return [run.kv_heads for run in facts.layers for _ in range(run.count)]


def test_a_plain_model_adds_up_to_its_bytes(tmp_path: Path) -> None:
    facts = facts_of(tmp_path, layers=3)
    feed_forward = matrix_bytes((128, 64), "Q8_0")
    layer = matrix_bytes((32, 64), "Q8_0") + feed_forward + 64 * 4
    head = matrix_bytes((48, 64), "Q8_0")
    assert facts.layers == (
        LayerRun(
            count=3,
            weight_bytes=layer,
            feed_forward_bytes=feed_forward,
            kv_heads=2,
            key_length=16,
            value_length=16,
        ),
    )
    assert (facts.token_embedding_bytes, facts.output_bytes) == (head, head + 64 * 4)
    assert facts.parameters == 3 * (32 * 64 + 128 * 64 + 64) + 2 * 48 * 64 + 64
    assert (facts.architecture, facts.quantization, facts.vocabulary) == ("llama", "Q8_0", 48)
    assert (facts.context_length, facts.heads, facts.feed_forward_length) == (2048, 4, 128)
    assert (facts.chat_template, facts.repacked_bytes, facts.pooling) == (False, 0, "")


def test_a_tied_head_takes_no_bytes_of_its_own(tmp_path: Path) -> None:
    assert facts_of(tmp_path, tied=True).output_bytes == 64 * 4


@pytest.mark.parametrize(
    ("weight_type", "tied", "head_is_copied"),
    [("Q4_0", False, True), ("IQ4_NL", True, True), ("Q8_0", False, None), ("Q5_0", False, None)],
)
def test_repacked_bytes_are_those_the_cpu_kernels_copy(
    tmp_path: Path, *, weight_type: str, tied: bool, head_is_copied: bool | None
) -> None:
    facts = facts_of(tmp_path, layers=2, weight_type=weight_type, tied=tied)
    layer = matrix_bytes((32, 64), weight_type) + matrix_bytes((128, 64), weight_type)
    head = matrix_bytes((48, 64), weight_type)
    assert facts.repacked_bytes == (0 if head_is_copied is None else 2 * layer + head)
    assert facts.layers[0].repacked_bytes == (0 if head_is_copied is None else layer)


def test_rows_that_are_no_multiple_of_eight_are_not_repacked(tmp_path: Path) -> None:
    facts = facts_of(tmp_path, layers=1, weight_type="Q4_0", rows=[12], vocabulary=47)
    assert facts.repacked_bytes == matrix_bytes((32, 64), "Q4_0")


def test_kv_heads_may_differ_per_layer(tmp_path: Path) -> None:
    facts = facts_of(tmp_path, layers=4, kv_heads=[4, 4, 0, 2])
    assert kv_heads(facts) == [4, 4, 0, 2]
    assert [run.count for run in facts.layers] == [2, 1, 1]
    assert facts.layers[1].key_length == 0


def test_key_and_value_lengths_may_be_given(tmp_path: Path) -> None:
    keys = {"llama.attention.key_length": 40, "llama.attention.value_length": 24}
    run = facts_of(tmp_path, keys=keys).layers[0]
    assert (run.key_length, run.value_length) == (40, 24)


def test_latent_attention_keeps_one_row_and_no_values(tmp_path: Path) -> None:
    keys = {
        "deepseek2.attention.kv_lora_rank": 512,
        "deepseek2.attention.key_length": 576,
        "deepseek2.attention.value_length": 512,
    }
    latent = {
        "deepseek2.attention.key_length_mla": 192,
        "deepseek2.attention.value_length_mla": 128,
    }
    run = facts_of(tmp_path, architecture="deepseek2", kv_heads=1, keys=keys | latent).layers[0]
    assert (run.kv_heads, run.key_length, run.value_length) == (1, 576, 0)
    # Files from before llama.cpp could do so keep every head's keys and values.
    old = facts_of(tmp_path, architecture="deepseek2", kv_heads=2, keys=keys).layers[0]
    assert (old.kv_heads, old.key_length, old.value_length) == (2, 576, 512)


def test_windows_from_an_array_of_claims(tmp_path: Path) -> None:
    for architecture, expected in (("gemma4", [512, 512, 0]), ("llama", [0, 0, 0])):
        keys = {
            f"{architecture}.attention.sliding_window": 512,
            f"{architecture}.attention.sliding_window_pattern": [True, True, False],
        }
        facts = facts_of(tmp_path, layers=3, architecture=architecture, keys=keys)
        assert windows(facts) == expected


@pytest.mark.parametrize(
    ("architecture", "expected"),
    [
        ("gemma3", [512, 512, 0, 512]),
        ("cohere2moe", [0, 512, 512, 0]),
        ("llama4", [8192, 8192, 0, 8192]),
        ("llama", [0, 0, 0, 0]),
    ],
)
def test_a_window_period_counts_only_where_llama_cpp_reads_it(
    tmp_path: Path, architecture: str, expected: list[int]
) -> None:
    keys = {
        f"{architecture}.attention.sliding_window": 512,
        f"{architecture}.attention.sliding_window_pattern": 3,
    }
    facts = facts_of(tmp_path, layers=4, architecture=architecture, keys=keys)
    assert windows(facts) == expected


def test_a_window_without_a_pattern_is_planned_as_full_attention(tmp_path: Path) -> None:
    for architecture in ("llama", "exaone4"):
        keys = {f"{architecture}.attention.sliding_window": 512}
        assert windows(facts_of(tmp_path, architecture=architecture, keys=keys)) == [0, 0]


def test_a_window_slides_with_the_architectures_own_period(tmp_path: Path) -> None:
    keys = {"gpt-oss.attention.sliding_window": 128}
    facts = facts_of(tmp_path, layers=4, architecture="gpt-oss", keys=keys)
    assert windows(facts) == [128, 0, 128, 0]


def test_layers_that_share_or_skip_attention_keep_no_cells(tmp_path: Path) -> None:
    keys = {"gemma4.attention.shared_kv_layers": 2}
    assert kv_heads(facts_of(tmp_path, layers=4, architecture="gemma4", keys=keys)) == [2, 2, 0, 0]
    hybrid = facts_of(tmp_path, layers=4, architecture="qwen3next")
    assert kv_heads(hybrid) == [0, 0, 0, 2]
    three = facts_of(tmp_path, layers=22, architecture="gemma3n")
    assert kv_heads(three) == [2] * 20 + [0, 0]


def test_layers_that_only_draft_keep_no_cells_and_are_not_read(tmp_path: Path) -> None:
    keys = {"glm4moe.nextn_predict_layers": 1}
    facts = facts_of(tmp_path, layers=3, architecture="glm4moe", keys=keys)
    assert kv_heads(facts) == [2, 2, 0]
    assert facts.layers[-1].weight_bytes == 0
    assert facts.layer_count == 3


def test_expert_bytes_are_told_apart(tmp_path: Path) -> None:
    extra = {"blk.0.ffn_up_exps.weight": (4, 32, 64)}
    facts = facts_of(tmp_path, layers=2, extra_tensors=extra)
    experts = matrix_bytes((4, 32, 64), "Q8_0")
    assert [run.expert_bytes for run in facts.layers] == [experts, 0]
    assert facts.layers[0].weight_bytes == facts.layers[1].weight_bytes + experts


def test_template_and_pooling_are_seen(tmp_path: Path) -> None:
    keys = {"tokenizer.chat_template": "{{ messages }}", "llama.pooling_type": 3}
    facts = facts_of(tmp_path, keys=keys)
    assert (facts.chat_template, facts.pooling) == (True, "last")


@pytest.mark.parametrize(
    ("shape", "reason", "words"),
    [
        ({"architecture": "clip"}, "UnsupportedFormat", "projector"),
        ({"keys": {"general.type": "adapter"}}, "UnsupportedFormat", "LoRA"),
        ({"keys": {"split.count": 3}}, "InvalidModel", "split into 3 files, and 1 are here"),
        ({"tokens": 99}, "InvalidModel", "vocabulary has 99 tokens and its embedding 48"),
        ({"keys": {"llama.attention.key_length": "x"}}, "InvalidModel", "key_length"),
        (
            {"architecture": "qwen3next", "keys": {"qwen3next.full_attention_interval": 0}},
            "InvalidModel",
            "full_attention_interval is 0",
        ),
        ({"extra_tensors": {"blk.7.attn_k.weight": (32, 64)}}, "InvalidModel", "outside the 2"),
    ],
)
def test_what_is_no_language_model_is_refused(
    tmp_path: Path, shape: dict[str, Any], reason: str, words: str
) -> None:
    with pytest.raises(FetchError) as caught:
        facts_of(tmp_path, **shape)
    assert caught.value.reason == reason
    assert words in str(caught.value)


def test_weight_types_and_experts_are_listed(tmp_path: Path) -> None:
    keys = {"llama.expert_count": 8, "llama.expert_used_count": 2}
    facts = facts_of(tmp_path, keys=keys, weight_type="MXFP4")
    assert facts.weight_types == ("F32", "MXFP4")
    assert (facts.experts, facts.experts_used) == (8, 2)


def parts(folder: Path, *keys: dict[str, Any]) -> ModelFacts:
    headers = []
    for index, added in enumerate(keys):
        extra = {f"part.{index}.weight": (32, 64)} if index else None
        path = model_file(folder / f"{index}.gguf", layers=2, keys=added, extra_tensors=extra)
        with path.open("rb") as file:
            header = read_header(file, path.stat().st_size)
        if index:
            own = tuple(tensor for tensor in header.tensors if tensor.name.startswith("part"))
            header = replace(header, tensors=own)
        headers.append(header)
    return facts_of_parts(headers, DIGEST)


def test_parts_of_a_split_model_are_one_model(tmp_path: Path) -> None:
    whole = facts_of(tmp_path)
    split = {"split.count": 3, "split.tensors.count": 11}
    facts = parts(tmp_path, split, split | {"split.no": 1}, split | {"split.no": 2})
    assert facts.parts == 3
    assert facts.parameters == whole.parameters + 2 * 32 * 64
    assert facts.layers == whole.layers
    assert facts.file_bytes == sum((tmp_path / f"{i}.gguf").stat().st_size for i in range(3))


@pytest.mark.parametrize(
    ("second", "words"),
    [
        ({"split.count": 2, "split.no": 0}, "file 2 of 2 calls itself part 1 of 2"),
        ({"split.count": 3, "split.no": 1}, "file 2 of 2 calls itself part 2 of 3"),
        ({}, "file 2 of 2 calls itself part 1 of 1"),
    ],
)
def test_parts_that_do_not_belong_together_are_refused(
    tmp_path: Path, second: dict[str, Any], words: str
) -> None:
    with pytest.raises(FetchError, match=words):
        parts(tmp_path, {"split.count": 2}, second)


def test_a_part_with_a_tensor_too_many_or_one_twice_is_refused(tmp_path: Path) -> None:
    first, second = {"split.count": 2, "split.tensors.count": 9}, {"split.count": 2, "split.no": 1}
    with pytest.raises(FetchError, match=r"hold 10 tensors with 10 names, and .* promises 9"):
        parts(tmp_path, first, second)


def irregular(tmp_path: Path, layers: int) -> ModelFacts:
    return facts_of(
        tmp_path, layers=layers, rows=[32 + 32 * (7 * i % layers) for i in range(layers)]
    )


def test_layers_that_alternate_between_few_kinds_travel_unmerged(tmp_path: Path) -> None:
    facts = facts_of(
        tmp_path,
        layers=96,
        architecture="gpt-oss",
        rows=[(32, 64, 96)[i % 3] for i in range(96)],
        keys={"gpt-oss.attention.sliding_window": 128},
    )
    assert len(facts.layers) == 96
    text = message(FetchOutcome(path="/models/x.gguf", facts=facts), MAX_TERMINATION_BYTES)
    assert len(text) < 2500
    assert FetchOutcome.model_validate_json(text).facts == facts


@pytest.mark.parametrize("layers", [128, 500])
def test_unlike_layers_fit_into_a_termination_message_and_say_so(
    tmp_path: Path, layers: int
) -> None:
    facts = irregular(tmp_path, layers)
    assert len(facts.layers) == layers
    text = message(FetchOutcome(path="/models/x.gguf", facts=facts), MAX_TERMINATION_BYTES)
    assert len(text.encode()) <= MAX_TERMINATION_BYTES
    fitted = FetchOutcome.model_validate_json(text).facts
    assert fitted is not None
    assert fitted.layers_are_merged
    assert fitted.layer_count == layers


def test_merging_never_plans_too_little(tmp_path: Path) -> None:
    exact = irregular(tmp_path, 40)
    fitted = fit(exact, 5)
    assert not exact.layers_are_merged
    assert len({run.model_copy(update={"count": 1}) for run in fitted.layers}) == 5
    spread = [run for run in fitted.layers for _ in range(run.count)]
    for ours, theirs in zip(
        spread, (run for run in exact.layers for _ in range(run.count)), strict=True
    ):
        assert ours.weight_bytes >= theirs.weight_bytes
        assert ours.kv_heads >= theirs.kv_heads


def test_facts_that_fit_are_left_alone(tmp_path: Path) -> None:
    facts = facts_of(tmp_path)
    assert fit(facts, 4) is facts
