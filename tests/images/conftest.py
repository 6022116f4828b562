"""The three archives of ``make image-archives``."""

from __future__ import annotations

import io
import tarfile
from typing import TYPE_CHECKING

import pytest

from build.archives import check_machine
from build.workshop import BuildError
from support.images import ARCHIVES, NAMES, Image, open_image

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="session")
def images() -> dict[str, Image]:
    """The images by name; skips where they cannot be built."""
    try:
        check_machine()
    except BuildError as error:
        pytest.skip(str(error))
    missing = [name for name in NAMES if not (ARCHIVES / f"{name}.tar").is_file()]
    if missing:
        pytest.fail(f"{ARCHIVES} has no {missing[0]}.tar: run make image-archives", pytrace=False)
    return {name: open_image(ARCHIVES / f"{name}.tar") for name in NAMES}


@pytest.fixture(params=NAMES)
def image(request: pytest.FixtureRequest, images: dict[str, Image]) -> Image:
    """Each image in turn."""
    return images[request.param]


@pytest.fixture(scope="session")
def root(images: dict[str, Image], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runtime image's files, unpacked."""
    folder = tmp_path_factory.mktemp("runtime")
    for layer in images["runtime"].layers:
        with tarfile.open(fileobj=io.BytesIO(layer), mode="r:gz") as content:
            content.extractall(folder, filter="fully_trusted")
    folder.chmod(0o755)
    return folder
