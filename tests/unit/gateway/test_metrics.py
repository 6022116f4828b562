"""The gateway's series stay bounded, and what begins under a label ends under it."""

from __future__ import annotations

from support.gateway import SyncedWatch, raw_model
from terrace.api.names import Key
from terrace.gateway.limits import Admission, Limits
from terrace.gateway.metrics import OTHER, Metrics
from terrace.gateway.registry import Registry
from terrace.gateway.view_metrics import MAX_MODELS


def metrics_of(num_models: int) -> tuple[Metrics, Registry]:
    registry = Registry()
    for index in range(num_models):
        registry.apply_model(raw_model(f"m{index}"))
    return Metrics(registry, SyncedWatch(), Admission(Limits())), registry


async def in_flight(metrics: Metrics, model: str) -> float:
    lines = (await metrics.render()).decode().splitlines()
    head = f'terrace_gateway_requests_in_flight{{model="{model}"}} '
    return sum(float(line.removeprefix(head)) for line in lines if line.startswith(head))


async def test_models_beyond_the_bound_share_one_series() -> None:
    metrics, _ = metrics_of(MAX_MODELS + 2)
    for index in range(MAX_MODELS + 2):
        metrics.started(Key("default", f"m{index}"))
    assert await in_flight(metrics, OTHER) == 2
    lines = (await metrics.render()).decode().splitlines()
    assert sum("_in_flight{" in line for line in lines) == MAX_MODELS + 1
    assert sum("_endpoints{" in line for line in lines) == MAX_MODELS


async def test_a_request_ends_under_the_label_under_which_it_began() -> None:
    metrics, registry = metrics_of(MAX_MODELS + 1)
    for index in range(MAX_MODELS + 1):
        metrics.started(Key("default", f"m{index}"))
    registry.remove_model(raw_model("m0"))  # There is room for one more now.
    await metrics.render()
    metrics.ended(Key("default", f"m{MAX_MODELS}"), 200, 1.0)
    assert await in_flight(metrics, OTHER) == 0
    assert await in_flight(metrics, f"default/m{MAX_MODELS}") == 0


async def test_a_request_that_outlives_its_model_is_not_counted_below_zero() -> None:
    metrics, registry = metrics_of(1)
    model = Key("default", "m0")
    metrics.started(model)
    registry.remove_model(raw_model("m0"))
    await metrics.render()
    registry.apply_model(raw_model("m0"))
    metrics.ended(model, 200, 1.0)
    assert await in_flight(metrics, "default/m0") == 0
    registry.remove_model(raw_model("m0"))
    assert b"default/m0" not in await metrics.render()
