"""What users do in a round: the shapes of load that the cases are made of.

Owns: prompts and plans, pure values drawn from a seed. Does not own: running them (``load.py``).
Prompts are digits, of which the benchmark models make a token each, so that counts are exact and
other seeds give prompts that share nothing.
"""

from __future__ import annotations

import random
import string
from typing import TYPE_CHECKING

from bench.load import Ask, Plan, User

if TYPE_CHECKING:
    from collections.abc import Sequence


def digits(seed: int, count: int) -> str:
    """A prompt of ``count`` tokens of the benchmark models; other seeds give other prompts."""
    return "".join(random.Random(seed).choices(string.digits, k=count))


def at_once(streams: int, prompt_tokens: int, generated_tokens: int, seed: int) -> Plan:
    """``streams`` different prompts, sent together."""
    prompts = [digits(seed * 1000 + index, prompt_tokens) for index in range(streams)]
    return _together(prompts, generated_tokens)


def sharing(
    streams: int, shared_tokens: int, own_tokens: int, generated_tokens: int, seeds: tuple[int, int]
) -> Plan:
    """``streams`` prompts with one beginning, sent together; ``seeds``: of it, of the rest."""
    shared = digits(seeds[0], shared_tokens)
    ends = [digits(seeds[1] * 1000 + index, own_tokens) for index in range(streams)]
    return _together([shared + end for end in ends], generated_tokens)


def conversations(
    users: int, turn_tokens: Sequence[int], generated_tokens: int, per_second: float, seed: int
) -> Plan:
    """``users`` who come one by one and ask ``turn_tokens`` of something, then of more and more.

    They come at random, ``per_second`` on average (a Poisson process); each prompt carries all
    that this user and the model said before.
    """
    draw = random.Random(seed)
    everybody, start_s = [], 0.0
    for index in range(users):
        asks = [
            Ask(digits(seed * 100_000 + index * 100 + turn, count), generated_tokens, count)
            for turn, count in enumerate(turn_tokens)
        ]
        everybody.append(User(tuple(asks), start_s, keeps_history=True))
        start_s += draw.expovariate(per_second)
    return Plan(tuple(everybody), timeout_s=900)


def newcomer(
    streams: int, after_events: int, prompt_tokens: int, most_tokens: int, seed: int
) -> Plan:
    """One long prompt that comes while ``streams`` run; its first token ends the round."""
    running = at_once(streams, 64, most_tokens, seed).users
    late = Ask(digits(seed * 1000 + streams, prompt_tokens), 1, prompt_tokens)
    last = User((late,), after_events=after_events, ends_round=True)
    return Plan((*running, last), timeout_s=600)


def _together(prompts: Sequence[str], generated_tokens: int) -> Plan:
    return Plan(tuple(User((Ask(prompt, generated_tokens, len(prompt)),)) for prompt in prompts))
