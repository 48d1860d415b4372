"""What the data assets hold: raw files, twins, conversations, labels, subsets, intents, pairs."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from act_assets.conversation import (
    ActionLabel,
    AmbiguousTwin,
    ClearRequest,
    Conversation,
    IntentSummary,
    PreferencePair,
)
from act_assets.metrics.actions import confusion
from act_assets.preference import annotate, build_pairs
from act_assets.roles.build import usage_facts
from act_assets.roles.role import require_all
from act_assets.rows import read_rows, write_rows
from act_assets.run import (
    Run,
    conversations_of,
    evaluation_side,
    labelled_conversations,
    roles_of,
    turns_of,
)
from act_assets.seeds import derive_seed
from act_assets.tasks.base import SIDES, TwinMaker
from act_assets.tasks.files import file_record, source_files
from act_assets.tasks.rules import same_text
from resources.errors import DataError

LABELLED_SIDES = ("train", "validation")  # nothing is learnt from the test side


def build_raw_dataset(run: Run, folder: Path) -> dict[str, Any]:
    """The official files as they are, decompressed, with their hashes."""
    records = []
    for name, path in source_files(run.task, run.data_dir).items():
        record, content = file_record(path, name)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
        records.append(record)
    (folder / "source.json").write_text(json.dumps([asdict(r) for r in records], indent=1) + "\n", encoding="utf-8")
    return {"origin": run.data_origin, "folder": str(run.data_dir), "files": [asdict(r) for r in records]}


def build_ambiguous_requests(run: Run, folder: Path) -> dict[str, Any]:
    """An ambiguous twin of each clear request (appendix C); none where the data brings its own ambiguous requests.

    What cannot be used is dropped and counted: targets that fail, replies that cannot be read, twins that still equal
    their original.
    """
    twins: list[AmbiguousTwin] = []
    facts: dict[str, Any] = {"twins": 0}
    if run.task.twins is not None:
        data = run.inputs["raw_dataset"].path
        every = run.task.twins.requests(data, run.profile.ambiguous_requests.model_dump())
        clear = [r for r in every if run.task.twins.problem(data, r) is None]
        perturber = roles_of(run).perturber()
        with run.progress("ambiguous requests", len(clear)) as done:
            texts = require_all(perturber.perturb(clear, done), "ambiguous requests")
        twins, dropped = read_twins(run.task.twins, clear, texts)
        sides, strategies = ([getattr(t.clear, name) for t in twins] for name in ("side", "strategy"))
        facts = {
            "requests": len(every),
            "twins": len(twins),
            **{f"twins_{name}": sides.count(name) for name in SIDES},
            **{f"twins_{name}": strategies.count(name) for name in sorted(set(strategies))},
            "dropped_target_fails": len(every) - len(clear),
            **{f"dropped_{name}": number for name, number in dropped.items()},
            **usage_facts(perturber.usage),
        }
        missing = [side for side in ("train", "validation") if side not in sides]
        if missing:
            reasons = ", ".join(f"{number} {name}" for name, number in dropped.items())
            raise DataError(
                f"not one ambiguous twin could be used of side {' and '.join(missing)}; dropped: {reasons}",
                where=run.where,
                todo="see an answer (act memo show), edit the prompt of the role perturbation, then run again",
            )
    write_rows(folder / "twins.parquet", twins, AmbiguousTwin)
    return facts


def read_twins(
    maker: TwinMaker, clear: Sequence[ClearRequest], texts: Sequence[str]
) -> tuple[list[AmbiguousTwin], dict[str, int]]:
    """The twins that can be used, and how many were dropped for which reason."""
    twins, dropped = [], {"unreadable": 0, "identical": 0}
    for request, text in zip(clear, texts, strict=True):
        read = maker.read_reply(text)
        if read is None:
            dropped["unreadable"] += 1
        elif same_text(read[0], request.request):
            dropped["identical"] += 1
        else:
            twins.append(AmbiguousTwin(request, *read))
    return twins, dropped


def build_conversations(run: Run, folder: Path) -> dict[str, Any]:
    """Typed conversations of every split; a task without a test side has an empty one."""
    raw = run.inputs["raw_dataset"].path
    if run.task.twins is None:
        data = run.task.reader.read(raw)
    else:
        twins = read_rows(run.inputs["ambiguous_requests"].file("twins.parquet"), AmbiguousTwin)
        data = run.task.twins.conversations(raw, twins)
    facts: dict[str, Any] = {}
    for side in SIDES:
        conversations = getattr(data, side)
        write_rows(folder / f"{side}.parquet", conversations, Conversation)
        facts |= _count(run, side, conversations) if conversations else {}
    return facts


def build_action_labels(run: Run, folder: Path) -> dict[str, Any]:
    """G's label of every turn, and how far it agrees with gold."""
    source = run.profile.labels_from
    annotator = roles_of(run).annotator()
    facts: dict[str, Any] = {"source": source}
    every: list[ActionLabel] = []
    for side in LABELLED_SIDES:
        labels = annotate(run.task, conversations_of(run, side), annotator, source)
        write_rows(folder / f"{side}.parquet", labels, ActionLabel)
        every += labels
    facts["agreement_with_gold"] = sum(1 for x in every if x.gold == x.label) / len(every)
    facts["confusion"] = confusion([x.gold for x in every], [x.label for x in every], run.task.action_names)
    return facts | usage_facts(annotator.usage)


def build_train_subset(run: Run, folder: Path) -> dict[str, Any]:
    """The first `train_size` conversations of a seeded order, so that 50 lie inside 100 inside 250.

    Groups stand together: a conversation comes with its twin. Only the last group may be cut.
    """
    conversations = labelled_conversations(run, "train")
    size = run.train_size or 0
    if not 0 < size <= len(conversations):
        more = "raise ambiguous_requests.train in the profile" if run.task.twins else "provide more data (ACT_DATA_DIR)"
        raise DataError(
            f"a train size of {size} conversations, but there are {len(conversations)}",
            where=run.where,
            todo=f"choose a train size of at most {len(conversations)}, or {more}",
        )
    groups: dict[str, list[Conversation]] = {}
    for conversation in conversations:
        groups.setdefault(conversation.group_id, []).append(conversation)
    order = list(groups.values())
    random.Random(derive_seed(run.seed, "train_subset", run.task.name)).shuffle(order)
    chosen = [c for group in order for c in group][:size]
    write_rows(folder / "train.parquet", chosen, Conversation)
    return _count(run, "train", chosen)


def build_intents(run: Run, folder: Path) -> dict[str, Any]:
    """What U is grounded in, for every trajectory of the subset (or of the evaluated side): a summary of the
    user's intents (appendix H), or the request in full and its target, which takes no call."""
    conversations = _side_conversations(run, evaluation_side(run) if "train_subset" not in run.inputs else "train")
    if run.task.grounding == "goal":
        # The clear request, then the target (table A27).
        rows = [
            IntentSummary(t.task, t.conversation_id, t.intent_id, f"{t.clear_request}\n{t.goal.text}")
            for t in turns_of(run, conversations)
        ]
        write_rows(folder / "intents.parquet", rows, IntentSummary)
        return {"intents": len(rows)}
    told = [way for c in conversations for way in run.task.told(c)]
    if "train_subset" in run.inputs:
        # In training only turns that call for a reply are rolled out; an evaluated policy may ask anywhere.
        turns = turns_of(run, conversations)
        needed = {t.intent_id for t in turns if not run.task.action(t.action).ends_trajectory}
        told = [(intent_id, c) for intent_id, c in told if intent_id in needed]
    summarizer = roles_of(run).intent_summarizer()
    with run.progress("intent summaries", len(told)) as done:
        texts = require_all(summarizer.summarize([c for _, c in told], done), "intent summaries")
    rows = [
        IntentSummary(c.task, c.conversation_id, intent_id, text)
        for (intent_id, c), text in zip(told, texts, strict=True)
    ]
    write_rows(folder / "intents.parquet", rows, IntentSummary)
    return {"intents": len(rows), **usage_facts(summarizer.usage)}


def build_contrastive_pairs(run: Run, folder: Path) -> dict[str, Any]:
    """Algorithm 1 over the subset (or the validation side); in-context conversations from the training side."""
    conversations = _side_conversations(run, "validation", labelled=True)
    pool = conversations if "train_subset" in run.inputs else labelled_conversations(run, "train")
    generator = roles_of(run).generator(pool)
    turns = turns_of(run, conversations)
    with run.progress("contrastive pairs", len(turns)) as done:
        pairs, report = build_pairs(run.task, turns, generator, run.seed, done)
    write_rows(folder / "pairs.parquet", pairs, PreferencePair)
    directions = {f"pairs_{a.lower()}": sum(1 for p in pairs if p.action == a) for a in run.task.action_names}
    shown = {"in_context_conversations": generator.examples_shown}
    return {"turns": len(turns), **shown, **report, **directions, **usage_facts(generator.usage)}


def _side_conversations(run: Run, side: str, *, labelled: bool = False) -> list[Conversation]:
    """The subset where the stage is made per train size, else a side, with G's labels or gold ones."""
    if "train_subset" in run.inputs:
        return read_rows(run.inputs["train_subset"].file("train.parquet"), Conversation)
    return (labelled_conversations if labelled else conversations_of)(run, side)


def _count(run: Run, side: str, conversations: Sequence[Conversation]) -> dict[str, Any]:
    actions = [t.action for c in conversations for t in c.turns]
    counts = {f"{side}_{a.lower()}": actions.count(a) for a in run.task.action_names}
    return {f"{side}_conversations": len(conversations), f"{side}_turns": len(actions), **counts}


def raw_fingerprint(run: Run) -> Any:
    return [asdict(file_record(path, name)[0]) for name, path in source_files(run.task, run.data_dir).items()]
