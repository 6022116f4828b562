"""What no value is, is refused with its path, before anything reaches a cluster."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import yaml

from chart.rendering import CHART

if TYPE_CHECKING:
    from collections.abc import Iterator

    from chart.rendering import Helm, Manifest


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"gatway": {}}, "additional properties 'gatway' not allowed"),
        ({"gateway": {"replica": 2}}, "at '/gateway': additional properties 'replica' not allowed"),
        ({"gateway": {"replicas": "two"}}, "at '/gateway/replicas': got string, want integer"),
        ({"gateway": {"maxBodyMiB": 0}}, "at '/gateway/maxBodyMiB': minimum: got 0, want 1"),
        ({"operator": {"digest": "abc"}}, "at '/operator/digest': 'abc' does not match"),
        ({"operator": {"extraEnv": [{"value": "x"}]}}, "missing property 'name'"),
        ({"operator": {"priorityClassName": "Not A Name"}}, "'/operator/priorityClassName'"),
        ({"image": {"registry": "x/"}}, "at '/image/registry': 'x/' does not match"),
        ({"image": {"pullPolicy": "Sometimes"}}, "at '/image/pullPolicy': value must be one of"),
        ({"watchNamespaces": ["Not_A_Name"]}, "at '/watchNamespaces/0'"),
        ({"watchNamespaces": ["a", "a"]}, "at '/watchNamespaces': items at 0 and 1 are equal"),
        ({"networkPolicy": {"clients": [{}]}}, "at '/networkPolicy/clients/0': minProperties"),
        ({"networkPolicy": {"clients": [{"ipblock": {}}]}}, "additional properties 'ipblock'"),
        ({"priorityClass": {"value": 2000000000}}, "at '/priorityClass/value': maximum"),
        ({"commonLabels": {"app.kubernetes.io/name": "x"}}, "'app.kubernetes.io/name'"),
        ({"gateway": {"podLabels": {"helm.sh/chart": "x"}}}, "'helm.sh/chart'"),
        ({"crds": {"enable": False}}, "at '/crds': additional properties 'enable' not allowed"),
        ({"metrics": {"podMonitor": {"interval": "soon"}}}, "at '/metrics/podMonitor/interval'"),
        ({"metrics": {"dashboards": {"enabled": "yes"}}}, "got string, want boolean"),
    ],
)
def test_a_wrong_value_is_refused_by_name(helm: Helm, values: Manifest, said: str) -> None:
    assert said in helm.refusal(**values)


def test_values_of_an_older_chart_are_refused_with_the_way_out(helm: Helm) -> None:
    # What `helm upgrade --reuse-values` brings from a version that had none of these.
    old: Manifest = {
        "crds": None,
        "priorityClass": None,
        "networkPolicy": None,
        "operator": {"serviceAccount": None, "extraEnv": None},
    }
    assert "upgrade with --reset-then-reuse-values instead" in helm.refusal(**old)


def paths(values: Any, *above: str) -> Iterator[tuple[str, ...]]:
    """Every map of the values that is not the user's to fill."""
    if isinstance(values, dict) and values:
        yield above
        for key, value in values.items():
            yield from paths(value, *above, key)


# Maps whose keys are Kubernetes' or the user's.
OPEN = {("operator", "resources"), ("gateway", "resources"), ("metrics", "dashboards", "labels")}


@pytest.mark.parametrize("helm", ["helm4"], indirect=True)
@pytest.mark.parametrize(
    "path", list(paths(yaml.safe_load((CHART / "values.yaml").read_text()))), ids="/".join
)
def test_no_map_of_values_takes_an_unknown_key(helm: Helm, path: tuple[str, ...]) -> None:
    if any(path[: len(each)] == each for each in OPEN):
        return
    values: dict[str, Any] = {"unheardOf": 1}
    for key in reversed(path):
        values = {key: values}
    assert "additional properties 'unheardOf' not allowed" in helm.refusal(**values)
