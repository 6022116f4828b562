"""Long prompts: what one does to streams that run, and how fast it is computed alone.

Owns: itl-under-prefill and context-32k. The newcomer of the first comes when every running stream
has got its first tokens; its own first token ends the round.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from bench import plans
from bench.cases.case import Case
from bench.comparison import Contest, RoundFailedError, compare, peers, play_plan
from bench.models import model_file
from bench.servers import Setting
from bench.verdict import Metric, Sample, percentile

if TYPE_CHECKING:
    from bench.comparison import Options
    from bench.load import Round
    from bench.verdict import Line

RUNNING = 4
LONG_TOKENS = 8000
MOST_TOKENS = 2000
"""Of a running stream: more than it can get before the newcomer's first token."""
BEFORE_TOKENS = 16
ITL = Metric("itl-under-prefill", "ms", 0.25, less_is_better=True)
TTFT = Metric("itl-under-prefill-ttft", "ms", 1.2, less_is_better=True)
CONTEXT = Metric("context-32k", "tokens/s", 0.98)
CONTEXT_TOKENS = 32_768
CONTEXT_MODEL = "tiny-q8_0"
"""16M parameters: 32k tokens of a 150M model take two cores longer than a round may."""


def gaps_while_waiting(result: Round) -> list[float]:
    """Gaps of the running streams that lie, at least in part, in the newcomer's wait.

    Raises RoundFailedError when a stream ended meanwhile.
    """
    late = result.answers[-1]
    arrived, first = late.start_s, late.times[0]
    if any(not answer.is_cut for answer in result.answers[:-1]):
        raise RoundFailedError("a running stream ended before the newcomer's first token")
    return [
        after - before
        for answer in result.answers[:-1]
        for before, after in itertools.pairwise(answer.times)
        if after > arrived and before < first
    ]


def _under_prefill(options: Options) -> list[Line]:
    prompt = options.pick(LONG_TOKENS, 2000)
    setting = Setting(model_file("mid-q4_0"), RUNNING + 1, options.pick(8192, 3072))

    def play(port: int, seed: int, limit_s: float) -> Sample:
        plan = plans.newcomer(RUNNING, BEFORE_TOKENS, prompt, MOST_TOKENS, seed)
        result = play_plan(port, plan, limit_s)
        gaps = gaps_while_waiting(result)
        return {
            ITL.id: 1000 * percentile(gaps, 99),
            TTFT.id: 1000 * result.answers[-1].first_token_s,
            "itl_p50_ms": 1000 * percentile(gaps, 50),
            "gaps": len(gaps),
        }

    # Told nothing, llama-server starts with 4 slots: the newcomer would wait for one, not compute.
    rivals = peers(setting, *("np", "np-kvu")[: options.pick(2, 1)])
    contest = Contest((ITL, TTFT), options.ours(setting), rivals, play)
    return compare(contest, options)


def _long_context(options: Options) -> list[Line]:
    # One less than the context holds beside the token that is generated.
    prompt = options.pick(CONTEXT_TOKENS, 4096) - 64
    setting = Setting(model_file(CONTEXT_MODEL), 1, options.pick(CONTEXT_TOKENS, 4096))

    def play(port: int, seed: int, limit_s: float) -> Sample:
        result = play_plan(port, plans.at_once(1, prompt, 1, seed), limit_s)
        return {CONTEXT.id: prompt / result.first_token_s[0], "prompt_tokens": prompt}

    contest = Contest((CONTEXT,), options.ours(setting), options.best(setting), play)
    return compare(contest, options)


CASES = (
    Case((ITL.id, TTFT.id), _under_prefill),
    Case((CONTEXT.id,), _long_context),
)
