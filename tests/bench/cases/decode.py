"""Steady decoding: N streams at once with different prompts, and against a server of one slot.

Owns: decode-N, oneslot-N and vocab-152k. ``decode-N`` alone is the reference model, mid-q4_0, and
``decode-N/MODEL`` each model; the same with ``oneslot-N``.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from bench import plans
from bench.cases.case import Case
from bench.comparison import Contest, compare, peers, play_plan
from bench.models import model_file
from bench.servers import Setting
from bench.verdict import Metric, Sample, percentile

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from bench.comparison import Options
    from bench.load import Plan, Round
    from bench.verdict import Line

REFERENCE = "mid-q4_0"
MODELS = (REFERENCE, "mid-q8_0", "big-q4_0", "big-q8_0")
STREAMS = (1, 4, 8, 16)
PROMPT_TOKENS, GENERATED_TOKENS = 64, 128
CONTEXT_TOKENS = 256
UNIT = "tokens/s"
VOCABULARY_MODEL = "wordy-q8_0"
SAMPLED = {"temperature": 0.8, "top_k": 40, "top_p": 0.95, "min_p": 0.0}


def decode_target(streams: int, model: str) -> float:
    """Least ratio to llama-server's best variant."""
    return 1.03 if streams > 1 and model.startswith("mid") else 1.0


def oneslot_target(streams: int, model: str) -> float:
    """Least ratio to a llama-server of one slot."""
    if streams < 16:
        return 2.0
    return 3.0 if model.endswith("q4_0") else 2.5


def speeds(result: Round, name: str) -> Sample:
    """Tokens per second, and the latencies beside it."""
    return {
        name: result.tokens / result.seconds,
        "ttft_p50_ms": 1000 * percentile(result.first_token_s, 50),
        "ttft_p95_ms": 1000 * percentile(result.first_token_s, 95),
        "itl_p95_ms": 1000 * percentile(result.gaps_s, 95),
    }


def _streams(
    name: str, model: str, streams: int, target: float, variants: tuple[str, ...], options: Options
) -> list[Line]:
    setting = Setting(model_file(model), streams, CONTEXT_TOKENS)
    generated = options.pick(GENERATED_TOKENS, 32)

    def play(port: int, seed: int, limit_s: float) -> Sample:
        plan = plans.at_once(streams, PROMPT_TOKENS, generated, seed)
        return speeds(play_plan(port, plan, limit_s), name)

    rivals = peers(setting, *variants) if variants else options.best(setting)
    metric = Metric(name, UNIT, target)
    return compare(Contest((metric,), options.ours(setting), rivals, play), options)


def _case(
    kind: str,
    streams: int,
    model: str,
    target: Callable[[int, str], float],
    variants: tuple[str, ...] = (),
) -> Case:
    name = f"{kind}-{streams}/{model}"
    is_reference = model == REFERENCE

    def run(options: Options) -> Iterable[Line]:
        for line in _streams(name, model, streams, target(streams, model), variants, options):
            if is_reference:
                yield {**line, "case": f"{kind}-{streams}"}
            yield line

    ids = (f"{kind}-{streams}", name) if is_reference else (name,)
    return Case(ids, run, is_in_quick=is_reference)


def _vocabulary(options: Options) -> list[Line]:
    setting = Setting(model_file(VOCABULARY_MODEL), 16, CONTEXT_TOKENS)
    metric = Metric("vocab-152k", UNIT, 1.0)
    generated = options.pick(GENERATED_TOKENS, 32)

    def play(port: int, seed: int, limit_s: float) -> Sample:
        plan = plans.at_once(16, PROMPT_TOKENS, generated, seed)
        sampled = _sampled(plan, {**SAMPLED, "seed": seed})
        return speeds(play_plan(port, sampled, limit_s), metric.id)

    contest = Contest((metric,), options.ours(setting), options.best(setting), play)
    return compare(contest, options)


def _sampled(plan: Plan, sampling: Mapping[str, float]) -> Plan:
    return replace(plan, sampling=dict(sampling))


CASES = (
    # The reference model first: its lines are the ones that the table names.
    *(_case("decode", streams, model, decode_target) for model in MODELS for streams in STREAMS),
    *(
        _case("oneslot", streams, model, oneslot_target, ("one",))
        for model in (REFERENCE, "mid-q8_0")
        for streams in (8, 16)
    ),
    Case(("vocab-152k",), _vocabulary),
)
