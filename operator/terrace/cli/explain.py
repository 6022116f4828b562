"""``terrace explain``: why a model or a pool is as it is, and what to type next.

Owns: the options, exit codes. Does not own: reading (``explain_scene.py``), finding out
(``explain_model.py``, ``explain_pool.py``), printing (``explain_text.py``).
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path  # noqa: TC003 - typer reads the annotations
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from terrace.api.names import Key
from terrace.cli.errors import EXIT_NO, InputError
from terrace.cli.explain_model import explain_model
from terrace.cli.explain_pool import explain_pool
from terrace.cli.explain_scene import model_scene, pool_scene
from terrace.cli.explain_text import story_document, story_lines
from terrace.cli.screen import show, width_of

if TYPE_CHECKING:
    from terrace.cli.reader import ClusterReader
    from terrace.cli.walk import Story

_KINDS = {
    "im": "im",
    "inferencemodel": "im",
    "inferencemodels": "im",
    "ipool": "ipool",
    "inferencepool": "ipool",
    "inferencepools": "ipool",
}


def explain(
    what: Annotated[
        str,
        typer.Argument(
            metavar="im/NAME|ipool/NAME",
            help="An InferenceModel or an InferencePool.",
            show_default=False,
        ),
    ],
    namespace: Annotated[
        str | None,
        typer.Option("--namespace", "-n", help="Default: the one of your kubeconfig's context."),
    ] = None,
    kubeconfig: Annotated[
        Path | None, typer.Option(help="Default: $KUBECONFIG or ~/.kube/config.")
    ] = None,
    kube_context: Annotated[str | None, typer.Option(help="Context of the kubeconfig.")] = None,
    is_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Say why an object is as it is: what is done, what is stuck, and what to type next.

    Follows a model's walk: file, facts, placement, plan, children, replicas, names, gateway. Where
    it is not placed, the planner judges each flavor on the live nodes. It only reads, and says what
    you may not read.

    Exit codes: 0 it is Ready, 1 it is not, 2 there is no such object, 3 the cluster does not
    answer.
    """
    kind, name = parse_object(what)
    from terrace.cli.cluster import KubeReader  # noqa: PLC0415 - its client takes a second

    reader = KubeReader.connect(kubeconfig, kube_context)
    story = story_of(reader, kind, Key(namespace or reader.namespace, name))
    if is_json:
        typer.echo(json.dumps(story_document(story), indent=2))
    else:
        console = Console(highlight=False)
        width = width_of(console)
        show(console, story_lines(story, width), width)
    if not story.is_ready:
        raise typer.Exit(EXIT_NO)


def parse_object(text: str) -> tuple[str, str]:
    """``im/NAME`` or ``ipool/NAME``; a bare name is a model's."""
    kind, slash, name = text.partition("/")
    if not slash:
        kind, name = "im", text
    known = _KINDS.get(kind.partition(".")[0].lower())
    if known is None or not name or "/" in name:
        raise InputError(f"{text}: must be im/NAME or ipool/NAME, and -n NAMESPACE")
    return known, name


def story_of(reader: ClusterReader, kind: str, key: Key) -> Story:
    """The story of one object. Raises CommandError."""
    if kind == "ipool":
        return explain_pool(pool_scene(reader, key))
    return explain_model(model_scene(reader, key, datetime.now(UTC)))
