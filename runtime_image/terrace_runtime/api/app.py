"""Puts the HTTP side together: routes, middleware, error shapes.

Owns: the wiring. Does not own: the process around it (``server``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi import FastAPI
from prometheus_client import CollectorRegistry
from starlette.exceptions import HTTPException

from terrace_runtime.api import embeddings, routes_generate, routes_meta
from terrace_runtime.api.access_log import RequestLog
from terrace_runtime.api.chat_template import TemplateRenderer
from terrace_runtime.api.errors import ApiError, on_api_error, on_http_error
from terrace_runtime.api.middleware import BodyLimit, body_bounds
from terrace_runtime.api.state import ServerState

if TYPE_CHECKING:
    from collections.abc import Callable

    from terrace_runtime.api.chat_template import Renderer
    from terrace_runtime.contract import RuntimeConfig
    from terrace_runtime.engine.client import EngineClient
    from terrace_runtime.engine.request import ModelInfo


def create_app(
    engine: EngineClient,
    config: RuntimeConfig,
    registry: CollectorRegistry | None = None,
    make_renderer: Callable[[ModelInfo], Renderer] = TemplateRenderer,
) -> FastAPI:
    """The app over ``engine``; ``app.state.server`` is its ServerState, not started yet.

    Raises ValueError for a trust key that is none.
    """
    # Interactive docs would load scripts from elsewhere; the schema is OpenAI's own.
    app = FastAPI(title="Terrace runtime", docs_url=None, redoc_url=None, openapi_url=None)
    app.state.server = ServerState(engine, config, registry or CollectorRegistry(), make_renderer)
    app.add_exception_handler(ApiError, on_api_error)
    app.add_exception_handler(HTTPException, on_http_error)
    takes_images = bool(config.projector_path)
    one, together = body_bounds(config.context_tokens, takes_images=takes_images)
    app.add_middleware(BodyLimit, max_bytes=one, total_bytes=together, takes_images=takes_images)
    app.add_middleware(RequestLog)
    app.include_router(routes_generate.router)
    app.include_router(embeddings.router)
    app.include_router(routes_meta.router)
    return app
