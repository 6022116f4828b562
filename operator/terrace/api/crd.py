"""The CustomResourceDefinitions of both kinds; ``crds/*.yaml`` is written from here and only so.

Owns: what is around the schemas: names, columns, subresources, rules on the name. Does not own: the
fields (``model.py``, ``pool.py``, ``status.py``) or their translation (``schema.py``). Pure but for
``main``. ``python -m terrace.api.crd crds/`` writes the files, with ``--check`` it compares them;
the chart packages a copy, because links do not survive everywhere, so `make crds` names its folder
too.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from terrace.api import names
from terrace.api.markers import VALIDATIONS, rule
from terrace.api.model import ModelSpec
from terrace.api.pool import PoolSpec
from terrace.api.schema import structural_schema
from terrace.api.status import InferenceModelStatus, InferencePoolStatus

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pydantic import BaseModel

Manifest = dict[str, Any]

MAX_BYTES = 64 * 1024
"""Client-side ``kubectl apply`` keeps a copy in an annotation, which may hold 256 kB; ours stay far
below, so that Helm's release Secret has room too."""
_HEADER = (
    "# Generated from operator/terrace/api by `python -m terrace.api.crd crds/`. Do not edit.\n"
)
_NAME = "^[a-z]([-a-z0-9]*[a-z0-9])?$"


def manifests() -> dict[str, Manifest]:
    """File name -> manifest."""
    return {f"{names.MODEL_PLURAL}.yaml": _model(), f"{names.POOL_PLURAL}.yaml": _pool()}


def render(manifest: Manifest) -> str:
    """A manifest as the text of its file; the same for the same manifest."""
    body = yaml.safe_dump(manifest, sort_keys=False, width=100, allow_unicode=True)
    return _HEADER + body


def _model() -> Manifest:
    return _manifest(
        kind=names.MODEL_KIND,
        plural=names.MODEL_PLURAL,
        short="im",
        description="InferenceModel serves one GGUF language model under the OpenAI API.",
        spec=ModelSpec,
        status=InferenceModelStatus,
        scale=True,
        extra_rules=[
            rule(
                "!has(self.spec.adapters) || has(self.spec.servedNames)"
                " || self.spec.adapters.all(a, a.name != self.metadata.name)",
                "an adapter needs a name of its own: without spec.servedNames, the model is called "
                "by metadata.name",
            )
        ],
        columns=[
            _column("Ready", '.status.conditions[?(@.type=="Ready")].status'),
            _column("Status", '.status.conditions[?(@.type=="Ready")].reason'),
            _column("Available", ".status.readyReplicas", "integer"),
            _column("Replicas", ".status.replicas", "integer"),
            _column("Flavor", ".status.placement.flavor"),
            _column("Context", ".status.plan.context", "integer"),
            _column("Download", ".status.download.summary"),
            _column("Age", ".metadata.creationTimestamp", "date"),
            _column("Pool", ".spec.poolRef.name", wide=True),
            _column("Parallel", ".status.plan.parallel", "integer", wide=True),
            _column("Memory", ".status.plan.requests.memory", wide=True),
            _column("URL", ".status.url", wide=True),
            _column("Source", ".spec.source.uri", wide=True),
            _column("Digest", ".status.model.digest", wide=True),
        ],
    )


def _pool() -> Manifest:
    return _manifest(
        kind=names.POOL_KIND,
        plural=names.POOL_PLURAL,
        short="ipool",
        description="InferencePool says where models may run and how their memory is used.",
        spec=PoolSpec,
        status=InferencePoolStatus,
        scale=False,
        columns=[
            _column("Ready", '.status.conditions[?(@.type=="Ready")].status'),
            _column("Status", '.status.conditions[?(@.type=="Ready")].reason'),
            _column("Models", ".status.models", "integer"),
            _column("Age", ".metadata.creationTimestamp", "date"),
            _column("Flavors", ".spec.flavors[*].name", wide=True),
        ],
    )


def _manifest(
    *,
    kind: str,
    plural: str,
    short: str,
    description: str,
    spec: type[BaseModel],
    status: type[BaseModel],
    scale: bool,
    columns: list[Manifest],
    extra_rules: Sequence[Manifest] = (),
) -> Manifest:
    subresources: Manifest = {"status": {}}
    if scale:
        subresources["scale"] = {
            "specReplicasPath": ".spec.replicas",
            "statusReplicasPath": ".status.replicas",
            "labelSelectorPath": ".status.selector",
        }
    version = {
        "name": names.VERSION,
        "served": True,
        "storage": True,
        "schema": {"openAPIV3Schema": _root(description, spec, status, extra_rules)},
        "subresources": subresources,
        "additionalPrinterColumns": columns,
    }
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.{names.GROUP}"},
        "spec": {
            "group": names.GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": kind,
                "listKind": f"{kind}List",
                "plural": plural,
                "singular": kind.lower(),
                "shortNames": [short],
                # Not "all": `kubectl get all` is for workloads, and people delete by it.
                "categories": ["terrace"],
            },
            "versions": [version],
        },
    }


def _root(
    description: str,
    spec: type[BaseModel],
    status: type[BaseModel],
    extra_rules: Sequence[Manifest],
) -> Manifest:
    # Until the operator has seen an object, observedGeneration is not its generation: tools that
    # wait (kstatus, Helm) would call an object without any status ready.
    unseen = {"default": {"observedGeneration": -1}}
    limit = names.MAX_NAME_LENGTH
    return {
        "type": "object",
        "description": description,
        "required": ["spec"],
        VALIDATIONS: [
            rule(
                f"size(self.metadata.name) <= {limit}",
                f"metadata.name must be at most {limit} characters, because names of pods are made "
                "from it; choose a shorter one",
            ),
            rule(
                f"self.metadata.name.matches('{_NAME}')",
                "metadata.name must be lower-case letters, digits and dashes, and start with a "
                "letter, because a Service is named after it; dots are not allowed",
            ),
            *extra_rules,
        ],
        "properties": {
            "apiVersion": {"type": "string", "description": f"Always {names.API_VERSION}."},
            "kind": {"type": "string", "description": "Kind of this object."},
            "metadata": {"type": "object"},
            "spec": structural_schema(spec),
            "status": structural_schema(status) | unseen,
        },
    }


def _column(name: str, path: str, kind: str = "string", *, wide: bool = False) -> Manifest:
    column = {"name": name, "type": kind, "jsonPath": path}
    return column | ({"priority": 1} if wide else {})


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the files or, with ``--check``, say which ones differ. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m terrace.api.crd", description=main.__doc__)
    parser.add_argument(
        "folders", nargs="+", type=Path, help="where the files are, usually crds/ and the chart's"
    )
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    options = parser.parse_args(arguments)
    stale = [
        (folder / name, text)
        for folder in options.folders
        for name, text in ((name, render(each)) for name, each in manifests().items())
        if not (folder / name).exists() or (folder / name).read_text() != text
    ]
    for path, text in stale:
        if options.check:
            sys.stderr.write(f"{path} is stale: run `python -m terrace.api.crd {path.parent}`\n")
        else:
            path.write_text(text)
    return 1 if options.check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
