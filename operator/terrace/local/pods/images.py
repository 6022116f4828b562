"""The image map: which command of this machine stands for an image.

Owns: the names of images (registry, repository, tag), the JSON file, the reasons for a refusal.
Does not own: running anything. Next: ``container.py`` puts ``args`` behind the argv found here.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

Argv = tuple[str, ...]

OWN_IMAGES: Mapping[str, Argv] = {
    "terrace/runtime": (sys.executable, "-m", "terrace_runtime"),
    "terrace/operator": (sys.executable, "-m", "terrace.controller"),
    "terrace/gateway": (sys.executable, "-m", "terrace.gateway"),
}


class UnknownImageError(LookupError):
    """No command of this machine stands for the image; the message lists those that are known."""


class InvalidImageMapError(ValueError):
    """The image map file is not a JSON object of lists of strings."""


def repository(image: str) -> str:
    """``registry.example:5000/terrace/runtime:0.1.0@sha256:..`` -> ``terrace/runtime``."""
    name = image.split("@", 1)[0]
    head, slash, rest = name.partition("/")
    if slash and ("." in head or ":" in head or head == "localhost"):
        name = rest
    return name.rsplit(":", 1)[0] if ":" in name.rsplit("/", 1)[-1] else name


@dataclass(frozen=True)
class ImageMap:
    """Repository without registry and tag -> argv that stands for the image's ENTRYPOINT."""

    argvs: Mapping[str, Argv]

    def argv(self, image: str) -> Argv:
        """The command for ``image``; raises UnknownImageError."""
        name = repository(image)
        found = self.argvs.get(name)
        if found is None:
            raise UnknownImageError(
                f"image {image!r} has no command on this node: the host node runs pods as host "
                f"processes and pulls nothing. Known images: {', '.join(sorted(self.argvs))}. "
                f"Add {name!r} to the image map (--images FILE) to run it."
            )
        return found


def load_image_map(path: Path | None) -> ImageMap:
    """Our own images, and those of the JSON file at ``path``, which win; raises on a bad file."""
    if path is None:
        return ImageMap(OWN_IMAGES)
    try:
        content = json.loads(path.read_text())
        extra = {repository(name): tuple(argv) for name, argv in content.items()}
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise InvalidImageMapError(f"image map {path}: {error}") from error
    for name, argv in extra.items():
        if not argv or not all(isinstance(word, str) for word in argv):
            raise InvalidImageMapError(f"image map {path}: {name!r} must be a list of strings")
    return ImageMap({**OWN_IMAGES, **extra})
