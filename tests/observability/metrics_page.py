"""``python -m observability.metrics_page docs/metrics.md``: all metrics on a page, from the code.

Owns: what stands on the page. Does not own: the metrics (``registries.py`` has the components
render them). Run it with PYTHONPATH=tests; ``--check`` compares and writes nothing.
"""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING

from observability.registries import COMPONENTS, GENERIC, Family, families
from terrace.planner.page_file import keep_page

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

MODULE = "observability.metrics_page"
_HEAD = f"""<!-- Generated: `PYTHONPATH=tests python -m {MODULE} docs/metrics.md`. Do not edit. -->
# Metrics

What `/metrics` of each component tells. Names follow Prometheus' conventions: base units, `_total`
for counters. A replica shows three numbers under the `vllm:` names of the inference gateway's
model-server protocol too, so that what was made for those works unchanged.

The label `model` is `namespace/name` of an InferenceModel. Labels are closed sets, but for two that
are bounded by number: the first 1,000 models have series of their own (the gateway counts the
others as `other`, the operator in its sums alone), and the first 256 tenants of a replica (the
others are `other`). No label comes from a request.

Prometheus adds `namespace` and `pod` of the target. The PodMonitors of the chart set `job` and, for
replicas, `model`: see [observability.md](observability.md), which also has dashboards and alerts.
"""
_WHERE = {
    "operator": "## Operator\n\nPort `metrics` (8080). "
    "A pod that does not lead shows its process alone.",
    "gateway": "## Gateway\n\nPort `http` (8080).",
    "runtime": "## Replicas\n\nPort `http` (8000). "
    "What a kernel, driver or model does not tell has no series.",
}
_GENERIC = """## Of every component

`process_*` and `python_*` are the client library's: CPU seconds, resident memory, open files,
garbage collections. Of a replica they are those of its HTTP process; the engine's memory is
`terrace_runtime_memory_bytes`.
"""
_UNITS = (
    ("seconds", "seconds"),
    ("bytes", "bytes"),
    ("ratio", "0 to 1"),
    ("celsius", "°C"),
    ("watts", "watts"),
    ("tokens", "tokens"),
    ("blocks", "blocks"),
    ("perc", "0 to 1"),
    ("info", "1"),
)


def page() -> str:
    """The page's Markdown."""
    generic: dict[str, Family] = {}
    parts = [_HEAD]
    for component, text in COMPONENTS.items():
        found = families(text())
        own = [each for name, each in found.items() if not name.startswith(GENERIC)]
        generic |= {name: each for name, each in found.items() if name.startswith(GENERIC)}
        parts += [_WHERE[component], _table(own)]
    parts += [_GENERIC.rstrip(), _table(generic.values())]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def unit(name: str) -> str:
    """The unit that a name ends in; empty for counts of things."""
    words = re.split("[_:]", name.removesuffix("_total"))
    return next((text for word, text in _UNITS if words[-1] == word), "")


def _table(found: Iterable[Family]) -> str:
    rows = ["| metric | type | labels | unit | meaning |", "|---|---|---|---|---|"]
    for each in sorted(found, key=lambda family: family.name):
        labels = ", ".join(f"`{label}`" for label in sorted(each.labels))
        rows.append(f"| `{each.name}` | {each.kind} | {labels} | {unit(each.name)} | {each.text} |")
    return "\n".join(rows)


def main(arguments: Sequence[str] | None = None) -> int:
    """Write or compare the page."""
    return keep_page(MODULE, "docs/metrics.md", page(), arguments)


if __name__ == "__main__":
    sys.exit(main())
