"""One streamed chat answer with openai-python, printed as it comes, with its speed.

Owns: the client side of the demo. Does not own: anything of the server.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


def stream_answer(base_url: str, model: str, question: str, console: Console) -> str:
    """Ask, print tokens as they come, then time to first token and tokens/s; return the answer."""
    # Imported here because it takes a second, which `terrace local status` should not pay.
    from openai import OpenAI  # noqa: PLC0415

    # The gateway hears by itself that a model is ready; till then it says when to ask again.
    client = OpenAI(base_url=base_url, api_key="none", timeout=60, max_retries=5)
    start = time.perf_counter()
    first: float | None = None
    pieces: list[str] = []
    tokens = 0
    stream = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": question}],
        temperature=0,
        max_tokens=128,
        stream=True,
        stream_options={"include_usage": True},
    )
    console.print("    ", end="")
    for chunk in stream:
        if chunk.usage is not None:
            tokens = chunk.usage.completion_tokens
        text = chunk.choices[0].delta.content if chunk.choices else None
        if text:
            first = first if first is not None else time.perf_counter() - start
            pieces.append(text)
            console.print(text, end="", markup=False)
    total = time.perf_counter() - start
    answer = "".join(pieces)
    if not answer or first is None:
        raise RuntimeError(f"the model {model!r} answered with nothing")
    console.print()
    # Over the whole request: tokens that queue behind the first one would flatter any other count.
    console.print(
        f"    first token after {first * 1000:.0f} ms, {tokens} tokens in {total * 1000:.0f} ms, "
        f"{tokens / total:.0f} tokens/s"
    )
    return answer
