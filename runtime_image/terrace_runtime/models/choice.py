"""Which files of a repository are the model that is asked for. Pure.

Owns: the choice by name, by quantisation tag or by our order of preference, and what is said where
there is none: candidates, or the formats that are there and how to convert them.
Next: ``hub`` makes URLs of the names.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, NoReturn

from terrace_runtime.models.errors import FetchError
from terrace_runtime.models.split import SplitName, part_paths, split_name

if TYPE_CHECKING:
    from collections.abc import Sequence

    from terrace_runtime.contract import FileRole
    from terrace_runtime.models.sources import HubSource

PREFERRED: Final = (
    "Q4_K_M",
    "Q4_K_S",
    "Q4_0",
    "MXFP4",
    "Q5_K_M",
    "Q6_K",
    "Q8_0",
    "BF16",
    "F16",
)
"""Tried in this order where a repository holds several models and the source names none."""
_FORMATS: Final = (
    ("safetensors", (".safetensors",)),
    ("PyTorch", (".bin", ".pt", ".pth", ".ckpt")),
    ("ONNX", (".onnx",)),
    ("TensorFlow", (".h5", ".msgpack", ".tflite")),
    ("MLX", (".npz",)),
)
_SHOWN: Final = 8
_PROJECTOR: Final = re.compile(r"(^|[-_./])mmproj", re.IGNORECASE)
_ASIDE: Final = re.compile(r"(^|[-_./])(mmproj|imatrix)", re.IGNORECASE)
"""Files beside a model that are none."""


def choose(source: HubSource, names: Sequence[str], role: FileRole) -> tuple[str, ...]:
    """Names of the parts of the one file that ``source`` asks for; raises FetchError."""
    if source.file:
        return _named(source, names, role)
    if role == "projector":
        return (_projector(source, names),)
    firsts = [name for name in names if _is_candidate(name)]
    if not firsts:
        _refuse_formats(source.repo, names)
    if source.quant:
        chosen, of_it = _tagged(firsts, source.quant), f" with the tag {source.quant}"
    else:
        # Adapters of one repository differ in what they do, not in how they are quantised.
        chosen, of_it = firsts if role == "adapter" else _preferred(firsts), ""
    if len(chosen) != 1:
        number = str(len(chosen)) if chosen else ("no" if of_it else "several")
        _list(source.repo, f"{number} GGUF models{of_it}", chosen or firsts)
    return _parts(source.repo, chosen[0], names)


def _projector(source: HubSource, names: Sequence[str]) -> str:
    """The projector beside a model: the one with the model's tag, or the only one that is there.

    Unlike models, it is not preferred by how it is quantised: several of them ask to be named.
    """
    found = _projectors(names)
    if not found:
        raise FetchError(
            "NotFound",
            f"{source.repo} holds no projector (a GGUF file with mmproj in its name); name the "
            f"file as hf://OWNER/REPO/FILE. It holds {_some(sorted(names)) or 'nothing'}",
        )
    tagged = _tagged(found, source.quant) if source.quant else []
    if len(tagged) == 1 or len(found) == 1:
        return (tagged if len(tagged) == 1 else found)[0]
    of_it = f", {len(tagged) or 'none'} with the tag {source.quant}" if source.quant else ""
    raise FetchError(
        "NotFound",
        f"{source.repo} holds {len(found)} projectors{of_it}; name one as hf://{source.repo}/FILE: "
        f"{_some(sorted(tagged or found))}",
    )


def _projectors(names: Sequence[str]) -> list[str]:
    return [name for name in names if name.lower().endswith(".gguf") and _PROJECTOR.search(name)]


def _named(source: HubSource, names: Sequence[str], role: FileRole) -> tuple[str, ...]:
    if source.file not in names:
        found = [name for name in names if _is_candidate(name)]
        if role == "projector":
            found = _projectors(names) or found
        if not found:
            _refuse_formats(source.repo, names)
        _list(source.repo, f"no file {source.file[:200]}", found)
    if not source.file.lower().endswith(".gguf"):
        _refuse_formats(source.repo, [source.file])
    return _parts(source.repo, source.file, names)


def _parts(repo: str, first: str, names: Sequence[str]) -> tuple[str, ...]:
    wanted, there = part_paths(first), frozenset(names)
    missing = [name for name in wanted if name not in there]
    if missing:
        raise FetchError(
            "NotFound", f"{repo} lacks {len(missing)} parts of {first}: {_some(missing)}"
        )
    return wanted


def _is_candidate(name: str) -> bool:
    if not name.lower().endswith(".gguf") or _ASIDE.search(name):
        return False
    split = _split(name)
    return split is None or split.number == 1


def _split(name: str) -> SplitName | None:
    try:
        return split_name(name)
    except FetchError:
        return None  # A name that no part can have is a file of its own, refused once it is read.


def _tagged(names: Sequence[str], tag: str) -> list[str]:
    """Those that carry ``tag`` in their file name, else in their folder's.

    Names with UD- before the tag (Unsloth's dynamic variants) count only where no plain one is.
    """
    for not_before in ("(?<!UD-)", ""):
        tagged = re.compile(
            rf"(?<![A-Za-z0-9]){not_before}{re.escape(tag)}(?![A-Za-z0-9_])", re.IGNORECASE
        )
        for part in (2, 0):
            found = [name for name in names if tagged.search(name.rpartition("/")[part])]
            if found:
                return found
    return []


def _preferred(names: list[str]) -> list[str]:
    if len(names) == 1:
        return names
    for tag in PREFERRED:
        found = _tagged(names, tag)
        if found:
            return found
    return []


def _list(repo: str, what: str, names: Sequence[str]) -> NoReturn:
    raise FetchError(
        "NotFound",
        f"{repo} holds {what}; name one as hf://{repo}/FILE or hf://{repo}:TAG. "
        f"GGUF files there: {_some(sorted(names))}",
    )


def _refuse_formats(repo: str, names: Sequence[str]) -> NoReturn:
    found, formats = [], []
    for format_name, endings in _FORMATS:
        of_it = [name for name in names if name.lower().endswith(endings)]
        if of_it:
            formats.append(format_name)
            found += of_it
    if not found:
        files = _some(sorted(names)) if names else "nothing"
        raise FetchError("UnsupportedFormat", f"{repo} holds no GGUF model file; it holds {files}")
    raise FetchError(
        "UnsupportedFormat",
        f"{repo} holds no GGUF but {' and '.join(formats)} files ({_some(found)}). Name a "
        "repository with GGUF files, or convert: download it, run llama.cpp's "
        "convert_hf_to_gguf.py FOLDER --outfile model.gguf, and serve that file from "
        "pvc://, s3://, oci:// or https://",
    )


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(name[-120:] for name in names[:_SHOWN]) + more
