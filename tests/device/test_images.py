"""A model on the device that sees: its projector stays in host memory, its rows are the same."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from support.seeing import KINDS, Files, logits_after, picture

if TYPE_CHECKING:
    from terrace_runtime.backend.devices import Device

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return Files(tmp_path_factory.mktemp("vision")).written()


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_the_device_makes_of_an_image_what_the_host_does(
    device: Device, files: Files, kind: str
) -> None:
    found = []
    for layers in (0, -1):
        backend = files.load(files.projector(kind), offload={"device_layers": layers})
        found.append(logits_after(backend, picture()))
        backend.close()
    spread = float(np.ptp(found[0]))
    np.testing.assert_allclose(found[1], found[0], atol=0.02 * spread)


def test_the_device_holds_nothing_of_the_projector(device: Device, files: Files) -> None:
    def held(projector: str) -> tuple[int, int, int]:
        changes = {"offload": {"device_layers": -1}, "projector_path": projector}
        backend = files.load(files.projector("gemma3"), **changes)
        memory = backend.info.devices[0]
        backend.close()
        return memory.weights_bytes, memory.kv_bytes, memory.compute_bytes

    assert held(str(files.projector("gemma3"))) == held("")
    assert min(held("")) > 0
