"""Manifests and values on the pages are what the API server and the chart take."""

from __future__ import annotations

import re
import subprocess
from typing import TYPE_CHECKING, Any, Final

import pytest
import yaml

from support.pages import ROOT, Fence, pages
from terrace.api import names
from terrace.local.binaries import find_binaries

if TYPE_CHECKING:
    from support.chain import Chain

pytestmark = pytest.mark.timeout(400)
FENCES: Final = [
    fence for each in pages() for fence in each.fences if fence.language in ("yaml", "yml")
]
CHART = ROOT / "charts/terrace"
VALUES: Final = yaml.safe_load((CHART / "values.yaml").read_text()).keys()
MODEL_SPEC: Final = {"poolRef": {"name": "default"}, "source": {"uri": "demo://chat"}}
POOL_SPEC: Final = {"flavors": [{"name": "cpu"}]}
POOL_FIELDS: Final = {"flavors", "modelCache", "sources", "access", "queue"}
MODEL_FIELDS: Final = {
    "source",
    "projector",
    "draft",
    "adapters",
    "context",
    "speculation",
    "sampling",
}
OURS = f"{names.GROUP}/"


def documents(fence: Fence) -> list[dict[str, Any]]:
    """What it holds; OWNER and the like are words that a reader replaces."""
    found = [each for each in yaml.safe_load_all(fence.text) if each]
    assert all(isinstance(each, dict) for each in found), fence
    return found


def manifest_of(document: dict[str, Any]) -> dict[str, Any] | None:
    """A whole object of ours as it is, a part of a spec completed; None for what is not ours."""
    if "kind" in document:
        return document if document["apiVersion"].startswith(OURS) else None
    part = document.get("spec", document)
    is_pool, is_model = {*part} & POOL_FIELDS, {*part} & MODEL_FIELDS
    if not (is_pool or is_model):
        return None
    kind, base = (names.POOL_KIND, POOL_SPEC) if is_pool else (names.MODEL_KIND, MODEL_SPEC)
    return {"apiVersion": names.API_VERSION, "kind": kind, "metadata": {}, "spec": base | part}


def is_values(document: dict[str, Any]) -> bool:
    return "kind" not in document and bool(document) and {*document} <= VALUES


@pytest.mark.parametrize("fence", FENCES, ids=lambda fence: f"{fence.page}:{fence.line}")
def test_yaml_on_the_pages_parses(fence: Fence) -> None:
    assert documents(fence)


def test_pools_and_models_on_the_pages_are_accepted(chain: Chain) -> None:
    everything = [document for fence in FENCES for document in documents(fence)]
    ours = [manifest_of(each) for each in everything if not is_values(each)]
    found = [
        each | {"metadata": {"name": f"page-{number}", "namespace": "default"}}
        for number, each in enumerate(filter(None, ours))
    ]
    assert len(found) > 10
    dry = ("apply", "--server-side", "--dry-run=server", "-f", "-")
    said = chain.cluster.kubectl(*dry, stdin=yaml.safe_dump_all(found))
    assert said.count("(server dry run)") == len(found)


def test_values_on_the_pages_are_accepted_by_the_chart() -> None:
    helm = find_binaries(["helm"], None, print)["helm"]
    checked = 0
    for fence in FENCES:
        for document in documents(fence):
            if not is_values(document):
                continue
            done = subprocess.run(
                [str(helm), "template", "terrace", str(CHART), "--values", "-"],
                input=yaml.safe_dump(document),
                capture_output=True, text=True, check=False, timeout=60,
            )  # fmt: skip
            assert done.returncode == 0, f"{fence.page}:{fence.line}: {done.stderr}"
            checked += 1
    assert checked


def test_a_name_in_capitals_is_one_that_the_text_explains() -> None:
    """OWNER/REPO is the one placeholder; others would be copied as they are."""
    for fence in FENCES:
        for word in re.findall(r"://[A-Z]{2,}\S*", fence.text):
            assert word.startswith("://OWNER/REPO"), f"{fence.page}:{fence.line}: {word}"
