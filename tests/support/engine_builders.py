"""Builders for tests of the engine: configurations, requests, and a core on the fake backend."""

from __future__ import annotations

import asyncio
import json
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from typing_extensions import override

import terrace_runtime
from terrace_runtime.backend.fake import FakeBackend
from terrace_runtime.contract import RuntimeConfig
from terrace_runtime.engine.core import EngineCore
from terrace_runtime.engine.image_encoder import Encoded, EncodeJob, ImageEncoder, PieceEncoder
from terrace_runtime.engine.image_stage import ImageStage
from terrace_runtime.engine.inprocess import InProcessEngine
from terrace_runtime.engine.intake import check_request, make_sequence
from terrace_runtime.engine.request import (
    FinishReason,
    PromptPart,
    Request,
    RequestOutput,
    SamplingParams,
    TokenLogprobs,
)
from terrace_runtime.engine.tiers import Tiers

if TYPE_CHECKING:
    from collections.abc import Callable

    from terrace_runtime.backend import Backend
    from terrace_runtime.backend.projector import Projector
    from terrace_runtime.engine.client import EngineClient
    from terrace_runtime.kv import BlockDisk

DEMO = Path(terrace_runtime.__file__).parent / "demo"
GREEDY = SamplingParams(temperature=0)
FAKE = "terrace_runtime.backend.fake:FakeBackend"


def runtime_config(**changes: Any) -> RuntimeConfig:
    """A small engine on the demo model."""
    values: dict[str, Any] = {
        "model": "chat",
        "served_names": ("chat",),
        "model_path": str(DEMO / "chat.gguf"),
        "model_digest": "0" * 64,
        "context_tokens": 256,
        "parallel": 4,
        "batch_tokens": 64,
        "prefill_tokens": 16,
        # Tests look at each token when it is made.
        "stream_interval_s": 0,
    }
    return RuntimeConfig.model_validate(values | changes)


def text_request(name: str, text: str = "hello", **changes: Any) -> Request:
    """A greedy request for ``text``."""
    values: dict[str, Any] = {"sampling": GREEDY, "max_tokens": 24, "add_bos": False}
    return Request(id=name, prompt=(PromptPart(text),), **(values | changes))


def random_request(name: str, chance: random.Random, **changes: Any) -> Request:
    """A request with a prompt, sampling and bounds drawn from ``chance``."""
    text = "".join(chance.choice("abcdefgh é雪") for _ in range(chance.randint(1, 60)))
    heat = chance.choice([0.0, 0.7])
    values: dict[str, Any] = {
        "sampling": SamplingParams(temperature=heat, seed=chance.randrange(1000)),
        "max_tokens": chance.choice([1, 3, 20, None]),
        "stop": chance.choice([(), ("th", "llama"), ("zz",)]),
        "tenant": chance.choice(["", "a", "b"]),
        "priority": chance.choice([0, 1]),
        "stream": chance.choice([False, True]),
    }
    return text_request(name, text, **(values | changes))


@dataclass
class Clock:
    """Seconds that pass when told."""

    now: float = 0.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Answer:
    """All that one request got."""

    text: str = ""
    num_tokens: int = 0
    ends: list[RequestOutput] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    """Of each token, where they were asked for."""

    def add(self, output: RequestOutput) -> None:
        """Append an output; nothing may come after the end."""
        assert not self.ends, f"an output after the end: {output}"
        self.text += output.text
        self.num_tokens += output.num_tokens
        self.logprobs += output.logprobs
        if output.finish is not None:
            self.ends.append(output)

    @property
    def finish(self) -> FinishReason:
        """The one reason."""
        assert len(self.ends) == 1, f"{len(self.ends)} ends"
        reason = self.ends[0].finish
        assert reason is not None
        return reason

    @property
    def facts(self) -> tuple[str, int, FinishReason]:
        """What must not depend on who else runs."""
        return self.text, self.num_tokens, self.finish

    def agrees(self, other: Answer, within: float = 0.03) -> bool:
        """The same tokens with nearly the same odds, up to a choice between two equally likely.

        Cells in another order are summed in another order, and random weights tie often.
        """
        assert len(self.logprobs) == len(other.logprobs) == self.num_tokens, "ask for logprobs"
        for ours, theirs in zip(self.logprobs, other.logprobs, strict=True):
            mine = {one.piece: one.logprob for one in ours.top}
            odds = {one.piece: one.logprob for one in theirs.top}
            if any(abs(mine[piece] - odds[piece]) > within for piece in mine.keys() & odds.keys()):
                return False
            if ours.piece != theirs.piece:
                first, second = sorted(odds.values(), reverse=True)[:2]
                return first - second < 2 * within
        return True


class InlineEncoder(ImageEncoder):
    """Encodes at once on the caller's thread; while ``is_held`` nothing comes of it."""

    def __init__(self, projector: Projector) -> None:
        self._encode = PieceEncoder(projector)
        self._done: Encoded | None = None
        self.is_held = False
        self.started: list[EncodeJob] = []

    @override
    def start(self, job: EncodeJob) -> None:
        assert self._done is None, "one job at a time"
        self.started.append(job)
        self._done = self._encode(job)

    @override
    def collect(self) -> Encoded | None:
        if self.is_held:
            return None
        done, self._done = self._done, None
        return done

    @override
    def close(self) -> None:
        self._encode.close()


class CoreDriver:
    """An EngineCore on a fake backend, stepped by the test; every request is followed."""

    def __init__(
        self,
        config: RuntimeConfig,
        backend: FakeBackend | None = None,
        disk: BlockDisk | None = None,
    ) -> None:
        self.config = config
        self.backend = backend or FakeBackend()
        self.backend.load(config)
        self.clock = Clock()
        seeds = random.Random(0)
        projector = self.backend.projector
        self.encoder = InlineEncoder(projector) if projector is not None else None
        self.tiers = Tiers(self.backend, config, clock=self.clock, disk=disk)
        self.core = EngineCore(
            self.backend,
            config,
            self.tiers,
            clock=self.clock,
            draw_seed=lambda: seeds.randrange(2**31),
            images=ImageStage(self.backend, self.encoder),
        )
        self.answers: dict[str, Answer] = {}
        self.steps = 0

    def submit(self, *requests: Request) -> None:
        """Queue requests, as the intake does."""
        for request in requests:
            check_request(request, self.backend.info.vocabulary, self.config)
            sequence = make_sequence(request, self.backend, self.core.table, self.config)
            self.answers[request.id] = Answer()
            self.core.prepare(sequence)
            self.core.add(sequence)

    def step(self) -> list[RequestOutput]:
        """One step; its outputs go to their answers."""
        self.steps += 1
        self.clock.now += 0.01
        outputs = self.core.step()
        assert len({output.id for output in outputs}) == len(outputs), "one output per step"
        for output in outputs:
            self.answers[output.id].add(output)
        return outputs

    def run(self, max_steps: int = 5_000) -> dict[str, Answer]:
        """Step until nothing is left to do."""
        while self.core.has_work:
            self.step()
            assert self.steps < max_steps, "the engine does not come to an end"
        return self.answers


def alone(request: Request, config: RuntimeConfig) -> Answer:
    """What ``request`` gets from an engine of its own."""
    driver = CoreDriver(config)
    driver.submit(request)
    return driver.run()[request.id]


async def answer_of(engine: EngineClient, request: Request) -> Answer:
    """Read one request's outputs to the end."""
    answer = Answer()
    async for output in engine.submit(request):
        answer.add(output)
    return answer


@dataclass(frozen=True)
class Conversation:
    """A conversation of the demo model and its verified answer."""

    prompt: tuple[PromptPart, ...]
    answer: str

    def request(self, name: str) -> Request:
        """A greedy request for it."""
        return Request(id=name, prompt=self.prompt, sampling=GREEDY, add_bos=False)


def conversations() -> list[Conversation]:
    """The verified conversations without tools, rendered as ChatML by hand."""
    found = []
    for case in json.loads((DEMO / "verified.json").read_text()):
        messages = case["messages"]
        if case.get("tools") or any(one["role"] == "tool" for one in messages):
            continue
        prompt: list[PromptPart] = []
        for message in messages:
            prompt.append(PromptPart(f"<|im_start|>{message['role']}\n", special=True))
            prompt.append(PromptPart(message["content"]))
            prompt.append(PromptPart("<|im_end|>\n", special=True))
        prompt.append(PromptPart("<|im_start|>assistant\n", special=True))
        found.append(Conversation(tuple(prompt), case["answer"]))
    return found


async def answers_of(
    make_backend: Callable[[], Backend],
    settings: RuntimeConfig,
    *requests: Request,
    together: bool = False,
) -> list[Answer]:
    """What an engine of its own answers, one request after the other or all at once."""
    engine = InProcessEngine(settings, make_backend())
    try:
        await engine.start()
        if together:
            return list(await asyncio.gather(*(answer_of(engine, one) for one in requests)))
        return [await answer_of(engine, one) for one in requests]
    finally:
        await engine.close()
