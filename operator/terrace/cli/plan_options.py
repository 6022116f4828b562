"""The options of ``terrace plan``: their names, their help, and where the help shows them.

Owns: the words of ``--help``. Does not own: what an option does (``plan.py``).
"""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from terrace.cli.node_shape import EXAMPLE


class PlanOutput(StrEnum):
    """How ``plan`` answers."""

    TABLE = "table"
    JSON = "json"
    YAML = "yaml"


_WHERE, _WHAT, _HOW = "Where to plan", "What the model asks for", "Output"

Source = Annotated[
    str,
    typer.Argument(
        metavar="SOURCE",
        help="A GGUF file: a path, hf://OWNER/REPO[:QUANT], or https://HOST/PATH. Only the "
        "header is read; of a remote file only that is downloaded.",
        show_default=False,
    ),
]
Node = Annotated[
    str | None,
    typer.Option(
        metavar="SHAPE",
        help=f"A node in words: {EXAMPLE}, or gpu=nvidia:H100-80GB.",
        rich_help_panel=_WHERE,
    ),
]
Cluster = Annotated[
    bool,
    typer.Option(
        "--cluster",
        help="The nodes of the cluster of your kubeconfig, with what Terrace runs there.",
        rich_help_panel=_WHERE,
    ),
]
Pool = Annotated[
    str | None,
    typer.Option(
        metavar="[NS/]NAME",
        help="An InferencePool of that cluster: its flavors and settings. Implies --cluster.",
        rich_help_panel=_WHERE,
    ),
]
Accelerators = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Rows that add to the accelerator table. Default with --cluster: the operator's.",
        rich_help_panel=_WHERE,
    ),
]
Kubeconfig = Annotated[
    Path | None,
    typer.Option(help="Default: $KUBECONFIG or ~/.kube/config.", rich_help_panel=_WHERE),
]
KubeContext = Annotated[
    str | None,
    typer.Option(help="Context of the kubeconfig.", rich_help_panel=_WHERE),
]
Context = Annotated[
    int | None,
    typer.Option(help="Tokens of one conversation.", rich_help_panel=_WHAT),
]
Parallel = Annotated[
    int | None,
    typer.Option(help="Conversations at the same time.", rich_help_panel=_WHAT),
]
Profile = Annotated[
    str | None,
    typer.Option(
        help="Auto, DeviceOnly, Balanced, HostHeavy or DiskHeavy: the one that decides the "
        "exit code and -o yaml. Default: the pool's, else Auto.",
        rich_help_panel=_WHAT,
    ),
]
KvTypes = Annotated[
    str | None,
    typer.Option(
        metavar="KEY[,VALUE]", help="f16, q8_0 or q4_0, or one each.", rich_help_panel=_WHAT
    ),
]
MaxDisk = Annotated[
    str | None,
    typer.Option(metavar="SIZE", help="Disk tier, such as 20Gi.", rich_help_panel=_WHAT),
]
SpillThreshold = Annotated[
    str | None,
    typer.Option(metavar="SIZE", help="Host tier, such as 2Gi.", rich_help_panel=_WHAT),
]
Projector = Annotated[
    str | None,
    typer.Option(
        metavar="SOURCE",
        help="A multimodal projector (mmproj), for images in prompts.",
        rich_help_panel=_WHAT,
    ),
]
Draft = Annotated[
    str | None,
    typer.Option(metavar="SOURCE", help="A small model that guesses ahead.", rich_help_panel=_WHAT),
]
AllowNetwork = Annotated[
    list[str] | None,
    typer.Option(
        metavar="CIDR",
        help="Private network that SOURCE may be in. Default: the pool's allowedNetworks.",
        rich_help_panel=_WHAT,
    ),
]
WantsDigest = Annotated[
    bool,
    typer.Option(
        "--digest",
        help="Read a local SOURCE whole for its checksum, which the plan's digest covers.",
        rich_help_panel=_WHAT,
    ),
]
Output = Annotated[
    PlanOutput,
    typer.Option("--output", "-o", help="yaml: the manifests.", rich_help_panel=_HOW),
]
Json = Annotated[bool, typer.Option("--json", help="The same as -o json.", rich_help_panel=_HOW)]
WithPool = Annotated[
    bool,
    typer.Option("--with-pool", help="-o yaml: the InferencePool too.", rich_help_panel=_HOW),
]
Name = Annotated[
    str | None,
    typer.Option(help="-o yaml: name of the InferenceModel.", rich_help_panel=_HOW),
]
Uri = Annotated[
    str | None,
    typer.Option(
        help="-o yaml: spec.source.uri for a local SOURCE. Default: pvc://models/FILE.",
        rich_help_panel=_HOW,
    ),
]
