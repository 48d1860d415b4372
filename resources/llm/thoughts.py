"""What a reasoning model wrote before its answer, told apart from it."""

from __future__ import annotations

import re

# As DeepSeek-R1, Qwen, Magistral and models after them write it, where the server hands it on as it is.
_OPEN = re.compile(r"<(?:think|thinking|thought|reasoning)>|\[THINK\]", re.IGNORECASE)
_CLOSE = re.compile(r"</(?:think|thinking|thought|reasoning)>|\[/THINK\]", re.IGNORECASE)


class UnfinishedThought(ValueError):
    """A thought begins and never ends: the answer behind it was cut off."""


def split_thoughts(text: str) -> tuple[str, str]:
    """The thoughts before an answer ("" for none), and the answer.

    Raises UnfinishedThought.
    """
    thoughts: list[str] = []
    close = _CLOSE.search(text)
    if close and not _OPEN.search(text, 0, close.start()):  # the prompt's template has opened the block
        thoughts.append(text[: close.start()])
        text = text[close.end() :]
    while block := _OPEN.match(text.lstrip()):
        text = text.lstrip()
        close = _CLOSE.search(text, block.end())
        if close is None:
            raise UnfinishedThought("a thought begins and never ends")
        thoughts.append(text[block.end() : close.start()])
        text = text[close.end() :]
    return "\n\n".join(t.strip() for t in thoughts if t.strip()), text.lstrip() if thoughts else text
