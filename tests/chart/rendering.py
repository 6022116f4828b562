"""Rendering the chart, and finding things in what comes out."""

from __future__ import annotations

import functools
import json
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from chart.programs import helm4

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts/terrace"
NAMESPACE = "terrace-system"
Manifest = dict[str, Any]
Right = tuple[str, str, str, str]


class Refused(Exception):  # noqa: N818 -- what helm does to values
    """Helm's words."""


@functools.cache
def _template(helm: Path, values: str) -> str:
    """The same values give the same text, so each is rendered once."""
    done = run_helm(helm, "template", "terrace", str(CHART), "-n", NAMESPACE, values=values)
    if done.returncode != 0:
        raise Refused(done.stderr)
    return done.stdout


def run_helm(helm: Path, *args: str, values: str = "{}") -> subprocess.CompletedProcess[str]:
    """Helm with values on stdin."""
    return subprocess.run(
        [str(helm), *args, "--values", "-"],
        input=values,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


class Helm:
    """One helm, and the chart as it renders it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def text(self, **values: Any) -> str:
        """What ``helm template`` prints."""
        return _template(self.path, json.dumps(values, sort_keys=True))

    def render(self, **values: Any) -> list[Manifest]:
        """The manifests; raises Refused."""
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        return [each for each in yaml.load_all(self.text(**values), loader) if each]

    def refusal(self, **values: Any) -> str:
        """Helm's words about values that it does not take."""
        try:
            self.text(**values)
        except Refused as refused:
            return str(refused)
        raise AssertionError(f"taken: {values}")

    def notes(self, **values: Any) -> str:
        """What a user reads after the install. Helm 3 makes none without a cluster."""
        args = ("install", "terrace", str(CHART), "-n", NAMESPACE, "--dry-run=client")
        done = run_helm(helm4(), *args, values=json.dumps(values))
        assert done.returncode == 0, done.stderr
        return done.stdout.partition("NOTES:")[2]


def one(manifests: Iterable[Manifest], kind: str, name: str) -> Manifest:
    """The object of this kind and name."""
    (found,) = [m for m in manifests if (m["kind"], m["metadata"]["name"]) == (kind, name)]
    return found


def kinds(manifests: Iterable[Manifest]) -> set[str]:
    """Which kinds there are."""
    return {each["kind"] for each in manifests}


def pod(manifests: Iterable[Manifest], component: str) -> Manifest:
    """The pod template of a component."""
    deployment = one(manifests, "Deployment", f"terrace-{component}")
    return dict(deployment["spec"]["template"])


def container(manifests: Iterable[Manifest], component: str) -> Manifest:
    """The one container of a component."""
    (found,) = pod(manifests, component)["spec"]["containers"]
    return dict(found)


def rights(rules: Iterable[Mapping[str, Any]]) -> set[Right]:
    """(group, resource, name or *, verb) of each right."""
    return {
        (group, resource, name, verb)
        for rule in rules
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for name in rule.get("resourceNames", ["*"])
        for verb in rule["verbs"]
    }


def granted(
    manifests: Sequence[Manifest], account: str, kind: str, namespace: str | None
) -> set[Right]:
    """The rights that bindings of this kind and namespace give to an account."""
    found: set[Right] = set()
    for binding in manifests:
        if binding["kind"] == f"{kind}Binding" and any(
            subject["name"] == account and subject["namespace"] == NAMESPACE
            for subject in binding["subjects"]
        ):
            if binding["metadata"].get("namespace") != namespace:
                continue
            role = next(
                m
                for m in manifests
                if m["kind"] == kind
                and m["metadata"]["name"] == binding["roleRef"]["name"]
                and m["metadata"].get("namespace") == namespace
            )
            found |= rights(role["rules"])
    return found
