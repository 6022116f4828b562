"""PodMonitor and PrometheusRule as the Prometheus operator defines them, from its Go module.

Owns: the version and the proof of its bytes. Does not own: what is applied (``test_run.py``).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

from gitops.programs import run_go

MODULE: Final = "github.com/prometheus-operator/prometheus-operator"
VERSION: Final = "v0.85.0"
SUM: Final = "h1:M5xLCLEoaW2IJfnuCwFzzpL+jSVQu3KGT84Pye+fW8s="
"""As go.sum has it."""


def crds(folder: Path) -> list[Path]:
    """The two CRDs; 4 MB the first time, then from Go's module cache. Works in ``folder``."""
    found = json.loads(run_go(folder, "mod", "download", "-json", f"{MODULE}@{VERSION}"))
    assert found["Sum"] == SUM
    place = Path(found["Dir"]) / "example/prometheus-operator-crd"
    kinds = ("podmonitors", "prometheusrules")
    return [place / f"monitoring.coreos.com_{kind}.yaml" for kind in kinds]
