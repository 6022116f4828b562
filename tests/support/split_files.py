"""Splits a model as llama-gguf-split does: parts with split.* keys, tensors in their order."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import gguf
import numpy as np

from support.gguf_files import model_file

if TYPE_CHECKING:
    from pathlib import Path


def split_model(prefix: Path, count: int, **changes: Any) -> list[Path]:
    """The parts of a small model, ``PREFIX-00001-of-0000N.gguf`` and so on."""
    whole = model_file(prefix.with_suffix(".whole.gguf"), **changes)
    return split_file(whole, prefix, count)


def split_file(
    whole: Path, prefix: Path, count: int, *, is_first_empty: bool = False, **lies: int
) -> list[Path]:
    """Parts of the GGUF at ``whole``; ``lies`` overwrite split keys (no, count, tensors_count)."""
    reader = gguf.GGUFReader(whole)
    architecture = str(reader.fields["general.architecture"].contents())
    groups: list[list[Any]] = [[] for _ in range(count)]
    filled = groups[1:] if is_first_empty else groups
    for index, tensor in enumerate(reader.tensors):
        filled[index * len(filled) // len(reader.tensors)].append(tensor)
    paths = []
    for number, group in enumerate(groups):
        path = prefix.with_name(f"{prefix.name}-{number + 1:05d}-of-{count:05d}.gguf")
        writer = gguf.GGUFWriter(path, architecture)
        if number == 0:
            _copy_keys(reader, writer)
        writer.add_uint16("split.no", lies.get("no", number))
        writer.add_uint16("split.count", lies.get("count", count))
        writer.add_int32("split.tensors.count", lies.get("tensors_count", len(reader.tensors)))
        for tensor in group:
            writer.add_tensor(tensor.name, np.array(tensor.data), raw_dtype=tensor.tensor_type)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        paths.append(path)
    return paths


def _copy_keys(reader: Any, writer: Any) -> None:
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name == "general.architecture":
            continue
        sub_type = field.types[-1] if len(field.types) > 1 else None
        writer.add_key_value(name, field.contents(), field.types[0], sub_type=sub_type)
