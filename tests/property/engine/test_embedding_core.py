"""Any order of inputs, cancels and steps: everyone ends once, with a vector of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from hypothesis import given
from hypothesis import strategies as st
from typing_extensions import override

from support.engine_builders import Clock, runtime_config
from terrace_runtime.backend.fake_classes import FakeEmbedder
from terrace_runtime.engine.embedding import EmbeddingCore
from terrace_runtime.engine.intake import make_sequence
from terrace_runtime.engine.request import FinishReason, Request

if TYPE_CHECKING:
    from terrace_runtime.engine.request import RequestOutput

CONFIG = runtime_config(context_tokens=96, batch_tokens=32, request_timeout_s=50)
_ADD = st.tuples(
    st.just("add"), st.integers(1, 96), st.sampled_from(["", "a", "b"]), st.integers(0, 1)
)
_CANCEL = st.tuples(st.just("cancel"), st.integers(0, 30))
_WAIT = st.tuples(st.just("wait"), st.sampled_from([0.1, 20.0, 60.0]))
_STEP = st.tuples(st.just("step"))


class CheckedEmbedder(FakeEmbedder):
    """Looks at each batch."""

    @override
    def decode(self) -> int:
        rows = self.batch.sequences[: self.batch.size].tolist()
        assert 0 < len(rows) <= self.batch.capacity
        runs = [slot for slot, before in zip(rows, [-1, *rows], strict=False) if slot != before]
        assert len(runs) == len(set(runs)), "a slot occurs twice in a batch"
        assert max(rows) < 64
        code = super().decode()
        assert code == 0
        return code


@given(
    model_class=st.sampled_from(["encoder", "decoder"]),
    events=st.lists(st.one_of(_ADD, _ADD, _CANCEL, _WAIT, _STEP, _STEP), max_size=50),
)
def test_every_input_ends_once(
    model_class: Literal["encoder", "decoder"], events: list[tuple[object, ...]]
) -> None:
    backend, clock = CheckedEmbedder(model_class=model_class), Clock()
    backend.load(CONFIG)
    core = EmbeddingCore(backend, CONFIG, clock=clock)
    inputs: dict[str, Request] = {}
    cancelled: set[str] = set()
    ends: dict[str, RequestOutput] = {}

    def step() -> None:
        clock.now += 0.01
        for output in core.step():
            assert output.id in inputs
            assert output.id not in ends
            ends[output.id] = output

    for event in events:
        match event:
            case ("add", int(count), str(tenant), int(priority)):
                name = str(len(inputs))
                tokens = tuple((len(inputs) * 7 + i) % 250 for i in range(count))
                request = Request(
                    id=name, prompt_tokens=tokens, embed=True, tenant=tenant, priority=priority
                )
                inputs[name] = request
                core.add(make_sequence(request, backend, core.table, CONFIG))
            case ("cancel", int(number)):
                core.abort(str(number))
                cancelled.add(str(number))
            case ("wait", float(seconds)):
                clock.now += seconds
            case _:
                step()
    steps = 0
    while core.has_work:
        step()
        steps += 1
        assert steps <= 3 * len(inputs) + 1, "somebody is never served"
    assert set(ends) == set(inputs)
    assert core.stats.running == core.stats.waiting == 0
    for name, output in ends.items():
        check_end(output, inputs[name], model_class, was_cancelled=name in cancelled)


def check_end(
    output: RequestOutput,
    request: Request,
    model_class: Literal["encoder", "decoder"],
    *,
    was_cancelled: bool,
) -> None:
    if output.finish is FinishReason.STOP:
        assert output.embedding == alone(request, model_class)
        assert output.num_prompt_tokens == len(request.prompt_tokens)
    elif output.finish is FinishReason.ABORT:
        assert was_cancelled
    else:
        assert output.finish is FinishReason.TIMEOUT


def alone(request: Request, model_class: Literal["encoder", "decoder"]) -> str:
    """The vector of ``request`` from a core of its own."""
    backend = FakeEmbedder(model_class=model_class)
    backend.load(CONFIG)
    core = EmbeddingCore(backend, CONFIG, clock=Clock())
    core.add(make_sequence(request, backend, core.table, CONFIG))
    while True:
        for output in core.step():
            return output.embedding
