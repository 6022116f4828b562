"""Templates out of model files: rendered as Hugging Face does, stopped when they misbehave."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import time
from typing import TYPE_CHECKING

import pytest

from support.runtime_http import SPECIAL
from terrace_runtime.api.chat_template import TemplateRenderer
from terrace_runtime.api.content_parts import Turn
from terrace_runtime.api.errors import ApiError
from terrace_runtime.engine.request import ModelInfo, PromptPart

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

TURNS = [Turn("user", ("Hi",))]


@contextlib.asynccontextmanager
async def renderer(template: str, render_s: float = 60.0) -> AsyncIterator[TemplateRenderer]:
    info = ModelInfo(
        context_tokens=256,
        parallel=1,
        vocabulary=10,
        threads=1,
        chat_template=template,
        bos="<s>",
        eos="</s>",
        special_tokens=SPECIAL,
    )
    found = TemplateRenderer(info, render_s=render_s)
    try:
        yield found
    finally:
        await found.close()


async def text(template: str, turns: list[Turn] = TURNS) -> str:
    async with renderer(template) as found:
        parts = await found.render(turns)
        return "".join(part.text for part in parts if isinstance(part, PromptPart))


async def failure(template: str) -> ApiError:
    async with renderer(template) as found:
        with pytest.raises(ApiError) as caught:
            await found.render(TURNS)
        return caught.value


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{{ bos_token }}{{ messages[0]['content'] }}{{ eos_token }}", "<s>Hi</s>"),
        ("{% if true %}\n  x\n  {% endif %}\ny", "  x\ny"),
        ("{% for i in [1,2,3] %}{% if i == 2 %}{% continue %}{% endif %}{{ i }}{% endfor %}", "13"),
        ("{% for i in [1,2,3] %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}", "1"),
        ("{{ {'b': '<é>', 'a': 1} | tojson }}", '{"b": "<é>", "a": 1}'),
        ("{{ {'a': 1} | tojson(indent=2) }}", '{\n  "a": 1\n}'),
        ("{% generation %}x{% endgeneration %}y", "xy"),
        ("{% if tools %}a{% else %}b{% endif %}{{ add_generation_prompt }}", "bTrue"),
        ("{{ '' | attr('__class__') | attr('__base__') | list }}", "[]"),
        ("{{ nothing }}|{{ nothing is defined }}", "|False"),
    ],
)
async def test_templates_render_as_they_do_elsewhere(template: str, expected: str) -> None:
    assert await text(template) == expected


async def test_a_date_is_todays() -> None:
    years = {str(dt.datetime.now(dt.UTC).year + step) for step in (-1, 0, 1)}
    assert await text("{{ strftime_now('%Y') }}") in years


async def test_a_model_without_a_template_gets_chatml() -> None:
    async with renderer("") as found:
        assert found.is_default
        assert await found.render(TURNS) == (
            PromptPart("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n", special=True),
        )


async def test_a_refusal_of_the_template_is_the_clients_error() -> None:
    error = await failure("{{ raise_exception('roles must alternate') }}")
    assert (error.status, error.param) == (400, "messages")
    assert "roles must alternate" in str(error)


@pytest.mark.parametrize(
    "template",
    [
        "{% if",
        "{{ 1 / 0 }}",
        "{{ messages.append(1) }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os.system('id') }}",
        "{{ '{0.__class__.__mro__}'.format(1) }}",
        "{% include '/etc/passwd' %}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        "{{ range(10 ** 12) | list }}",
        "{{ 'x' * 10 ** 10 }}",
        "{% for i in range(90000) %}{{ 'x' * 1000 }}{% endfor %}",
        "{{ " + "(" * 50_000 + "1" + ")" * 50_000 + " }}",
        "{% if 1 %}" * 50_000 + "{% endif %}" * 50_000,
    ],
    ids=lambda template: template[:30],
)
async def test_a_hostile_template_is_an_error_and_nothing_else(template: str) -> None:
    error = await failure(template)
    assert (error.status, error.code) == (500, "chat_template_error")


async def test_a_template_without_end_is_killed_and_the_next_request_is_served() -> None:
    endless = (
        "{% if messages[0].content == 'loop' %}"
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
        "{% endif %}ok"
    )
    async with renderer(endless, render_s=0.3) as found:
        assert await found.start() == ""
        began = time.monotonic()
        with pytest.raises(ApiError, match="longer than"):
            await found.render([Turn("user", ("loop",))])
        assert time.monotonic() - began < 30, "the loop would take minutes"
        found._render_s = 60.0
        assert await found.render(TURNS) == (PromptPart("ok", special=True),)


async def test_a_client_that_leaves_while_its_template_renders_disturbs_nobody() -> None:
    slow = (
        "{% if messages[0].content == 'slow' %}"
        "{% for i in range(300) %}{% for j in range(3000) %}{% endfor %}{% endfor %}{% endif %}"
        "{{ messages[0].content }}"
    )
    async with renderer(slow) as found:
        await found.start()
        leaving = asyncio.create_task(found.render([Turn("user", ("slow",))]))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        leaving.cancel()
        turns = [[Turn("user", (f"c{i}",))] for i in range(20)]
        answers = await asyncio.gather(*(found.render(turn) for turn in turns))
    assert answers == [(PromptPart(f"c{i}", special=True),) for i in range(20)]


async def test_start_says_what_is_wrong_with_a_template() -> None:
    async with renderer("{% if") as found:
        assert "TemplateSyntaxError" in await found.start()
    async with renderer("ok") as found:
        assert await found.start() == ""


PARTS_ALONE = (
    "{% for message in messages %}{{ message.role | capitalize }}: "
    "{% for line in message.content %}{% if line.type == 'text' %}{{ line.text }}"
    "{% elif line.type == 'image' %}<image>{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
)
EITHER = (
    "{% for message in messages %}{% if message.content is string %}[{{ message.content }}]"
    "{% else %}{% for part in message.content %}({{ part.text }}){% endfor %}{% endif %}"
    "{% endfor %}"
)
SHOWN = [Turn("system", ("Look.",)), Turn("user", ("what is ", 0, " beside", 1, "?"))]


async def test_a_template_that_takes_parts_alone_gets_parts() -> None:
    async with renderer(PARTS_ALONE) as found:
        assert await found.render(TURNS) == (PromptPart("User: Hi<|im_end|>\n", special=True),)
        assert await found.render(SHOWN) == (
            PromptPart("System: Look.<|im_end|>\nUser: what is ", special=True),
            0,
            PromptPart(" beside", special=True),
            1,
            PromptPart("?<|im_end|>\n", special=True),
        )


async def test_a_template_that_takes_either_gets_text() -> None:
    async with renderer(EITHER) as found:
        assert await found.render(SHOWN) == (
            PromptPart("[Look.][what is ", special=True),
            0,
            PromptPart(" beside", special=True),
            1,
            PromptPart("?]", special=True),
        )


@pytest.mark.parametrize(
    "template",
    [
        "{{ messages[0].content }}",
        "{{ messages[1].content }}{{ messages[1].content }}",
        "{{ messages[1].content | truncate(20) }}",
    ],
)
async def test_a_template_that_loses_or_doubles_an_image_is_named(template: str) -> None:
    async with renderer(template) as found:
        with pytest.raises(ApiError, match=r"chat template shows . of the 2 images") as caught:
            await found.render(SHOWN)
    assert (caught.value.status, caught.value.param) == (400, "messages")
