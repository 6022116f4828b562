"""The headers of a model that lies in several files, as one.

Owns: the checks that parts belong together: each number once, each tensor once, all that the first
promises. Does not own: the names of parts (``split``), getting them, or what the header means
(``facts``). Pure. Next: ``facts``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

from terrace_runtime.models.errors import FetchError
from terrace_runtime.models.gguf_header import MAX_TENSORS, Header

if TYPE_CHECKING:
    from collections.abc import Sequence


def part_count(header: Header) -> int:
    """Files that the model is split into, by the header of one of them."""
    return _number(header, "split.count", 1) or 1


def joined(headers: Sequence[Header]) -> Header:
    """One header of all parts, given in order: metadata of the first and everybody's tensors.

    Its ``file_bytes`` is their sum. Raises FetchError when they are not all parts of one model.
    """
    first = headers[0]
    count = part_count(first)
    if count == 1 and len(headers) == 1:
        return first
    if count != len(headers):
        _refuse(f"the model is split into {count} files, and {len(headers)} are here")
    for index, header in enumerate(headers):
        number, claimed = _number(header, "split.no", 0), part_count(header)
        if (number, claimed) != (index, count):
            _refuse(
                f"file {index + 1} of {count} calls itself part {number + 1} of {claimed}; "
                "parts must be given in order, each once"
            )
    tensors = tuple(tensor for header in headers for tensor in header.tensors)
    names = {tensor.name for tensor in tensors}
    promised = _number(first, "split.tensors.count", len(tensors))
    if len(names) != len(tensors) or len(tensors) != promised or promised > MAX_TENSORS:
        _refuse(
            f"its parts hold {len(tensors)} tensors with {len(names)} names, and the first part "
            f"promises {promised}"
        )
    total = sum(header.file_bytes for header in headers)
    return Header(first.version, first.metadata, tensors, first.data_start, total)


def _number(header: Header, key: str, default: int) -> int:
    value = header.metadata.get(key, default)
    if not isinstance(value, int) or not 0 <= value < 2**31:
        _refuse(f"{key} is {value!r}, not a number from 0 to 2^31")
    return value


def _refuse(what: str) -> NoReturn:
    raise FetchError("InvalidModel", f"the parts of the model do not fit: {what}")
