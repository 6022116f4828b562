"""What a stored object of another time may hold: the operator checks again, in the same words."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from support.planning import model, pool
from terrace.api.status import InferenceModelStatus


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        ({"source": {"uri": "ftp://host/file"}}, "source.uri"),
        ({"source": {"uri": "http://host/file"}}, "source"),
        ({"source": {"uri": "demo://chat", "sha256": "A" * 64}}, "source.sha256"),
        ({"servedNames": ["-a"]}, "servedNames.0"),
        ({"context": {"length": 1}}, "context.length"),
        ({"context": {"parallel": 256}}, "context.parallel"),
        ({"sampling": {"topP": 0}}, "sampling.topP"),
        ({"replicas": -1}, "replicas"),
        ({"replcas": 1}, "replcas"),
    ],
)
def test_a_wrong_model_is_refused_and_the_field_is_named(spec: dict[str, Any], field: str) -> None:
    with pytest.raises(ValidationError) as caught:
        model(**spec)
    assert [".".join(map(str, error["loc"])) for error in caught.value.errors()] == [field]


@pytest.mark.parametrize(
    ("flavors", "spec", "field"),
    [
        ([{"name": "CPU"}], {}, "flavors.0.name"),
        ([{"name": "a"}, {"name": "a"}], {}, ""),
        ([{"name": "a", "accelerator": "GPU"}], {}, "flavors.0.accelerator"),
        ([{"name": "a", "host": {"cpu": "0"}}], {}, "flavors.0.host.cpu"),
        ([{"name": "a", "host": {"memory": "1GB"}}], {}, "flavors.0.host.memory"),
        ([{"name": "a", "host": {"memory": True}}], {}, "flavors.0.host.memory"),
        ([{"name": "a"}], {"modelCache": {"claimName": "a", "size": "1Gi"}}, "modelCache"),
        ([{"name": "a"}], {"queue": {"maxRequests": -1}}, "queue.maxRequests"),
    ],
)
def test_a_wrong_pool_is_refused_and_the_field_is_named(
    flavors: list[dict[str, Any]], spec: dict[str, Any], field: str
) -> None:
    with pytest.raises(ValidationError) as caught:
        pool(*flavors, **spec)
    assert [".".join(map(str, error["loc"])) for error in caught.value.errors()] == [field]


def test_a_quantity_may_be_a_plain_number() -> None:
    host = pool({"name": "a", "host": {"cpu": 2, "memory": 1073741824}}).flavors[0].host
    assert (host.cpu, host.memory) == ("2", "1073741824")


def test_a_status_of_a_newer_operator_is_readable() -> None:
    status = InferenceModelStatus.model_validate({"observedGeneration": -1, "later": {"a": 1}})
    assert status.observed_generation == -1
