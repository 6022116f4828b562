"""What ``terrace plan`` shows people: every profile, where its bytes go, and why.

Owns: words and columns. Does not own: the terminal (``screen.py``), the sums
(``bytes_by_place.py``). Pure.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from terrace.cli.bytes_by_place import Place, places
from terrace.cli.profiles import chosen_row
from terrace.cli.screen import Line
from terrace.planner.nodes import format_bytes
from terrace.planner.placement import Placement

if TYPE_CHECKING:
    from terrace.cli.profiles import Row, Target
    from terrace_runtime.contract import ModelFacts, ProjectorFacts

TABLE_WIDTH = 80
"""Below, each profile is a paragraph."""
_TEN = 10
_CELL_WIDTH = 10
_UNITS = ("KiB", "MiB", "GiB", "TiB", "PiB", "EiB")
_MILLION, _BILLION, _TRILLION = 10**6, 10**9, 10**12
_COLUMNS = ("WEIGHTS", "KV", "COMPUTE", "TIERS", "OTHER", "TOTAL")


def plan_lines(
    facts: ModelFacts,
    target: Target,
    rows: tuple[Row, ...],
    width: int,
    projector: ProjectorFacts | None = None,
) -> list[Line]:
    """The whole answer in ``width`` columns."""
    lines = [Line(model_words(facts), "bold", indent=2)]
    if projector is not None:
        lines.append(Line(f"projector: {projector_words(projector)}", indent=2))
    lines.append(Line(target.title, indent=2))
    lines += [Line(f"note: {note}", "yellow", indent=6) for note in target.notes]
    lines.append(Line())
    if width >= TABLE_WIDTH:
        lines.append(Line(_heading(), "dim", is_table=True))
    for row in rows:
        lines += _row_lines(facts, row, is_table=width >= TABLE_WIDTH)
    lines += _problems(rows)
    return lines + _reasons(chosen_row(rows))


def model_words(facts: ModelFacts) -> str:
    """The model file in a line."""
    kind = [facts.architecture]
    if facts.parameters:
        kind.append(f"{count_words(facts.parameters)} parameters")
    if facts.quantization:
        kind.append(facts.quantization)
    if facts.experts:
        kind.append(f"{facts.experts_used} of {facts.experts} experts")
    kind += [
        f"{facts.layer_count} layers",
        f"trained for {facts.context_length:,} tokens",
        format_bytes(facts.file_bytes),
    ]
    named = f"{facts.name}: " if facts.name else ""
    return named + ", ".join(kind)


def projector_words(facts: ProjectorFacts) -> str:
    """The projector in a line."""
    named = f"{facts.name}: " if facts.name else ""
    kind = [
        facts.projector_type,
        f"{count_words(facts.parameters)} parameters",
        *([facts.quantization] if facts.quantization else []),
        f"pieces of {facts.image_size} x {facts.image_size} pixels",
        *([f"up to {facts.max_pieces} of an image"] if facts.max_pieces > 1 else []),
        f"rows of {facts.output_length:,} values",
        format_bytes(facts.file_bytes),
    ]
    return named + ", ".join(kind)


def count_words(count: int) -> str:
    """8,030,261,312 as ``8.0 B``."""
    if count >= _TRILLION:
        return f"{count / _TRILLION:.1f} T"
    if count >= _BILLION:
        return f"{count / _BILLION:.1f} B"
    return f"{count / _MILLION:.1f} M"


def speed_words(tokens_per_second: float) -> str:
    """An estimate, so two digits."""
    if tokens_per_second < _TEN:
        return f"{tokens_per_second:.1f}"
    digits = len(str(int(tokens_per_second)))
    return f"{round(tokens_per_second, 2 - digits):,.0f}"


def _heading() -> str:
    return "  PROFILE     WHERE " + "".join(f"{name:>10}" for name in _COLUMNS)


def _row_lines(facts: ModelFacts, row: Row, *, is_table: bool) -> list[Line]:
    mark = "*" if row.is_chosen else " "
    style = "bold" if row.is_chosen else ""
    result = row.result
    if not isinstance(result, Placement):
        missing = result.missing_bytes
        more = f", {format_bytes(missing)} are missing" if missing else f": {result.reason}"
        words = f"{mark} {row.profile:<11} does not fit{more}"
        return [Line(words, "red" if row.is_chosen else "dim", indent=14)]
    found = places(result.plan)
    if is_table:
        heads = [f"{mark} {row.profile:<11} ", *[" " * 14] * (len(found) - 1)]
        table = [
            Line(f"{head}{_cells(place)}", style, is_table=True)
            for head, place in zip(heads, found, strict=True)
        ]
        return [*table, Line(f"{' ' * 14}{_size_words(facts, result)}", "dim", indent=14)]
    paragraph = [Line(f"{mark} {row.profile}: {_size_words(facts, result)}", style, indent=4)]
    return paragraph + [Line(f"    {_place_words(place)}", indent=6) for place in found]


def _parts(place: Place) -> tuple[int, ...]:
    return (
        place.weights_bytes,
        place.kv_bytes,
        place.compute_bytes,
        place.tiers_bytes,
        place.other_bytes,
        place.total_bytes,
    )


def _cells(place: Place) -> str:
    cells = (_cell(part) if part else "-" for part in _parts(place))
    return f"{place.name:<6}" + "".join(f"{cell:>10}" for cell in cells)


def _cell(count: int) -> str:
    """As ``format_bytes``, in nine columns: 1013.5 MiB would touch its neighbour."""
    text = format_bytes(count)
    if len(text) < _CELL_WIDTH:
        return text
    larger = _UNITS[_UNITS.index(text[-3:]) + 1]
    return f"{count / 1024 ** (_UNITS.index(larger) + 1):.1f} {larger}"


def _place_words(place: Place) -> str:
    named = zip(_COLUMNS[:-1], _parts(place)[:-1], strict=True)
    parts = ", ".join(f"{name.lower()} {format_bytes(part)}" for name, part in named if part)
    return f"{place.name} {format_bytes(place.total_bytes)}: {parts}"


def _size_words(facts: ModelFacts, placement: Placement) -> str:
    plan, speed = placement.plan, placement.tokens_per_second
    device = plan.device
    types = {plan.kv_key_type, plan.kv_value_type}
    cells = f"{plan.kv_key_type} keys, {plan.kv_value_type} values"
    words = [
        f"{plan.parallel} x {plan.context_tokens:,} tokens",
        *([f"about {speed_words(speed)} tokens/s"] if speed else []),
        f"{plan.kv_key_type} cells" if len(types) == 1 else cells,
        f"weights {plan.weights}",
        f"{plan.threads} threads" if plan.threads > 1 else "1 thread",
    ]
    if device is not None:
        matrices = "experts" if facts.experts else "feed-forward matrices"
        experts = device.expert_layers_on_host
        where = "the device" if device.count == 1 else f"{device.count} devices"
        words.insert(1, f"{device.device_layers - 1} of {device.layers} layers on {where}")
        words[1] += f" ({matrices} of {experts} on the host)" if experts else ""
    return ", ".join(words)


def _problems(rows: tuple[Row, ...]) -> list[Line]:
    lines: list[Line] = []
    seen: dict[str, list[str]] = {}
    for row in rows:
        if not isinstance(row.result, Placement):
            seen.setdefault(row.result.message, []).append(row.profile)
    for message, profiles in seen.items():
        who = f"{', '.join(profiles)} {'does' if len(profiles) == 1 else 'do'} not fit"
        who = "No profile fits" if len(profiles) == len(rows) else who
        lines += [Line(), Line(f"{who}: {message}", indent=2)]
    return lines


def _reasons(row: Row) -> list[Line]:
    if not isinstance(row.result, Placement):
        return []
    head = [Line(), Line(f"Why {row.profile}, on flavor {row.result.flavor.name}:", "bold")]
    return head + [Line(f"  - {reason}", indent=4) for reason in row.result.plan.reasons]
