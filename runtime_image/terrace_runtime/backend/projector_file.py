"""A projector's file before libmtmd sees it: whether it may, and what the header tells besides.

Owns: opening it and wording a refusal. Does not own: the rules (``models.projector``, by which the
fetch Job went already) or whether it fits the model (``mtmd.py``). The file is untrusted, and
libmtmd asserts on some of what may be in it, which ends the process.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from terrace_runtime.backend import BackendError
from terrace_runtime.models.errors import FetchError
from terrace_runtime.models.gguf_header import read_header
from terrace_runtime.models.projector import projector_facts

if TYPE_CHECKING:
    from pathlib import Path

    from terrace_runtime.contract import ProjectorFacts

_NO_DIGEST: Final = "0" * 64
"""The fetch Job proved the file; nothing here is found by it."""


def read_projector(path: Path) -> ProjectorFacts:
    """Facts of the projector at ``path``, its digest left out; raises BackendError."""
    about = f"projector_path: {path}"
    try:
        with path.open("rb") as file:
            header = read_header(file, path.stat().st_size)
        facts = projector_facts([header], _NO_DIGEST)
    except OSError as error:
        raise BackendError(f"{about} cannot be read ({error.strerror}): fetch it again") from error
    except FetchError as error:
        raise BackendError(f"{about} is not usable: {error}") from error
    for key in ("clip.vision.image_mean", "clip.vision.image_std"):
        value = header.metadata.get(key)
        if not isinstance(value, tuple) or not all(isinstance(one, float) for one in value):
            raise BackendError(f"{about} is not usable: {key} is no list of numbers")
    return facts
