"""Exports in the formats of the published code, for people who compare or carry on with it.

`messages`: one conversation a line, `{"messages": [{"role": "system" | "user" | "model", "content",
"requires_clarification"?}]}`. `preferences`: one pair a line with nine strings. The texts are ours:
answers state their scale, and a prompt never holds its own answer.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from act_assets.conversation import Conversation, PreferencePair
from act_assets.tasks.base import Task
from resources.errors import ActError
from resources.files import atomic_file

_ROLES = {"user": "user", "assistant": "model"}


def messages_rows(task: Task, conversations: Sequence[Conversation]) -> Iterator[dict[str, Any]]:
    """Grounding as the system message, then the turns; each model turn says whether it asks."""
    for conversation in conversations:
        messages: list[dict[str, Any]] = [
            {"role": "system", "content": task.reader.system_message(conversation.context)}
        ]
        messages += [{"role": _ROLES[m.role], "content": m.content} for m in conversation.history]
        for turn in conversation.turns:
            asks = not task.action(turn.action).ends_trajectory
            messages += [
                {"role": "user", "content": turn.user},
                {"role": "model", "content": turn.response.text, "requires_clarification": asks},
            ]
        yield {"messages": messages}


def preference_rows(pairs: Sequence[PreferencePair]) -> Iterator[dict[str, str]]:
    """`input_text` is a transcript, `gold_target` r, `gold_trajectory` g; policies are actions."""
    for pair in pairs:
        system, *history = pair.prompt
        transcript = "\n".join(f"{m.role.capitalize()}: {m.content}" for m in history)
        yield {
            "input_text": f"{system.content}\n{transcript}",
            "output_text": pair.chosen,
            "chosen": pair.chosen,
            "rejected": pair.rejected,
            "gold_target": pair.chosen,
            "gold_trajectory": pair.goal,
            "dialogue_policy": pair.action,
            "chosen_policy": pair.action,
            "rejected_policy": pair.rejected_action,
        }


def write_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> int:
    """One JSON object a line; the file is whole or not there. Returns the number of lines."""
    count = 0
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path) as beside, beside.open("w", encoding="utf-8") as stream:
            for row in rows:
                stream.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")
                count += 1
    except OSError as error:
        raise ActError(
            f"the export cannot be written: {error}", where=str(path), todo="choose another --out"
        ) from error
    return count
