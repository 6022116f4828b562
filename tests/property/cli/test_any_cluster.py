"""Explaining never fails: whatever is missing, forbidden or half done in the cluster."""

from __future__ import annotations

import json
from contextlib import suppress

from hypothesis import given, settings
from hypothesis import strategies as st

from support.cli_cluster import FakeReader
from support.cli_situations import SITUATIONS
from terrace.api.names import Key
from terrace.cli.errors import InputError
from terrace.cli.explain import story_of
from terrace.cli.explain_text import story_document, story_lines
from terrace.cli.node_shape import NodeShape, parse_shape
from terrace.cli.walk import State
from terrace.controller.kinds import (
    CONFIGMAP,
    EVENT,
    JOB,
    MODEL,
    NODE,
    POD,
    POOL,
    SERVICE,
    STATEFULSET,
)

KINDS = (CONFIGMAP, EVENT, JOB, MODEL, NODE, POD, POOL, SERVICE, STATEFULSET)
SOME_KINDS = st.sets(st.sampled_from(KINDS))
STEPS = ["file", "facts", "placement", "plan", "children", "replicas", "names", "gateway"]


@settings(deadline=None, max_examples=150)
@given(
    st.sampled_from(sorted(SITUATIONS)),
    st.sets(st.integers(0, 15)),
    SOME_KINDS,
    SOME_KINDS,
    st.integers(44, 140),
)
def test_every_view_of_a_cluster_has_a_story(
    situation: str,
    lost: set[int],
    forbidden: set[object],
    forbidden_everywhere: set[object],
    width: int,
) -> None:
    objects = SITUATIONS[situation]()
    kept = [each for number, each in enumerate(objects) if number == 0 or number not in lost]
    reader = FakeReader(kept)
    reader.forbidden = {kind for kind in KINDS if kind in forbidden and kind != MODEL}
    reader.forbidden_everywhere = {kind for kind in KINDS if kind in forbidden_everywhere}
    story = story_of(reader, "im", Key("default", "demo"))
    names = [step.name for step in story.steps]
    assert [name for name in names if name not in ("operator", "spec")] == STEPS
    assert json.dumps(story_document(story))
    assert len(story_lines(story, width)) > len(STEPS)
    # Whoever may not read something is told so; nobody else is.
    missed = reader.forbidden | reader.forbidden_everywhere
    assert bool(story.gaps) <= bool(missed)
    for step in story.steps:
        assert step.summary
        assert (step.state is State.STUCK) <= bool(step.command or step.name == "gateway")


@given(st.one_of(st.text(max_size=40), st.from_regex(r"cpu=.{1,8},memory=.{1,8},gpu=.{1,20}")))
def test_words_are_a_node_or_bad_input(text: str) -> None:
    with suppress(InputError):
        shape = parse_shape(text)
        assert isinstance(shape, NodeShape)
        assert shape.cpu_millis > 0
        assert shape.memory_bytes > 0
