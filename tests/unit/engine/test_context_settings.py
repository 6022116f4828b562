"""What a context is opened with when its cells get another layout while it serves."""

from __future__ import annotations

import pytest

from support.engine_builders import runtime_config
from terrace_runtime.backend.context import other_layout
from terrace_runtime.contract import AUTO_UNIFIED_UBATCH


@pytest.mark.parametrize(
    ("unified", "projector_path", "wanted"),
    [
        (True, "", AUTO_UNIFIED_UBATCH),
        (False, "", 512),
        # An image whose rows attend to each other needs a whole evaluation.
        (True, "/models/mmproj.gguf", 512),
    ],
)
def test_evaluations_are_shorter_in_cells_that_became_unified(
    unified: bool,  # noqa: FBT001 - a parameter
    projector_path: str,
    wanted: int,
) -> None:
    config = runtime_config(
        kv_auto=True, batch_tokens=512, ubatch_tokens=512, projector_path=projector_path
    )
    changed = other_layout(config, unified=unified)
    assert (changed.kv_unified, changed.ubatch_tokens) == (unified, wanted)


def test_no_evaluation_becomes_longer_than_it_was() -> None:
    assert other_layout(runtime_config(ubatch_tokens=64), unified=True).ubatch_tokens == 64
