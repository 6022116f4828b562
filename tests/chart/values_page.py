"""The chart's page, ``docs/chart.md``: its values from the comments of values.yaml.

Owns: reading the comments, and the text around the tables. Does not own: the values.
``PYTHONPATH=tests python -m chart.values_page docs/chart.md`` writes the page, with ``--check`` it
compares.
"""

from __future__ import annotations

import json
import re
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import yaml

from chart.rendering import CHART
from terrace.planner.page_file import keep_page

if TYPE_CHECKING:
    from collections.abc import Sequence

MODULE = "chart.values_page"
_KEY = re.compile(r"( *)([A-Za-z]+):(?: .*)?$")
_INTRODUCTION = """\
<!-- Generated: `PYTHONPATH=tests python -m chart.values_page docs/chart.md`. Do not edit. -->
# The chart

`charts/terrace` installs the operator, the gateway, their rights and both kinds, with Helm 3 or
4. The notes that helm prints say what to type next.

```console
$ helm install terrace charts/terrace -n terrace-system --create-namespace
```

A value that is none is refused by its path before anything is sent: `values.schema.json` knows
all of them. All pods, also the replicas and Jobs that the operator makes, satisfy the
*restricted* pod security standard.

## The two kinds

The CustomResourceDefinitions are templates of the subchart `crds`, so `helm upgrade` upgrades
them and `helm rollback` takes them back: what was set in fields that the older version lacks is
lost then.

- `crds.keep` (on) leaves them, and with them all models, pools and running replicas, when the
  release is uninstalled. Off, `helm uninstall` deletes them, and every model with its volumes.
  Delete models and pools first then: `kubectl delete im,ipool -A --all --cascade=foreground`.
  Kubernetes' garbage collector finds what belonged to an object only while it knows the object's
  kind: what it has not collected when the kinds go, replicas and volumes, stays until you delete
  it (`-l app.kubernetes.io/managed-by=terrace`).
- Kinds that are there already and belong to somebody else (`kubectl apply -f crds/`, another
  release) are left alone; the notes say so, and which two commands hand them over.
- `crds.enabled=false` leaves them out: for tenants, and where a platform team owns them.

## One cluster or some namespaces

By default Terrace works in all namespaces, with ClusterRoles. With `watchNamespaces` its rights
are Roles in these namespaces alone. Then nothing of a release is cluster-scoped with

```yaml
watchNamespaces: [team-a]
crds: {enabled: false}
aggregateRoles: false
nodeRole: false
```

and an administrator does two things for it once: apply the kinds, and let the operator see nodes,
without which nothing can be placed (the notes have the commands).

The operator's rights are exactly those that it asks the API for, which a test reads in the API
server's audit log. It reads no Secret but its own.

## Upgrade, rollback, uninstall

An upgrade replaces operator and gateway; replicas go on, whatever it changes, and answers under
way are finished within `gateway.drainTimeoutSeconds`. The same holds for a rollback. From a
version without some of these values, upgrade with `--reset-then-reuse-values`; `--reuse-values`
would leave the new ones out and is refused.

`helm uninstall` with the kinds kept leaves replicas running, which the next install finds. The
Secret `terrace-trust` stays in the release's namespace, so that they trust the next gateway, and
so does the Lease `terrace-operator`; both go with the namespace.

## Network policies

Off by default (see below why). With `networkPolicy.enabled`:

| pods | may be reached by | may connect to |
|---|---|---|
| gateway | `clients` (empty: anyone), `monitoring` | anything |
| operator | `monitoring` | anything |
| replicas | gateway, operator, `monitoring` | nothing |
| Jobs that fetch files | nobody | `dns`, `sources` |
| Jobs that delete files | nobody | nothing |

Policies for replicas and Jobs are made in `networkPolicy.namespaces`, or else in
`watchNamespaces`.

## Values
"""


@dataclass(frozen=True)
class Entry:
    """One key of values.yaml that is told about."""

    path: tuple[str, ...]
    text: str
    is_leaf: bool
    default: Any


def entries(text: str) -> list[Entry]:
    """All keys of a values file that stand for themselves, in order.

    A map whose keys have no comments is a value as a whole. Raises ValueError for a value without
    a comment.
    """
    values = yaml.safe_load(text)
    told = _comments(text)
    return [
        Entry(path, comment, not _has_told_keys(path, told), _at(values, path))
        for path, comment in told.items()
        if comment or _must_be_told(path, told, values)
    ]


def _comments(text: str) -> dict[tuple[str, ...], str]:
    """Every key -> the comment right above it."""
    found: dict[tuple[str, ...], str] = {}
    above: list[tuple[int, str]] = []
    comment: list[str] = []
    for line in text.splitlines():
        if line.lstrip().startswith("#"):
            comment.append(line.strip().removeprefix("#").strip())
        elif match := _KEY.match(line):
            indent, key = len(match[1]), match[2]
            above = [each for each in above if each[0] < indent] + [(indent, key)]
            found[tuple(name for _, name in above)] = " ".join(comment)
            comment = []
        else:
            comment = []  # A blank line, or the item of a list.
    return found


def _has_told_keys(path: tuple[str, ...], told: dict[tuple[str, ...], str]) -> bool:
    return any(each[: len(path)] == path and each != path and told[each] for each in told)


def _must_be_told(path: tuple[str, ...], told: dict[tuple[str, ...], str], values: Any) -> bool:
    if isinstance(_at(values, path), dict) and _has_told_keys(path, told):
        return False
    if any(told[path[:depth]] for depth in range(1, len(path))):
        return False  # Its map is told about.
    raise ValueError(f"{'.'.join(path)} has no comment")


def _at(values: Any, path: tuple[str, ...]) -> Any:
    for key in path:
        if not isinstance(values, dict):
            return None
        values = values.get(key)
    return values


def page() -> str:
    """The whole page."""
    found = entries((CHART / "values.yaml").read_text())
    parts = [_INTRODUCTION.rstrip()]
    tops = list(dict.fromkeys(each.path[0] for each in found))
    alone = [each for each in found if len(each.path) == 1 and each.is_leaf]
    parts.append(_table(alone))
    for top in tops:
        rows = [each for each in found if each.path[0] == top and each not in alone]
        if not rows:
            continue
        parts.append(f"### {top}")
        parts += [each.text for each in rows if len(each.path) == 1]
        parts.append(_table([each for each in rows if each.is_leaf]))
    return "\n\n".join(parts) + "\n"


def _table(rows: Sequence[Entry]) -> str:
    lines = ["| value | default | meaning |", "|---|---|---|"]
    for each in rows:
        default = json.dumps(each.default).replace("|", "\\|")
        meaning = each.text.replace("|", "\\|")
        lines.append(f"| `{'.'.join(each.path)}` | `{default}` | {meaning} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Write or compare the page."""
    return keep_page(MODULE, "docs/chart.md", page(), arguments)


if __name__ == "__main__":
    sys.exit(main())
