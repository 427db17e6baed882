"""Chat templates: the same texts as transformers makes, within bounds of time and of size."""

from __future__ import annotations

import itertools
import json
import tracemalloc
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from asurge.errors import ChatTemplateError
from asurge.text import Allowance, Tokenizer, render_chat
from asurge.text.template import MAX_CHARACTERS, TEMPLATE_TIMEOUT_S, TemplateLimitError, render_template
from tests.text.families import FAMILIES

INNER = PreTrainedTokenizerFast(tokenizer_object=FAMILIES["byte-level BPE"](), bos_token="<s>", eos_token="</s>")
ASK: list[dict[str, Any]] = [{"role": "user", "content": "Hi"}]
TALK: list[dict[str, Any]] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What's <the> \"weather\" in Köln?", "name": None},
    {
        "role": "assistant", "content": None, "reasoning": "Let me look.",
        "tool_calls": [{"type": "function", "function": {"name": "look", "arguments": {"city": "Köln", "days": [1, 2.5, None, True]}}}],
    },
    {"role": "tool", "content": "rain"},
    {"role": "assistant", "content": "Rain."},
    {"role": "user", "content": "Thanks!"},
]  # fmt: skip
WITH_TEXTS = [{**one, "content": one["content"] or ""} for one in TALK]
"""What templates are given: those that read the content of a call fail without it."""
TOOLS = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}]
TEMPLATES = {
    "tags": "{{ bos_token }}{% for m in messages %}\n    {%- if m.content is defined %}<{{ m['role'] }}>{{ m.content | trim }}{{ eos_token }}\n{% endif %}\n{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}",
    "namespace": "{% set ns = namespace(last=-1, text='') %}{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% set ns.text = ns.text + m.role ~ ':' ~ (m.content or '') + '\n' %}{% endfor %}{{ ns.last }} {{ ns.text }}",
    "tools": "{% if tools %}{% for t in tools %}{{ t | tojson }}{{ t | tojson(indent=2) }}{% endfor %}{% endif %}{% for m in messages %}{% for c in m.tool_calls or [] %}{{ c.function.name }}({{ c.function.arguments | tojson }}){% for k, v in c.function.arguments | items %}{{ k }}={{ v }}{% endfor %}{% endfor %}{% endfor %}",
    "macros": "{% macro line(m, first=false) -%}{{ m.role | upper }}{% if first %}!{% endif %}: {{ caller() if caller else m.content }}\n{%- endmacro %}{% for m in messages[1:] | reverse %}{{ line(m, loop.first) }}{% endfor %}{% call line(messages[0]) %}called{% endcall %}",
    "loops": "{% for m in messages if m.role != 'tool' %}{% if loop.index > 3 %}{% break %}{% endif %}{% if m.role == 'system' %}{% continue %}{% endif %}{{ loop.index }}{{ 'x' * 3 }}{{ 2 * 3 + 4 ** 2 }}{{ [1] + [2] }}{{ '4915112345678 %5.2f%% %s' % (3.14159, 'x') }}{{ 7 % 4 }}{{ m.content.split(' ')[-1].rstrip('!') if m.content }}{% endfor %}{{ dict(a=1).a }}{{ range(4) | list }}",
    "reasoning": "{% for m in messages %}{{ m.reasoning_content }}{{ m.thinking }}{{ m.reasoning }}{% generation %}{% set x = m.role %}{{ x }}{% endgeneration %}{% endfor %}{{ x is defined }}{{ documents is none }}{{ enable_thinking }}{% set y %}block {{ messages | length }}{% endset %}{{ y }}{{ '%s-%s' | format(1, 'b') }}",
}  # fmt: skip


def told(template: str, messages: list[dict[str, Any]] = ASK, **given: Any) -> str:
    return render_chat(Tokenizer(INNER), messages, chat_template=template, **given)


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
@pytest.mark.parametrize("prompted", [True, False])
def test_templates_make_what_transformers_makes(template: str, prompted: bool) -> None:
    expected = INNER.apply_chat_template(
        WITH_TEXTS,
        chat_template=template,
        tools=TOOLS,
        tokenize=False,
        add_generation_prompt=prompted,
        enable_thinking=True,
    )
    kwargs = {"enable_thinking": True}
    assert told(template, TALK, tools=TOOLS, add_generation_prompt=prompted, template_kwargs=kwargs) == expected
    assert len(expected) > 40


PLAIN = "{% for m in messages %}[{{ m.role }}]{{ m.content }}</s>{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
CONTINUED = {name: TEMPLATES[name] for name in ("tags", "namespace")} | {"plain": PLAIN}


@pytest.mark.parametrize("template", CONTINUED.values(), ids=CONTINUED)
@pytest.mark.parametrize("begun", ["Rain, and", "Rain, and \n ", ""])
def test_an_answer_that_has_begun_is_the_end_of_the_prompt(template: str, begun: str) -> None:
    talk, ending = ([*said, {"role": "assistant", "content": begun}] for said in (TALK, WITH_TEXTS))
    expected = INNER.apply_chat_template(ending, chat_template=template, tokenize=False, continue_final_message=True)
    assert told(template, talk, continue_final_message=True) == expected
    parts = [{"type": "text", "text": begun[:4]}, {"type": "text", "text": begun[4:]}]
    assert told(template, [*TALK, {"role": "assistant", "content": parts}], continue_final_message=True) == expected
    assert expected.rstrip().endswith(begun.rstrip())


CALL = {"type": "function", "function": {"name": "look", "arguments": {}}}
NO_ANSWERS = {
    "somebody else's": ({"role": "user", "content": "Hi"}, PLAIN),
    "a call": ({"role": "assistant", "content": "Let me look.", "tool_calls": [CALL]}, PLAIN),
    "nothing but a call": ({"role": "assistant", "content": None, "tool_calls": [CALL]}, PLAIN),
    "not in the prompt": ({"role": "assistant", "content": "Rain"}, TEMPLATES["tools"]),
}


@pytest.mark.parametrize(("last", "template"), NO_ANSWERS.values(), ids=NO_ANSWERS)
def test_what_cannot_be_continued_is_refused(last: dict[str, Any], template: str) -> None:
    with pytest.raises(ChatTemplateError) as refused:
        told(template, [*TALK, last], continue_final_message=True)
    assert refused.value.param == "continue_final_message"


ENDLESS = {
    "nested loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "over messages": "{% for a in messages %}{% for b in messages %}{{ a.role if b.role == 'no' }}{% endfor %}{% endfor %}",
    "macros that call themselves": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "filters": "{% for a in range(99999) %}{{ range(9) | map('string') | join if a == -1 else '' }}{{ a | string | length if false else '' }}{% endfor %}",
}  # fmt: skip


@pytest.mark.parametrize("template", ENDLESS.values(), ids=ENDLESS)
def test_templates_have_a_limit_of_time(template: str) -> None:
    """By a clock that goes on when it is looked at."""
    clock = itertools.count()
    with pytest.raises(ChatTemplateError, match=r"computes for more than 500 s: .*simpler template") as refused:
        told(template, ASK * 2000, allowance=Allowance(500, lambda: float(next(clock))))
    assert next(clock) < 600
    assert refused.value.param == "messages"


def test_renderings_share_what_they_may_take() -> None:
    clock = itertools.count()
    allowance = Allowance(100, lambda: float(next(clock)))

    def again_and_again() -> None:
        for _ in range(100):
            told(TEMPLATES["tags"], ASK * 50, allowance=allowance)

    with pytest.raises(ChatTemplateError, match="computes for more than 100 s"):
        again_and_again()
    assert next(clock) < 120


def test_ordinary_conversations_are_far_from_the_limit() -> None:
    messages = ASK * 1000
    assert len(told(TEMPLATES["tags"], messages, allowance=Allowance(TEMPLATE_TIMEOUT_S))) > 5000


HUGE = {
    "multiplied": "{{ 'x' * 10**10 }}",
    "multiplied from the left": "{{ 10**10 * messages[0].content }}",
    "multiplied lists": "{{ ([1] * 10**9) | length }}",
    "doubled": "{% set ns = namespace(s='x') %}{% for _ in range(99) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
    "joined": "{% set ns = namespace(s='x') %}{% for _ in range(99) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
    "doubled lists": "{% set ns = namespace(s=[1]) %}{% for _ in range(99) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
    "written": "{% set s = 'x' * 99999 %}{% for _ in range(99999) %}{{ s }}{% endfor %}",
    "written by a macro": "{% set s = 'x' * 99999 %}{% macro m() %}{% for _ in range(9999) %}{{ s }}{% endfor %}{% endmacro %}{{ m() | length }}",
    "padded": "{{ 'x' | center(10**10) }}",
    "padded by a method": "{{ messages[0].content.ljust(10**10) }}",
    "powers": "{{ 9 ** (9 ** 9) }}",
    "formatted": "{{ '%1000000000d' % 1 }}",
    "formatted by name": "{{ '%(a).1000000000d' % {'a': 1} }}",
    "formatted as wide as told": "{{ '%*d' % (10**9, 1) }}",
    "squares": "{% set ns = namespace(n=9) %}{% for _ in range(99) %}{% set ns.n = ns.n * ns.n %}{% endfor %}",
}  # fmt: skip


@pytest.mark.parametrize("template", HUGE.values(), ids=HUGE)
def test_templates_have_a_limit_of_size(template: str) -> None:
    with pytest.raises(ChatTemplateError, match=rf"makes (more than {MAX_CHARACTERS} characters|a number)"):
        told(template)


def nested(depth: int, leaves: int) -> list[dict[str, Any]]:
    value: Any = [0] * leaves
    for _ in range(depth):
        value = [value]
    return [{"type": "function", "function": {"name": "look", "parameters": {"x": value}}}]


def test_what_is_written_line_by_line_stops_as_soon_as_it_is_too_long() -> None:
    """As some families' templates have it, a line for each number begins with as many blanks as the number is deep."""
    lines = "{{ tools | tojson(indent=4) }}"
    assert told(lines, tools=nested(100, 9)) == json.dumps(nested(100, 9), indent=4)
    tracemalloc.start()
    with pytest.raises(ChatTemplateError, match="makes more than"):
        told(lines, tools=nested(200, 100_000))
    assert tracemalloc.get_traced_memory()[1] < 2 * MAX_CHARACTERS
    tracemalloc.stop()
    clock = itertools.count()
    with pytest.raises(ChatTemplateError, match="computes for more than"):
        told(lines, tools=nested(10, 5000), allowance=Allowance(100, lambda: float(next(clock))))


def test_making_messages_plain_is_counted() -> None:
    now = [0.0]

    class Slow(dict[str, Any]):
        def items(self) -> Any:
            now[0] += 1
            return super().items()

    with pytest.raises(TemplateLimitError, match="computes for more than 100 s"):
        render_template(
            "{% for _ in range(20) %}x{% endfor %}", Allowance(100, lambda: now[0]), [Slow(role="user")] * 101
        )


@pytest.mark.parametrize(
    "template",
    ["{{ namespace(__class__=1) }}", "{% set n = namespace() %}{% set n._x = 1 %}", "{{ lipsum() }}", "{{ dict.__globals__.x }}",
     "{{ raise_exception.__globals__['sys'] }}", "{{ environment }}{{ self._TemplateReference__context.environment.globals }}", "{% include '/etc/passwd' %}"],
)  # fmt: skip
def test_nothing_leads_out_of_the_sandbox(template: str) -> None:
    with pytest.raises(ChatTemplateError, match="template failed") as refused:
        told(template)
    assert "/work" not in str(refused.value)


def test_what_a_template_says_of_its_failure_is_short() -> None:
    with pytest.raises(ChatTemplateError) as refused:
        told("{{ raise_exception('no: ' + messages[0].content) }}", [{"role": "user", "content": "x" * 100_000}])
    assert str(refused.value).startswith("the chat template failed: no: xxx")
    assert len(str(refused.value)) < 400


def test_other_objects_are_told_of_by_their_kind() -> None:
    class Hostile:
        def run(self) -> str:
            return "ran"

    messages = [{"role": "user", "content": "x", "image": Hostile()}]
    assert told("{{ messages[0].image }}", messages) == "<Hostile>"
