"""PACIFIC: proactive conversational question answering over finance tables and text (Deng et al., 2022).

An item of the official JSON is a table, a few paragraphs and a list of questions in order. Where a question is
ambiguous (`req_clari`) its `answer` is the clarifying question and the next question is the user's reply:

    What is the amount of total sales?   -> Which year are you asking about?      CLARIFY
    2019                                 -> $1,496.5 (in millions)                ANSWER
    What is the change in Other?         -> Which period are you asking about?    CLARIFY
    From 2018 to 2019.                   -> 44.1-56.7 = -12.6 (in millions)       ANSWER
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from act_assets.conversation import ANSWER, CLARIFY, ContextBlock, Conversation, Turn
from act_assets.tasks.base import Task, TaskData, TaskReader
from act_assets.tasks.files import AGAIN, malformed, read_items, read_sides, text_of
from act_assets.tasks.pacific.answer import PacificJudge, reference
from act_assets.tasks.pacific.rules import PacificRules
from resources.errors import DataError

INSTRUCTION = (
    "You are an Assistant answering questions from a User about the passage and the table below. Either answer the "
    "question, or ask a clarifying question if there is any ambiguity."
)
_SENTENCE_END = re.compile(r"(?<=[.;:!?])\s+(?=[A-Z(])")


class PacificReader(TaskReader):
    """Reads `train.json` and `validation.json` (the official layout; `test.json` holds no answers)."""

    files: tuple[str, ...] = ("train.json", "validation.json")

    def read(self, folder: Path) -> TaskData:
        return TaskData(*read_sides("pacific", folder, self.files, read_file))

    def system_message(self, context: Sequence[ContextBlock]) -> str:
        text = " ".join(b.text for b in context if b.section == "text")
        rows = "\n".join(b.text for b in context if b.section == "table")
        return f"{INSTRUCTION}\n[context]\n{text}\n[data]\n{rows}"


def read_file(path: Path) -> tuple[Conversation, ...]:
    """All conversations of one official file. Raises DataError naming the file, the item and the question."""
    items = enumerate(read_items("pacific", path), start=1)
    conversations = tuple(_conversation(item, path, number) for number, item in items)
    seen: set[str] = set()
    for turn_id in (t.turn_id for c in conversations for t in c.turns):
        if turn_id in seen:
            raise DataError(f"two questions share the uid {turn_id}", where=f"task pacific, {path}", todo=AGAIN)
        seen.add(turn_id)
    return conversations


def _conversation(item: Any, path: Path, number: int) -> Conversation:
    where = f"task pacific, {path}, item {number}"
    try:
        conversation_id = text_of(item["table"], "uid")
        rows = item["table"]["table"]
        paragraphs = sorted(item["paragraphs"], key=lambda p: int(p["order"]))
        context = [
            ContextBlock("text", sentence)
            for paragraph in paragraphs
            for sentence in _SENTENCE_END.split(text_of(paragraph, "text").strip())
        ]
        for row in rows:
            if not (isinstance(row, list) and all(isinstance(cell, str) for cell in row)):
                raise ValueError(f"a table row must be a list of strings, not {row!r}")
            # `first : second | third`, the published code's form
            first, *rest = [cell.strip() for cell in row] or [""]
            context.append(ContextBlock("table", f"{first} : {' | '.join(rest)}", essential=row is rows[0]))
        questions = item["questions"]
        if not isinstance(questions, list) or not questions:
            raise ValueError("'questions' must be a list that is not empty")
    except (KeyError, TypeError, ValueError) as error:
        raise malformed(error, where, f"{AGAIN}, or fix this item") from error
    turns = tuple(_turn(question, f"{where} ({conversation_id})") for question in questions)
    if turns[-1].action != ANSWER.name:
        raise DataError(
            "a clarifying question in last place: nothing says what the user wanted",
            where=f"{where}, question {turns[-1].turn_id}",
            todo="remove the last question of this item, or add the user's reply and its answer",
        )
    return Conversation("pacific", conversation_id, tuple(context), turns)


def _turn(question: Any, where: str) -> Turn:
    turn_id = question.get("uid", "?") if isinstance(question, dict) else "?"
    try:
        if "answer" not in question or question["answer"] is None:
            raise DataError(
                "a question without an answer: this looks like the official test.json, which holds none",
                where=f"{where}, question {turn_id}",
                todo="use the official train.json and validation.json",
            )
        needs_clarification = question["req_clari"]
        answer_type = text_of(question, "answer_type")
        if not isinstance(needs_clarification, bool) or needs_clarification != (answer_type == "question"):
            raise ValueError(f"req_clari {needs_clarification!r} contradicts answer_type {answer_type!r}")
        scale, derivation = text_of(question, "scale"), text_of(question, "derivation")
        return Turn(
            turn_id=text_of(question, "uid"),
            user=text_of(question, "question").strip(),
            clear_request=text_of(question, "original_question").strip(),
            response=reference(question["answer"], scale, answer_type, derivation),
            action=CLARIFY.name if needs_clarification else ANSWER.name,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise malformed(error, f"{where}, question {turn_id}", f"{AGAIN}, or fix this question") from error


PACIFIC = Task(
    name="pacific",
    title="PACIFIC: finance tables and text",
    actions=(CLARIFY, ANSWER),
    reader=PacificReader(),
    judge=PacificJudge(),
    rules=PacificRules(),
)
