"""Builders for tests of speculation: an engine that guesses whether it pays or not."""

from __future__ import annotations

from typing import TYPE_CHECKING

from support.engine_builders import CoreDriver, runtime_config
from terrace_runtime.contract import Speculation
from terrace_runtime.engine.costs import StepCosts
from terrace_runtime.engine.speculation import speculator

if TYPE_CHECKING:
    from typing import Any, Literal

    from terrace_runtime.backend.fake import FakeBackend


class FreeRows(StepCosts):
    """Every step costs the same, whatever it holds: so a guess always pays, right or wrong."""

    def decode_seconds(self, num_rows: int) -> float:
        """One second; a little less for more rows, so that no guess is too unlikely."""
        return 1.0 - num_rows * 1e-4


def guessing(mode: Literal["ngram", "draft"], max_tokens: int = 4, **changes: Any) -> Any:
    """Configuration with guesses."""
    return runtime_config(speculation=Speculation(mode=mode, max_tokens=max_tokens), **changes)


def guessing_driver(config: Any, backend: FakeBackend | None = None) -> CoreDriver:
    """A driver whose engine guesses as much as it can."""
    driver = CoreDriver(config, backend)
    costs = FreeRows(config.prefill_tokens)
    driver.core.costs = costs
    driver.core.speculator = speculator(config, driver.backend, costs, driver.clock)
    return driver
