"""A story as lines for people and as JSON for programs.

Owns: columns, colours, the document's shape. Does not own: any words of the steps. Pure.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from terrace.cli.screen import Line, wrapped
from terrace.cli.walk import State

if TYPE_CHECKING:
    from terrace.cli.walk import Step, Story

VERSION = "terrace.explain/v1"
_STYLES = {
    State.DONE: "green",
    State.WORKING: "yellow",
    State.STUCK: "bold red",
    State.WAITING: "dim",
    State.UNKNOWN: "magenta",
}


def story_lines(story: Story, width: int) -> list[Line]:
    """The whole story in ``width`` columns."""
    head = f"{story.kind}/{story.name} in namespace {story.namespace}: {story.headline}"
    lines = [Line(head, "bold", indent=2), Line()]
    name_width = max((len(step.name) for step in story.steps), default=0)
    for step in story.steps:
        lines += _step_lines(step, name_width, width)
    if story.plan_notes:
        lines.append(Line())
        lines += [Line(note, "yellow", indent=2) for note in story.plan_notes]
    if story.plan_reasons:
        lines += [Line(), Line(f"Why this plan ({story.plan_digest[:12]}):", "bold")]
        lines += [Line(f"  - {reason}", indent=4) for reason in story.plan_reasons]
    if story.gaps:
        lines += [Line(), Line("You may not read, so it is not counted here:", "magenta")]
        lines += [Line(f"  - {gap}", indent=4) for gap in story.gaps]
    if story.next_command:
        # Never wrapped: it is there to be copied.
        lines += [Line(), Line(f"Next: {story.next_command}", "bold", is_table=True)]
    return lines


def story_document(story: Story) -> dict[str, Any]:
    """The same for programs; docs/cli.md names its fields."""
    return {
        "version": VERSION,
        "object": f"{story.kind}/{story.name}",
        "namespace": story.namespace,
        "ready": story.is_ready,
        "headline": story.headline,
        "steps": [
            {
                name: [*value] if isinstance(value, tuple) else str(value)
                for name, value in asdict(step).items()
                if value
            }
            for step in story.steps
        ],
        "plan": {
            "digest": story.plan_digest,
            "reasons": [*story.plan_reasons],
            "notes": [*story.plan_notes],
        },
        "gaps": [*story.gaps],
        "next": story.next_command,
    }


def _step_lines(step: Step, name_width: int, width: int) -> list[Line]:
    head = f"  {step.state:<8} {step.name:<{name_width}}  "
    reason = f"{step.reason}: " if step.reason and step.state is not State.WAITING else ""
    style = _STYLES[step.state] if step.state in (State.STUCK, State.WORKING) else ""
    lines = [Line(f"{head}{reason}{step.summary}", style, indent=len(head))]
    for detail in step.details:
        text = wrapped(detail.strip(), width - len(head), 2)
        extra = " " * (len(detail) - len(detail.lstrip()))
        lines += [Line(f"{' ' * len(head)}{extra}{each}", is_table=True) for each in text]
    return lines
