"""``terrace explain``: one golden text per situation that a user may be in, and its exit code."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from support.cli_cluster import (
    FakeReader,
    claim,
    model,
    nodes,
    parts,
    pool,
)
from support.cli_situations import SITUATIONS, crash_loop, no_node_fits, ready
from support.controller_objects import node, projector_facts
from terrace.api.names import Key
from terrace.cli.errors import InputError, NoAnswerError
from terrace.cli.explain import parse_object, story_of
from terrace.cli.explain_text import story_document, story_lines
from terrace.cli.screen import wrapped
from terrace.controller.facts import KnownProjector, projector_status
from terrace.controller.kinds import EVENT, MODEL, NODE, POD, STATEFULSET, Kind, Manifest
from terrace.controller.port import NotFoundError, UnavailableError

if TYPE_CHECKING:
    from terrace.cli.walk import Story

GOLDEN = Path(__file__).parent / "golden"
WIDTH = 100
DEMO = Key("default", "demo")
_NUMBER = re.compile(r"\d[\d.,]*")
PLANNED = {"no_node_fits", "preempted", "pending_plan"}
"""What the planner says of live nodes is held by its own tests."""
_VERDICT = re.compile(r"flavor cpu: context.*?(?= flavor big)|(?<=was made: ).*?(?= Why)")


IS_READY = {"ready", "name_conflict", "pending_plan", "scaled_to_zero"}


def told(story: Story, width: int = WIDTH) -> str:
    """The text; sizes that the planner says are its own business."""
    lines = [
        text
        for line in story_lines(story, width)
        for text in ([line.text] if line.is_table else wrapped(line.text, width, line.indent))
    ]
    return "\n".join(line.rstrip() for line in lines) + "\n"


@pytest.mark.parametrize("situation", SITUATIONS)
def test_each_situation_reads_as_it_did(situation: str) -> None:
    story = story_of(FakeReader(SITUATIONS[situation]()), "im", DEMO)
    text = told(story)
    if situation in PLANNED:
        text = _VERDICT.sub("(the planner's words)", " ".join(text.split()))
        text = _NUMBER.sub("N", text) + "\n"
    path = GOLDEN / f"explain_{situation}.txt"
    if os.environ.get("TERRACE_GOLDEN") == "write":
        path.write_text(text)
    assert text == path.read_text()
    assert story.is_ready is (situation in IS_READY)


@pytest.mark.parametrize("situation", sorted(set(SITUATIONS) - {"ready", "spec_changed"}))
def test_whoever_is_stuck_is_told_what_to_type(situation: str) -> None:
    story = story_of(FakeReader(SITUATIONS[situation]()), "im", DEMO)
    assert story.next_command.startswith(("kubectl ", "terrace "))


def test_a_ready_model_has_nothing_left_to_type() -> None:
    assert story_of(FakeReader(ready()), "im", DEMO).next_command == ""


def test_what_may_not_be_read_is_said_and_the_rest_is_told() -> None:
    reader = FakeReader(no_node_fits())
    reader.forbidden = {NODE, EVENT}
    reader.forbidden_everywhere = {POD, STATEFULSET}
    story = story_of(reader, "im", DEMO)
    text = told(story)
    assert "NoNodeFits" in text
    assert "the nodes may not be read" in text
    gaps = "\n".join(story.gaps)
    assert "nodes of the cluster" in gaps
    assert "pods in other namespaces" in gaps
    assert len(story.gaps) == len(set(story.gaps))


def test_replicas_of_the_own_namespace_are_told_without_rights_elsewhere() -> None:
    reader = FakeReader(ready())
    reader.forbidden_everywhere = {POD, STATEFULSET}
    text = told(story_of(reader, "im", DEMO))
    assert "demo-cpu-0 on node-a: ready" in text


def test_a_model_that_is_not_there_is_bad_input() -> None:
    with pytest.raises(InputError, match="kubectl get im -n default"):
        story_of(FakeReader([]), "im", DEMO)


def test_a_model_that_may_not_be_read_is_no_answer() -> None:
    reader = FakeReader(ready())
    reader.forbidden = {MODEL}
    with pytest.raises(NoAnswerError, match="may not be read"):
        story_of(reader, "im", DEMO)


def test_a_server_that_is_gone_is_no_answer() -> None:
    class Gone(FakeReader):
        def get(self, kind: Kind, key: Key) -> Manifest:
            raise UnavailableError(
                f"{self.server} does not answer: refused, asked for {kind} {key}"
            )

    with pytest.raises(NoAnswerError, match="does not answer"):
        story_of(Gone([]), "im", DEMO)


def test_a_stored_spec_of_any_shape_is_explained() -> None:
    kind, found = model({"Stalled": ("True", "InvalidSpec", "spec.colour: not known")})
    found["spec"] = {"source": "odd", "poolRef": ["x"], "servedNames": 3}
    story = story_of(FakeReader([(kind, found), *nodes(), *parts()]), "im", DEMO)
    assert "InvalidSpec: spec.colour" in told(story)
    assert story.next_command == "kubectl edit im demo -n default"


def test_the_document_for_programs_has_every_step_once() -> None:
    document = story_document(story_of(FakeReader(crash_loop()), "im", DEMO))
    assert json.loads(json.dumps(document)) == document
    steps = {step["name"]: step for step in document["steps"]}
    order = "file facts placement plan children replicas names gateway"
    assert " ".join(steps) == order
    assert steps["replicas"]["state"] == "stuck"
    assert steps["replicas"]["reason"] == "Crashing"
    assert document["next"].endswith("demo-cpu-0 --previous --tail=50")
    assert document["ready"] is False


@pytest.mark.parametrize("width", [44, 60, 80])
def test_a_narrow_terminal_is_kept(width: int) -> None:
    story = story_of(FakeReader(ready()), "im", DEMO)
    lines = told(story, width).splitlines()
    # Addresses and commands stay whole, to be copied.
    assert max(len(line) for line in lines if "http" not in line) <= width


def test_what_a_pod_says_cannot_control_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    from rich.console import Console  # noqa: PLC0415 - only here

    from terrace.cli.screen import Line, show  # noqa: PLC0415 - as above

    show(Console(), [Line("a \x1b[31mred\x1b[0m [bold]b[/bold]\x07")], 80)
    assert capsys.readouterr().out == "a ?[31mred?[0m [bold]b[/bold]?\n"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("im/demo", ("im", "demo")),
        ("demo", ("im", "demo")),
        ("inferencemodel.terrace.dev/demo", ("im", "demo")),
        ("ipool/gpus", ("ipool", "gpus")),
        ("InferencePool/gpus", ("ipool", "gpus")),
    ],
)
def test_objects_are_named_as_kubectl_names_them(text: str, found: tuple[str, str]) -> None:
    assert parse_object(text) == found


@pytest.mark.parametrize("text", ["pod/x", "im/", "im/a/b", "/x"])
def test_other_objects_are_bad_input(text: str) -> None:
    with pytest.raises(InputError, match="must be im/NAME or ipool/NAME"):
        parse_object(text)


def test_a_pool_tells_its_flavors_claim_and_models() -> None:
    far = node("node-b", labels={"flavor": "big"}, ready=False)
    objects = [*ready(), claim(), (NODE, far)]
    objects = [each for each in objects if each[0].kind != "InferencePool"]
    reader = FakeReader([*objects, pool(flavors=("cpu", "big"))])
    story = story_of(reader, "ipool", Key("default", "default"))
    text = told(story)
    path = GOLDEN / "explain_pool.txt"
    if os.environ.get("TERRACE_GOLDEN") == "write":
        path.write_text(text)
    assert text == path.read_text()
    assert story.is_ready


def test_a_pool_whose_replicas_have_their_own_claims_waits_for_none() -> None:
    kind, mine = pool()
    mine["spec"]["modelCache"] = {"sharing": "PerReplica", "size": "3Gi"}
    objects = [each for each in ready() if each[0].kind != "InferencePool"]
    story = story_of(FakeReader([*objects, (kind, mine)]), "ipool", Key("default", "default"))
    (step,) = (each for each in story.steps if each.name == "cache")
    assert step.summary == "each replica has a claim of its own, 3Gi"


def test_an_operator_that_is_down_is_told_although_the_status_is_fresh() -> None:
    objects = [each for each in ready() if each not in parts()]
    story = story_of(FakeReader([*objects, *parts(operator_ready=False)]), "im", DEMO)
    assert story.steps[0].summary.startswith("no operator pod is ready")
    assert story.next_command == "kubectl get pods -A -l app.kubernetes.io/name=terrace"


def test_a_cluster_without_terrace_is_told_so() -> None:
    class Bare(FakeReader):
        def get(self, kind: Kind, key: Key) -> Manifest:
            raise NotFoundError(
                f"{kind.path(key.namespace)}: 404 the server could not find the requested resource"
            )

    with pytest.raises(InputError, match="Terrace is not installed there"):
        story_of(Bare([]), "im", DEMO)


def test_the_plan_to_type_asks_for_what_the_spec_asks_for() -> None:
    (kind, found), *others = no_node_fits()
    found["spec"] |= {
        "source": {"uri": "hf://o/r:Q4_K_M"},
        "context": {"length": 4096, "parallel": 2},
        "offload": {"profile": "HostHeavy", "kvTypes": {"key": "q8_0"}, "maxDisk": "8Gi"},
        "projector": {"uri": "hf://o/r:f16"},
        "draft": {"uri": "hf://o/d; rm"},
    }
    story = story_of(FakeReader([(kind, found), *others]), "im", DEMO)
    assert story.next_command == (
        "terrace plan hf://o/r:Q4_K_M --pool default/default --context 4096 --parallel 2 "
        "--profile HostHeavy --kv-types q8_0,f16 --max-disk 8Gi --projector hf://o/r:f16 "
        "--draft 'hf://o/d; rm'"
    )


def test_a_model_with_a_projector_is_told_to_take_images() -> None:
    objects = ready()
    found = next(each for kind, each in objects if kind.kind == "InferenceModel")
    known = KnownProjector(projector_facts(), "/models/p.gguf")
    status = projector_status(known).model_dump(mode="json", by_alias=True)
    found["status"]["projector"] = status
    story = story_of(FakeReader(objects), "im", DEMO)
    (step,) = (each for each in story.steps if each.name == "facts")
    (detail,) = (each for each in step.details if each.startswith("takes images: "))
    assert "idefics3" in detail
    assert "rows of 256 values" in detail
