from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from terrace.api.crd import MAX_BYTES, main, manifests, render
from terrace.api.file_status import LayerRunStatus, ModelStatus
from terrace.api.model import ModelSpec
from terrace.api.names import MAX_FLAVOR_LENGTH, MAX_NAME_LENGTH
from terrace.api.pool import PoolSpec
from terrace_runtime.contract import LayerRun, ModelFacts

if TYPE_CHECKING:
    from collections.abc import Iterator

    from terrace.api.values import ApiValue

ROOT = Path(__file__).parents[3]
FORBIDDEN = {
    "$ref",
    "$defs",
    "title",
    "const",
    "oneOf",
    "allOf",
    "not",
    "nullable",
    "discriminator",
    "uniqueItems",
    "prefixItems",
}

MANIFESTS = pytest.mark.parametrize("manifest", manifests().values(), ids=list(manifests()))


def schema_of(manifest: dict[str, Any]) -> dict[str, Any]:
    schema: dict[str, Any] = manifest["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    return schema


def nodes(schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """All nodes of a schema with their paths."""
    yield path, schema
    for name, child in schema.get("properties", {}).items():
        yield from nodes(child, f"{path}.{name}")
    for key, mark in (("items", "[]"), ("additionalProperties", "{}")):
        if key in schema:
            yield from nodes(schema[key], path + mark)


@pytest.mark.parametrize("name", list(manifests()))
def test_the_files_are_the_ones_that_the_types_make(name: str) -> None:
    committed = (ROOT / "crds" / name).read_text()
    assert committed == render(manifests()[name]), "run `python -m terrace.api.crd crds/`"


def test_there_is_no_other_file() -> None:
    assert sorted(path.name for path in (ROOT / "crds").iterdir()) == sorted(manifests())


@MANIFESTS
def test_a_crd_is_small_enough_for_client_side_apply(manifest: dict[str, Any]) -> None:
    assert len(render(manifest).encode()) < MAX_BYTES


@MANIFESTS
def test_every_node_has_a_type_and_nothing_a_structural_schema_forbids(
    manifest: dict[str, Any],
) -> None:
    for path, node in nodes(schema_of(manifest)):
        assert ("type" in node) != ("x-kubernetes-int-or-string" in node), path
        assert ("anyOf" in node) == ("x-kubernetes-int-or-string" in node), path
        assert not FORBIDDEN & set(node), path
        assert isinstance(node.get("exclusiveMinimum", True), bool), path
        assert not ("properties" in node and "additionalProperties" in node), path


@MANIFESTS
def test_every_field_says_what_it_is(manifest: dict[str, Any]) -> None:
    for path, node in nodes(schema_of(manifest)):
        for name, child in node.get("properties", {}).items():
            if f"{path}.{name}" != ".metadata":
                assert child.get("description", "").endswith("."), f"{path}.{name}"


@MANIFESTS
def test_every_list_says_how_it_is_merged(manifest: dict[str, Any]) -> None:
    for path, node in nodes(schema_of(manifest)):
        if node.get("type") == "array":
            assert node["x-kubernetes-list-type"] in {"map", "set", "atomic"}, path


def test_conditions_and_flavors_are_merged_by_their_keys() -> None:
    model, pool = (dict(nodes(schema_of(each))) for each in manifests().values())
    for found, path, key in [
        (model, ".status.conditions", "type"),
        (pool, ".status.conditions", "type"),
        (pool, ".spec.flavors", "name"),
        (pool, ".status.flavors", "name"),
    ]:
        assert found[path]["x-kubernetes-list-map-keys"] == [key]
        assert key in found[f"{path}[]"]["required"]


@MANIFESTS
def test_lists_maps_and_strings_of_a_spec_are_bounded(manifest: dict[str, Any]) -> None:
    for path, node in nodes(schema_of(manifest)["properties"]["spec"]):
        if node.get("type") == "array":
            assert "maxItems" in node, path
        if node.get("type") == "string":
            assert "maxLength" in node or "enum" in node, path
        if "additionalProperties" in node:
            assert "maxProperties" in node, path
        if node.get("type") in {"integer", "number"}:
            assert {"minimum", "maximum"} <= set(node), path


@MANIFESTS
def test_only_the_status_has_a_default(manifest: dict[str, Any]) -> None:
    assert [path for path, node in nodes(schema_of(manifest)) if "default" in node] == [".status"]


@MANIFESTS
def test_the_generation_that_the_operator_saw_is_an_integer(manifest: dict[str, Any]) -> None:
    found = dict(nodes(schema_of(manifest)))
    assert found[".status.observedGeneration"]["type"] == "integer"
    assert found[".status.conditions[].observedGeneration"]["type"] == "integer"


def test_only_the_model_scales() -> None:
    subresources = [each["spec"]["versions"][0]["subresources"] for each in manifests().values()]
    assert subresources == [
        {
            "status": {},
            "scale": {
                "specReplicasPath": ".spec.replicas",
                "statusReplicasPath": ".status.replicas",
                "labelSelectorPath": ".status.selector",
            },
        },
        {"status": {}},
    ]


def test_the_longest_names_leave_room_for_a_pods_label() -> None:
    # controller-revision-hash: the set's name, a dash and up to 10 characters, in 63.
    assert MAX_NAME_LENGTH + 1 + MAX_FLAVOR_LENGTH + 1 + 10 <= 63


def test_the_status_shows_all_facts_of_the_model_file() -> None:
    assert set(ModelStatus.model_fields) == {*ModelFacts.model_fields, "path", "claim", "uri"}
    assert set(LayerRunStatus.model_fields) == set(LayerRun.model_fields)


def test_the_examples_are_valid() -> None:
    kinds: dict[str, type[ApiValue]] = {"InferenceModel": ModelSpec, "InferencePool": PoolSpec}
    checked = 0
    for path in sorted((ROOT / "examples").rglob("*.yaml")):
        for document in yaml.safe_load_all(path.read_text()):
            if document and document.get("kind") in kinds:  # Others configure other tools.
                kinds[document["kind"]].model_validate(document["spec"])
                checked += 1
    assert checked >= 2


def test_the_files_are_written_and_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path), "--check"]) == 1
    assert "inferencemodels.yaml is stale" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
    assert main([str(tmp_path)]) == 0
    assert main([str(tmp_path), "--check"]) == 0
    (tmp_path / "inferencepools.yaml").write_text("edited")
    assert main([str(tmp_path), "--check"]) == 1
