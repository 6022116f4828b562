"""Work that repeats: a beginning that many requests share, and conversations that go on.

Owns: shared-cold and shared-warm, the same on a model with sliding windows, and turns-32. Wherever
two requests begin alike, or a prompt carries what was said before, cells that are there already
need not be computed again.
"""

from __future__ import annotations

import statistics
from functools import partial
from typing import TYPE_CHECKING

from bench import plans
from bench.cases.case import Case
from bench.comparison import Contest, compare, play_plan
from bench.models import model_file
from bench.servers import Setting
from bench.verdict import Metric, Sample

if TYPE_CHECKING:
    from bench.comparison import Options
    from bench.load import Round
    from bench.verdict import Line

MODEL = "mid-q4_0"
STREAMS = 16
SHARED_TOKENS, OWN_TOKENS, GENERATED_TOKENS = 1500, 30, 32
COLD = Metric("shared-cold", "s", 0.40, less_is_better=True)
COLD_TTFT = Metric("shared-cold-ttft", "ms", 0.30, less_is_better=True)
WARM = Metric("shared-warm", "ms", 0.5, less_is_better=True)
WINDOWED = "windowed-q4_0"
WINDOW_COLD = Metric("shared-window", "s", 0.40, less_is_better=True)
WINDOW_TTFT = Metric("shared-window-ttft", "ms", 0.30, less_is_better=True)
WINDOW_WARM = Metric("shared-window-warm", "ms", 0.5, less_is_better=True)

USERS, PARALLEL = 32, 8
TURN_TOKENS = (300, 60, 60, 60, 60, 60)
TURN_GENERATED_TOKENS = 24
USERS_PER_S = 8.0
TURNS = Metric("turns-32", "ms", 0.5, less_is_better=True)


def mean_first_token_ms(result: Round) -> float:
    """Mean time to first token of all answers."""
    return 1000 * statistics.fmean(result.first_token_s)


def _shared(model: str, metrics: tuple[Metric, ...], options: Options) -> list[Line]:
    """A cold wave and, on the same servers, a warm one."""
    cold_wall, cold_first, warm_first = metrics
    shared = options.pick(SHARED_TOKENS, 512)
    setting = Setting(model_file(model), STREAMS, 2048)

    def wave(port: int, seed: int, own: int, limit_s: float) -> Round:
        plan = plans.sharing(
            STREAMS, shared, OWN_TOKENS, options.pick(GENERATED_TOKENS, 8), (seed, own)
        )
        return play_plan(port, plan, limit_s)

    def play(port: int, seed: int, limit_s: float) -> Sample:
        cold = wave(port, seed, 2 * seed + 1, limit_s)
        warm = wave(port, seed, 2 * seed + 2, limit_s)
        return {
            cold_wall.id: cold.seconds,
            cold_first.id: mean_first_token_ms(cold),
            warm_first.id: mean_first_token_ms(warm),
            "warm_s": warm.seconds,
            "cold_cached_tokens": sum(answer.cached_tokens for answer in cold.answers),
            "warm_cached_tokens": sum(answer.cached_tokens for answer in warm.answers),
        }

    contest = Contest(metrics, options.ours(setting), options.best(setting), play, restarts=True)
    return compare(contest, options)


def _sharing(model: str, *metrics: Metric) -> Case:
    return Case(tuple(one.id for one in metrics), partial(_shared, model, metrics))


def _turns(options: Options) -> list[Line]:
    users = options.pick(USERS, 12)
    turns = TURN_TOKENS[: options.pick(len(TURN_TOKENS), 3)]
    setting = Setting(model_file(MODEL), options.pick(PARALLEL, 3), 1024)

    def play(port: int, seed: int, limit_s: float) -> Sample:
        plan = plans.conversations(users, turns, TURN_GENERATED_TOKENS, USERS_PER_S, seed + 1)
        result = play_plan(port, plan, limit_s)
        return {
            TURNS.id: mean_first_token_ms(result),
            "wall_s": result.seconds,
            "prompt_tokens": sum(answer.prompt_tokens for answer in result.answers),
            "cached_tokens": sum(answer.cached_tokens for answer in result.answers),
        }

    contest = Contest((TURNS,), options.ours(setting), options.best(setting), play, restarts=True)
    return compare(contest, options)


CASES = (
    _sharing(MODEL, COLD, COLD_TTFT, WARM),
    _sharing(WINDOWED, WINDOW_COLD, WINDOW_TTFT, WINDOW_WARM),
    Case((TURNS.id,), _turns),
)
