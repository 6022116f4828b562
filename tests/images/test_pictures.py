"""The runtime image decodes what clients may send, and cannot read anything else."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from support.images import run_in

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.timeout(400)
DECODE = """
import io, json
from PIL import Image, features
from terrace_runtime.api.image_child import FORMATS, decode

sizes = {}
for name in FORMATS:
    file = io.BytesIO()
    Image.new("RGB", (8, 6), "red").save(file, name)
    made = decode(file.getvalue(), 2048, 1 << 20)
    red, green, blue = made.getpixel((3, 3))
    sizes[name] = [*made.size, red > 200, green < 60, blue < 60]
others = [name for name in ("avif", "freetype2", "littlecms2", "raqm") if features.check(name)]
print(json.dumps({"sizes": sizes, "others": others}))
"""


def test_pictures_of_all_formats_are_decoded_and_no_others_can_be(root: Path) -> None:
    found = run_in(root, DECODE)
    assert sorted(found["sizes"]) == ["GIF", "JPEG", "PNG", "WEBP"]
    assert all(red == [8, 6, True, True, True] for red in found["sizes"].values())
    assert found["others"] == []
