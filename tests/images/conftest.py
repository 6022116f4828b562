"""The three archives of ``make image-archives``."""

from __future__ import annotations

import pytest

from build.archives import check_machine
from build.workshop import BuildError
from support.images import ARCHIVES, NAMES, Image, open_image


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
