"""Says what a file that is not a GGUF is, from its first bytes. Pure.

Owns: the names of formats people point at by mistake. Next: ``download`` and ``fetch`` refuse.
"""

from __future__ import annotations

import re

from terrace_runtime.models.errors import FetchError

_CONVERT = "; convert the folder of the model with llama.cpp's convert_hf_to_gguf.py"
_SIGNATURES = (
    (re.compile(rb"\s*<(!doctype|html|head|\?xml)", re.IGNORECASE), "an HTML or XML page"),
    (re.compile(rb"version https://git-lfs"), "a Git LFS pointer, not the file it points to"),
    (re.compile(rb".{8}\{", re.DOTALL), "a safetensors file"),
    (re.compile(rb"PK\x03\x04"), "a PyTorch checkpoint or another zip archive"),
    (re.compile(rb"\x80[\x02-\x05]"), "a Python pickle, such as an old PyTorch checkpoint"),
    (re.compile(rb"\x1f\x8b"), "gzip data"),
    (re.compile(rb"\x28\xb5\x2f\xfd"), "zstandard data"),
    (re.compile(rb"tjgg|lmgg|fmgg|algg"), "a GGML file from before GGUF; convert it"),
    (re.compile(rb"\s*[\[{]"), "a JSON document"),
)


def check_magic(head: bytes, content_type: str = "") -> None:
    """Raise UnsupportedFormat unless ``head``, the first bytes of a file, begins a GGUF."""
    if b"GGUF".startswith(head[:4]):
        return
    what = next((name for pattern, name in _SIGNATURES if pattern.match(head)), "")
    if not what:
        what = f"an unknown format that starts with {head[:8]!r}"
    served = f" (served as {content_type[:64]})" if content_type else ""
    hint = _CONVERT if what.endswith(("safetensors file", "checkpoint", "archive")) else ""
    raise FetchError(
        "UnsupportedFormat", f"the source is {what}{served}, not a GGUF model file{hint}"
    )
