"""Guessing ahead: n-grams while text is copied, and a draft model, against the same without.

Owns: spec-ngram and spec-draft, on the demo model, whose text means something. A story that is
asked for again is copied from the conversation, word for word where the model remembers it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import terrace_runtime
from bench.cases.case import Case
from bench.comparison import Contest, compare, play_plan
from bench.load import Ask, Plan, User
from bench.servers import Setting, engine_report, terrace
from bench.verdict import Metric, Sample, lost

if TYPE_CHECKING:
    from collections.abc import Callable

    from bench.comparison import Options, Start
    from bench.load import Answer
    from bench.verdict import Line

DEMO = Path(terrace_runtime.__file__).parent / "demo"
NGRAM = Metric("spec-ngram", "tokens/s", 1.3)
DRAFT = Metric("spec-draft", "tokens/s", 1.1)
NAMES = ("Inti", "Luna", "Pacha", "Vera", "Sami", "Killa")
STORY_TOKENS = 220


def _story(name: str) -> Ask:
    return Ask(f"Tell me a story about a llama named {name}.", STORY_TOKENS)


def _told_again(options: Options) -> Plan:
    """One user who asks for the same story again and again."""
    name = NAMES[0]
    asks = tuple(_story(name) for _ in range(options.pick(6, 3)))
    return Plan((User(asks, keeps_history=True),), ignore_eos=False, is_chat=True)


def _told_once(options: Options) -> Plan:
    """One user who asks for a story about everybody."""
    asks = tuple(_story(name) for name in NAMES[: options.pick(len(NAMES), 3)])
    return Plan((User(asks),), ignore_eos=False, is_chat=True)


def _is_copy(answer: Answer) -> bool:
    return answer.turn > 0


def _speculation(
    metric: Metric,
    plan: Plan,
    counts: Callable[[Answer], bool],
    told: dict[str, object],
    options: Options,
) -> list[Line]:
    """Tokens per second of those answers that count, with speculation and without."""
    reports: list[dict[str, object]] = []

    def start(changes: dict[str, object]) -> Start:
        setting = Setting(DEMO / "chat.gguf", 2, 2048, changes=changes)
        return lambda folder: terrace(setting, folder, unified=options.is_unified)

    def play(port: int, seed: int, limit_s: float) -> Sample:
        result = play_plan(port, plan, limit_s)
        answers = [answer for answer in result.answers if counts(answer)]
        tokens = sum(answer.tokens for answer in answers)
        report = engine_report(port)["speculation"]
        if report["mode"] != "off":
            reports.append(report)
        return {metric.id: tokens / sum(one.end_s - one.start_s for one in answers)}

    contest = Contest(
        (metric,), start({"speculation": told}), {"ours without speculation": start({})}, play
    )
    (line,) = compare(contest, options)
    if line["ours"] is not None and not reports:
        # Two servers without it differ by noise, which must not pass for a gain.
        line = lost(metric, f"the runtime was told {told} and reports that it does not guess")
    return [{**line, "speculation": reports[-1] if reports else None}]


def _ngram(options: Options) -> list[Line]:
    return _speculation(NGRAM, _told_again(options), _is_copy, {"mode": "ngram"}, options)


def _draft(options: Options) -> list[Line]:
    told: dict[str, object] = {"mode": "draft", "draft_path": str(DEMO / "draft.gguf")}
    (line,) = _speculation(DRAFT, _told_once(options), lambda _: True, told, options)
    report = line["speculation"]
    is_off = report is not None and not report["is_active"] and bool(report["reason"])
    return [{**line, "ok": line["ok"] or is_off}]


CASES = (
    Case((NGRAM.id,), _ngram),
    Case((DRAFT.id,), _draft),
)
