"""Marks in grammars that are special tokens.

A literal in a grammar matches ordinary tokens only. Models write marks such as ``<tool_call>`` as one special token, so
literals are taken apart at these.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping

_HEAD = re.compile(r"^[ \t]*[?!]?(?P<name>[A-Za-z_][\w-]*)(?P<attributes>\[(?:[^\]\"]|\"(?:[^\"\\]|\\.)*\")*\])?[ \t]*:", re.MULTILINE)  # fmt: skip
_PIECE = re.compile(
    r"(?P<json>%(?:json|regex)\s*)|(?P<comment>//[^\n]*)|(?P<regex>/(?:[^/\\\n]|\\.)+/[a-z]*)"
    r"|(?P<literal>\"(?:[^\"\\\n]|\\.)*\")(?P<flag>i?)|(?P<token><[^\s<>\"\[\]]+>)"
)
_LAZY = re.compile(r"\s*(?P<body>[A-Z][\w-]*)\s+(?P<literal>\"(?:[^\"\\\n]|\\.)*\")\s*")


def with_tokens(lark: str, tokens: Mapping[str, int]) -> str:
    """A grammar in Lark whose rules name special tokens where their text stands in literals.

    A lazy rule ``[lazy]: TERMINAL "literal"`` whose literal ends with such a token ends with the token. Terminals, which
    cannot hold tokens, stay as they are.

    Args:
        tokens: ids by text.
    """
    heads = list(_HEAD.finditer(lark))
    if not tokens or not heads:
        return lark
    marks = re.compile("(" + "|".join(map(re.escape, sorted(tokens, key=len, reverse=True))) + ")")
    pieces = [lark[: heads[0].start()]]
    for head, end in zip(heads, [*(one.start() for one in heads[1:]), len(lark)], strict=True):
        name, attributes, body = head["name"], head["attributes"], lark[head.end() : end]
        if name.lstrip("_")[:1].isupper():
            pieces.append(head[0] + body)
        elif attributes is not None:
            pieces.append(_ended(head, body, tokens, marks) or head[0] + body)
        else:
            pieces.append(head[0] + _rewritten(body, tokens, marks))
    return "".join(pieces)


def token_ranges(ids: Iterable[int]) -> str:
    """An expression for any one of some tokens."""
    ranges = list[list[int]]()
    for one in sorted(ids):
        if ranges and ranges[-1][1] == one - 1:
            ranges[-1][1] = one
        else:
            ranges.append([one, one])
    return f"<[{','.join(str(low) if low == high else f'{low}-{high}' for low, high in ranges)}]>"


def _rewritten(body: str, tokens: Mapping[str, int], marks: re.Pattern[str]) -> str:
    pieces, at = list[str](), 0
    while (found := _PIECE.search(body, at)) is not None:
        pieces.append(body[at : found.start()])
        at = found.end()
        if found["json"] is not None:
            try:
                _, at = json.JSONDecoder().raw_decode(body, at)
            except (ValueError, RecursionError):
                at = len(body)
            pieces.append(body[found.start() : at])
        elif found["literal"] is not None and not found["flag"]:
            pieces.append(_taken_apart(found["literal"], tokens, marks))
        elif found["token"] is not None and found["token"] in tokens:  # llguidance knows it by another name
            pieces.append(_expression(found["token"], tokens))
        else:
            pieces.append(found[0])
    return "".join((*pieces, body[at:]))


def _taken_apart(literal: str, tokens: Mapping[str, int], marks: re.Pattern[str]) -> str:
    parts = _parts(literal, marks)
    if len(parts) == 1:
        return literal
    return f"({' '.join(_expression(one, tokens) for one in parts if one)})"


def _ended(head: re.Match[str], body: str, tokens: Mapping[str, int], marks: re.Pattern[str]) -> str | None:
    """A lazy rule that ends with a token; None if it is another rule."""
    found = _LAZY.fullmatch(body)
    if head["attributes"] != "[lazy]" or found is None:
        return None
    parts = [one for one in _parts(found["literal"], marks) if one]
    if not parts or parts[-1] not in tokens or any(one in tokens for one in parts[:-1]):
        return None
    terminal, added = found["body"], ""
    if len(parts) == 2:
        terminal = f"{head['name'].upper()}_{terminal}"
        added = f"{terminal}: {found['body']} {json.dumps(parts[0], ensure_ascii=False)}\n"
    return f"{head['name']}: {terminal} {_expression(parts[-1], tokens)}\n{added}"


def _parts(literal: str, marks: re.Pattern[str]) -> list[str]:
    """What a literal says, with marks at odd indices; the literal alone if it has none."""
    try:
        return marks.split(json.loads(literal, strict=False))
    except ValueError:
        return [literal]


def _expression(part: str, tokens: Mapping[str, int]) -> str:
    return f"<[{tokens[part]}]>" if part in tokens else json.dumps(part, ensure_ascii=False)
