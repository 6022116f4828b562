"""Time limits for folders whose tests share the machine with whole control planes.

A limit is there to end a test that hangs; one that is only slow, on a machine that does other work
as well, is to pass.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path


def allow(seconds: int, folder: Path, items: Iterable[pytest.Item]) -> None:
    """Give the tests of ``folder`` so much, fixtures included, unless they name a limit."""
    for item in items:
        if folder in item.path.parents and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(seconds))
