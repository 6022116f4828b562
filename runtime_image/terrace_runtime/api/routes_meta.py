"""Models, health, versions and metrics: all that never touches the engine's work.

Owns: the GET routes. ``/healthz`` is red only when the engine is dead; ``/readyz`` is red also
while the model loads and while the replica drains.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson
from fastapi import APIRouter, Request
from prometheus_client.exposition import choose_encoder
from starlette.responses import Response

from terrace_runtime.api.errors import ApiError
from terrace_runtime.contract import CONTRACT_VERSION

if TYPE_CHECKING:
    from terrace_runtime.api.state import ServerState

router = APIRouter()


@router.get("/v1/models", response_class=Response)
async def models(http: Request) -> Response:
    """All names under which the model is served."""
    state = _state(http)
    data = [_model(state, name) for name in state.names]
    return _json({"object": "list", "data": data})


@router.get("/v1/models/{name:path}", response_class=Response)
async def model(http: Request, name: str) -> Response:
    """One of them."""
    state = _state(http)
    if name not in state.names:
        raise ApiError(
            404,
            f"the model {name[:128]!r} is not served here",
            param="model",
            code="model_not_found",
        )
    return _json(_model(state, name))


@router.get("/v1/runtime", response_class=Response)
async def runtime(http: Request) -> Response:
    """The RuntimeReport of the contract."""
    report = _state(http).report()
    return Response(report.model_dump_json(), media_type="application/json")


@router.get("/version", response_class=Response)
async def version(http: Request) -> Response:
    """What runs here."""
    return _json({"build": _state(http).build, "contract": CONTRACT_VERSION})


@router.get("/healthz", response_class=Response)
async def healthz(http: Request) -> Response:
    """Red when only a restart can help."""
    state = _state(http)
    if state.engine.error:
        raise ApiError(503, state.engine.error, code="engine_error")
    return _json({"status": "ok"})


@router.get("/readyz", response_class=Response)
async def readyz(http: Request) -> Response:
    """Red when requests should go elsewhere."""
    state = _state(http)
    if state.engine.error:
        raise ApiError(503, state.engine.error, code="engine_error")
    if state.phase != "ready":
        raise ApiError(503, f"the replica is {state.phase}", code=state.phase, retry_after_s=1)
    return _json({"status": "ready", "note": state.template_note})


@router.get("/metrics", response_class=Response)
async def metrics(http: Request) -> Response:
    """Prometheus metrics in the form that the scraper asks for."""
    encode, kind = choose_encoder(http.headers.get("accept", ""))
    state = _state(http)
    await state.devices.refresh()
    return Response(encode(state.metrics.registry), headers={"content-type": kind})


def _state(http: Request) -> ServerState:
    state: ServerState = http.app.state.server
    return state


def _model(state: ServerState, name: str) -> dict[str, Any]:
    takes_images = bool(state.config.projector_path)
    return {
        "id": name,
        "object": "model",
        "created": state.created,
        "owned_by": "terrace",
        "input_modalities": ["text", "image"] if takes_images else ["text"],
    }


def _json(value: dict[str, Any]) -> Response:
    return Response(orjson.dumps(value), media_type="application/json")
