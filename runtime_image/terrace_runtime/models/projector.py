"""From a GGUF header to ProjectorFacts: what encoding an image takes, and for which model. Pure.

Owns: which projectors are refused, what each family's output is as wide as, and how large the
pieces are that it encodes at once. Does not own: reading bytes (``gguf_header``), the families'
names (``projector_families``), whether it fits a model (``planner/refusals.py``).
Where a number cannot be known exactly it is too large, never too small. The rules follow
``tools/mtmd/clip.cpp`` of llama.cpp 0c1e570. Next: ``inspect_child``.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final, NoReturn

from terrace_runtime.contract import ProjectorFacts
from terrace_runtime.models.errors import FetchError
from terrace_runtime.models.metadata import MAX_LAYERS, Keys, invalid_model
from terrace_runtime.models.projector_families import FAMILIES, OTHER_PLACED, Family

if TYPE_CHECKING:
    from collections.abc import Sequence

    from terrace_runtime.models.gguf_header import Header, Tensor

_MAX_SIDE: Final = 8192
"""Pixels of a side that llama.cpp takes."""
_MAX_PATCHES: Final = 2**20
_MAX_PIECES: Final = 256
_AUDIO_POSITIONS: Final = 1500
"""Positions of 30 seconds of sound, which a projector for both encodes when it is opened."""


def projector_facts(headers: Sequence[Header], digest: str) -> ProjectorFacts:
    """Facts of a projector in one file; raises FetchError when it is none, or none for us."""
    header, keys = headers[0], Keys(headers[0].metadata)
    if len(headers) > 1 or keys.raw("split.count") not in {None, 1}:
        _refuse("split into parts; merge them with llama-gguf-split --merge")
    if keys.architecture != "clip":
        _refuse_other_kinds(keys)
    name = _projector_type(keys)
    family = _family(name)
    image_size, patch_size = _sides(keys)
    merge, output = _merge(keys, family, image_size), _output_length(header.tensors, family)
    has_audio = keys.get("has_audio_encoder") is True
    positions = _AUDIO_POSITIONS if has_audio else 1
    patches = _patches(keys, family, merge, image_size, patch_size)
    rows = family.most_rows or max(1, patches // merge**2)
    return ProjectorFacts(
        digest=digest,
        file_bytes=header.file_bytes,
        projector_type=name,
        name=_printable(keys.text("general.name")),
        quantization=_main_type(header.tensors),
        parameters=sum(tensor.elements for tensor in header.tensors),
        weight_bytes=sum(tensor.num_bytes for tensor in header.tensors),
        image_size=image_size,
        patch_size=patch_size,
        max_patches=max(positions, patches),
        max_pieces=_pieces(keys, family, image_size),
        embedding_length=_widest(keys, "embedding_length", has_audio=has_audio),
        feed_forward_length=_widest(keys, "feed_forward_length", has_audio=has_audio),
        heads=_bounded(keys, "vision.attention.head_count", 4096),
        layers=_bounded(keys, "vision.block_count", MAX_LAYERS),
        output_length=output,
        max_rows=rows,
        rows_at_once=0 if _is_causal(family, output) else rows,
    )


def _refuse_other_kinds(keys: Keys) -> NoReturn:
    kind = keys.text("general.type")
    if kind == "adapter":
        _refuse("a LoRA adapter (name it under spec.adapters) and not a multimodal projector")
    if kind == "imatrix":
        _refuse("an importance matrix and not a multimodal projector")
    _refuse(
        f"a whole model (architecture {keys.architecture}) and not a multimodal projector: name "
        "the mmproj file beside the model, and a model as spec.source or spec.draft"
    )


def _projector_type(keys: Keys) -> str:
    """The kind of its vision part; raises FetchError where it has none."""
    if keys.get("has_vision_encoder") is not True:
        sound = keys.text("clip.audio.projector_type") or keys.text("clip.projector_type")
        what = f"for sound alone ({sound[:64]})" if sound else "without a vision encoder"
        _refuse(f"a projector {what}; Terrace takes those for images")
    return keys.text("clip.projector_type") or keys.text("clip.vision.projector_type")


def _family(name: str) -> Family:
    if name in OTHER_PLACED:
        _refuse(
            f"a projector of the kind {name}, whose images have positions in two dimensions "
            "(M-RoPE) in a way that Terrace does not know; use a model of another family"
        )
    family = FAMILIES.get(name)
    if family is None:
        _refuse(
            f"a projector of the kind {name[:64]!r}, which Terrace does not know; it takes "
            f"{', '.join(sorted(FAMILIES))}"
        )
    return family


def _sides(keys: Keys) -> tuple[int, int]:
    """Pixels of a side of an image's piece and of a patch."""
    image, patch = keys.positive("vision.image_size"), keys.positive("vision.patch_size")
    if image > _MAX_SIDE or patch > image:
        invalid_model(f"its pieces of {image} pixels a side cannot be cut into patches of {patch}")
    return image, patch


def _merge(keys: Keys, family: Family, image_size: int) -> int:
    """How many patches a side become one row."""
    merge = family.merge
    if family.merge_key:
        merge = keys.number(f"vision.{family.merge_key}", merge) or merge
    if family.is_placed:
        # libmtmd takes two for given, so that an image of another size would end the process.
        merge = keys.number("vision.spatial_merge_size", merge)
    if merge > image_size or (family.is_placed and merge != family.merge):
        invalid_model(f"it joins {merge} x {merge} patches into one row")
    return merge


def _is_causal(family: Family, output: int) -> bool:
    return family.causal_widths is None or output in family.causal_widths


def _patches(keys: Keys, family: Family, merge: int, image_size: int, patch_size: int) -> int:
    """Patches of the largest piece that is encoded at once."""
    if family.takes_larger_patches:
        patch_size, merge = patch_size * merge, 1
    count = _parts(image_size, patch_size) ** 2
    if family.most_rows:
        count = family.most_rows * merge**2
    elif family.longest_key:
        longest = keys.number(f"vision.{family.longest_key}", image_size) or image_size
        count = max(count, _parts(longest, patch_size) ** 2)
    elif family.has_most_pixels:
        count = max(count, keys.positive("vision.image_max_pixels") // patch_size**2)
    if family.aligns_slices:
        # Slices are as large as a square one, but each side is rounded to whole patches.
        count += count // 8
    if count > _MAX_PATCHES:
        invalid_model(f"a piece of an image would have {count} patches")
    # One position more for the class token that some begin with.
    return count + 1


def _pieces(keys: Keys, family: Family, image_size: int) -> int:
    """Pieces that the largest image is cut into, its overview among them."""
    count = family.most_pieces
    if family.tiles_key:
        count = keys.number(f"vision.{family.tiles_key}", count - 1) + 1
    if family.tiles_longest_key:
        longest = keys.positive(f"vision.{family.tiles_longest_key}")
        count = _parts(longest, image_size) ** 2 + 1
    pinpoints = keys.per_layer("vision.image_grid_pinpoints", 0, 0) if family.has_grid else []
    for width, height in zip(pinpoints[::2], pinpoints[1::2], strict=False):
        count = max(count, _parts(width, image_size) * _parts(height, image_size) + 1)
    if not 1 <= count <= _MAX_PIECES:
        invalid_model(f"an image would be cut into {count} pieces; {_MAX_PIECES} are the most")
    return count


def _parts(length: int, of: int) -> int:
    """How many parts cover a length, the last one cut off."""
    return -(-length // of)


def _widest(keys: Keys, key: str, *, has_audio: bool) -> int:
    """Of its vision part, or of the one for sound where that is wider."""
    own = _bounded(keys, f"vision.{key}", 2**20)
    return max(own, keys.number(f"audio.{key}", 0)) if has_audio else own


def _bounded(keys: Keys, key: str, most: int) -> int:
    value = keys.positive(key)
    if value > most:
        invalid_model(f"clip.{key} is {value}; {most} is the most")
    return value


def _output_length(tensors: Sequence[Tensor], family: Family) -> int:
    """Values of one image row, by the shape of the tensor that makes it."""
    shapes = {tensor.name: tensor.shape for tensor in tensors}
    widths = [
        shapes[name][dimension]
        for name, dimension in family.outputs
        if len(shapes.get(name, ())) > dimension
    ]
    if not widths:
        wanted = " or ".join(name for name, _ in family.outputs)
        invalid_model(f"the projector has no tensor {wanted}, which makes the model's rows")
    begin, end = family.stack
    stacked = sum(bool(begin) and name.startswith(begin) and name.endswith(end) for name in shapes)
    return widths[0] * (1 + stacked)


def _main_type(tensors: Sequence[Tensor]) -> str:
    sizes = Counter[str]()
    for tensor in tensors:
        sizes[tensor.type.name] += tensor.num_bytes
    return sizes.most_common(1)[0][0] if sizes else ""


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else " " for c in text)[:128]


def _refuse(what: str) -> NoReturn:
    raise FetchError("UnsupportedFormat", f"the file under spec.projector is {what}")
