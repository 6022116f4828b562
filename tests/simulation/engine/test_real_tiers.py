"""The demo model under everything at once: whose cells are whose, whatever moves where.

Only a right KV cache can tell a secret word that stood in the prompt, so a lost, doubled or foreign
cell shows as a wrong answer.
"""

from __future__ import annotations

import contextlib
import random
import signal
import subprocess
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from support.engine_builders import GREEDY, Answer, Clock, conversations, runtime_config
from support.waiting import wait_for
from terrace_runtime.backend.llama import LlamaBackend
from terrace_runtime.engine.core import EngineCore
from terrace_runtime.engine.intake import make_sequence
from terrace_runtime.engine.request import PromptPart, Request, SamplingParams
from terrace_runtime.engine.tiers import Tiers

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from terrace_runtime.contract import RuntimeConfig

TYPES = pytest.mark.parametrize("types", [("f16", "f16"), ("q8_0", "q4_0")], ids="-".join)
LAYOUTS = pytest.mark.parametrize("layout", ["split", "unified"])
COLORS = ("red", "blue", "green", "white", "yellow", "silver", "golden", "purple")
ANIMALS = ("dog", "cat", "fox", "bear", "owl", "goat", "llama", "horse")


def config(layout: str, types: tuple[str, str] = ("f16", "f16"), **changes: Any) -> RuntimeConfig:
    kv = {"host_bytes": 6 << 20, "block_tokens": 32, **changes.pop("kv", {})}
    values: dict[str, Any] = {
        "context_tokens": 2048,
        "parallel": 4,
        "batch_tokens": 512,
        "prefill_tokens": 256,
        "kv_unified": layout == "unified",
        "kv_key_type": types[0],
        "kv_value_type": types[1],
        "threads": 2,
    }
    return runtime_config(kv=kv, **values | changes)


class Engine:
    """A core on the real model, driven as the runner drives it.

    On its clock nothing takes any time. So whatever is stored is restored, however long a busy disk
    takes: whether that pays has tests of its own.
    """

    def __init__(self, settings: RuntimeConfig) -> None:
        self.settings = settings
        self.backend = LlamaBackend()
        self.backend.load(settings)
        clock = Clock()
        self.tiers = Tiers(self.backend, settings, clock=clock)
        self.core = EngineCore(self.backend, settings, self.tiers, clock=clock, draw_seed=lambda: 1)
        self.answers: dict[str, Answer] = {}

    def submit(self, requests: Iterable[Request]) -> None:
        for request in requests:
            sequence = make_sequence(request, self.backend, self.core.table, self.settings)
            self.core.prepare(sequence)
            self.core.add(sequence)
            self.answers[request.id] = Answer()

    def step(self) -> bool:
        """False when nothing is left to do."""
        for output in self.core.step():
            self.answers[output.id].add(output)
        return self.core.has_work

    def run(self) -> dict[str, Answer]:
        wait_for("every request ends", lambda: not self.step(), timeout=300, every=0)
        while self.core.chore():
            pass
        return self.answers

    def close(self) -> None:
        self.tiers.close(20)
        self.backend.close()


def needles() -> list[tuple[str, Request, str]]:
    """The longest verified conversations: id, request and answer."""
    found = sorted(conversations(), key=lambda one: -sum(len(part.text) for part in one.prompt))
    return [(f"n{n}", one.request(f"n{n}"), one.answer) for n, one in enumerate(found[:34])]


def wrong(answers: dict[str, Answer], cases: list[tuple[str, Request, str]]) -> list[str]:
    return [name for name, _, answer in cases if answers[name].text != answer]


@LAYOUTS
@TYPES
def test_verified_answers_survive_spilling_a_restart_and_restoring(
    layout: str, types: tuple[str, str], tmp_path: Path
) -> None:
    disk = {"disk_bytes": 256 << 20, "disk_path": str(tmp_path), "prefetch_bytes": 1 << 20}
    cases = needles()
    for life in ("first", "second"):
        engine = Engine(config(layout, types, kv=disk))
        engine.submit(request for _, request, _ in cases)
        answers = engine.run()
        report = engine.core.report(0).cache
        engine.close()
        assert wrong(answers, cases) == []
        if life == "second":
            tiers = {tier.name: tier for tier in report.tiers}
            assert report.restores >= 30
            assert tiers["disk"].hits > 100
            assert sum(answer.ends[0].num_cached_tokens for answer in answers.values()) > 8000


def copies(case: tuple[str, Request, str], count: int) -> list[tuple[str, Request, str]]:
    """The same conversation, asked by so many at once."""
    name, request, answer = case
    renamed = [replace(request, id=f"{name}c{number}") for number in range(count)]
    return [(one.id, one, answer) for one in renamed]


@TYPES
def test_verified_answers_survive_changes_of_the_layout(types: tuple[str, str]) -> None:
    engine = Engine(config("split", types, parallel=16, kv_auto=True))
    longest, *cases = needles()
    drawn = replace(longest[1], id="drawn", sampling=SamplingParams(seed=3, temperature=1.0))
    waves = (cases[:2], copies(longest, 24), cases[2:32])
    for number, wave in enumerate(waves):
        engine.submit(request for _, request, _ in wave)
        if number == 1:
            engine.submit([drawn])
        # The next ones come while these run.
        for _ in range(12):
            engine.step()
    answers = engine.run()
    report = engine.core.report(0).cache
    engine.close()
    assert wrong(answers, [case for wave in waves for case in wave]) == []
    assert report.layout_changes >= 2
    alone = Engine(config("split", types, parallel=16, kv={"host_bytes": 0}))
    alone.submit([drawn])
    assert answers["drawn"].text == alone.run()["drawn"].text
    alone.close()


@LAYOUTS
@TYPES
def test_verified_answers_survive_that_others_begin_meanwhile(
    layout: str, types: tuple[str, str]
) -> None:
    """Streams that are ahead of their readers rest in the host tier, to the token."""
    engine = Engine(config(layout, types, parallel=2, kv={"host_bytes": 32 << 20}))
    cases = needles()
    engine.submit(replace(request, stream=True) for _, request, _ in cases)
    answers = engine.run()
    report = engine.core.report(0).cache
    engine.close()
    assert wrong(answers, cases) == []
    assert report.parks >= 10


def secret(number: int, chance: random.Random, tenant: str) -> tuple[Request, str]:
    """A request with a word of its own, and its right answer."""
    word = f"{chance.choice(COLORS)} {chance.choice(ANIMALS)}"
    story = "Once upon a time there was a tired alpaca named Ines. " * chance.choice([0, 0, 1])
    text = f"The secret word is {word}. Remember it. {story}\nWhat is the secret word?"
    parts = (
        PromptPart("<|im_start|>user\n", special=True),
        PromptPart(text),
        PromptPart("<|im_end|>\n<|im_start|>assistant\n", special=True),
    )
    request = Request(
        id=f"r{number}",
        prompt=parts,
        sampling=GREEDY,
        tenant=tenant,
        priority=chance.choice([0, 0, 1]),
        max_tokens=8,
        add_bos=False,
    )
    return request, f"The secret word is {word}."


def secrets_in(text: str) -> set[str]:
    """Colors and animals that a text names."""
    return {*COLORS, *ANIMALS} & set(text.replace(".", " ").split())


@pytest.mark.timeout(300)
@LAYOUTS
def test_ten_thousand_requests_of_several_tenants_leak_no_secret_word(
    layout: str, tmp_path: Path
) -> None:
    """Half of them in each layout; room for a fraction of them in each tier."""
    chance = random.Random(layout)
    tenants = ("a", "b", "c", "d")
    kv = {
        "host_bytes": 1 << 20,
        "block_tokens": 8,
        "disk_bytes": 64 << 20,
        "disk_path": str(tmp_path),
        "prefetch_bytes": 1 << 18,
    }
    engine = Engine(config(layout, kv=kv, parallel=16, context_tokens=256))
    expected: dict[str, tuple[Request, str]] = {}
    for number in range(5000):
        request, answer = secret(number, chance, chance.choice(tenants))
        expected[request.id] = request, answer
        engine.submit([request])
        if chance.random() < 0.03:
            engine.core.abort(request.id)
            del expected[request.id]
        while engine.core.stats.waiting > 20:
            engine.step()
    answers = engine.run()
    tiers = {tier.name: tier for tier in engine.core.report(0).cache.tiers}
    engine.close()
    # The model itself errs now and then: what it says alone is the measure.
    odd = [name for name, (_, answer) in expected.items() if answers[name].text != answer]
    assert len(odd) < len(expected) / 10
    reference = Engine(config("split", parallel=1, context_tokens=256, kv={"host_bytes": 0}))
    reference.submit(expected[name][0] for name in odd)
    alone = reference.run()
    reference.close()
    # Sums in another order may tip a doubtful word, but never to one that stood elsewhere.
    leaks = {
        name: (answers[name].text, alone[name].text, expected[name][1])
        for name in odd
        if secrets_in(answers[name].text)
        - secrets_in(alone[name].text)
        - secrets_in(expected[name][1])
    }
    assert leaks == {}
    assert tiers["host"].evictions > 100, "the host tier was too large to be of use here"
    assert tiers["disk"].hits > 0


SPILLER = """
import sys
sys.path[:0] = {path!r}
from test_real_tiers import Engine, config, needles
engine = Engine(config("split", kv={kv!r}))
while True:
    engine.submit(request for _, request, _ in needles())
    print("spilling", flush=True)
    engine.run()
    engine.answers.clear()
    engine.core.prefix.residents.drop_all()
"""


def test_after_kill_9_while_spilling_what_is_restored_is_right(tmp_path: Path) -> None:
    folder = tmp_path / "kv"
    kv = {
        "host_bytes": 2 << 20,
        "disk_bytes": 64 << 20,
        "disk_path": str(folder),
        "prefetch_bytes": 1 << 20,
    }
    chance = random.Random(9)
    cases = needles()[:12]
    here = __file__.rsplit("/", 1)[0]
    script = SPILLER.format(path=[here, *sys.path], kv=kv)
    for _ in range(3):
        command = [sys.executable, "-c", script]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None
            assert child.stdout.readline() == "spilling\n"
            _wait_for_bytes(folder, chance.randrange(1, 6) << 20)
            child.send_signal(signal.SIGKILL)
        engine = Engine(config("split", kv=kv))
        engine.submit(request for _, request, _ in cases)
        answers = engine.run()
        engine.close()
        assert wrong(answers, cases) == []


def _wait_for_bytes(folder: Path, num_bytes: int) -> None:
    def size() -> int:
        return sum(map(bytes_of, folder.glob("**/*")))

    wait_for("the disk fills", lambda: size() > num_bytes, timeout=60, every=0.01)


def bytes_of(file: Path) -> int:
    """0 of one that left meanwhile."""
    with contextlib.suppress(FileNotFoundError):
        return file.stat().st_size if file.is_file() else 0
    return 0
