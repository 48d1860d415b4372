"""The stages in order: raw files, conversations, labels, subsets, pairs, policies, evaluations, leaderboard, report.

`STAGES` is the whole graph; `defs/` shows it to Dagster. To change what a stage computes, change its build function
here or what it calls; to add a stage, add an entry to STAGES and an asset to `defs/assets.py`.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from act_assets.conversation import (
    ActionLabel,
    AmbiguousTwin,
    ClearRequest,
    Conversation,
    IntentSummary,
    PreferencePair,
    TurnState,
)
from act_assets.evaluation.baselines import always, question_only
from act_assets.evaluation.evaluate import (
    EvaluatedTurn,
    EvaluationReport,
    Provenance,
    evaluate,
    evaluate_actions,
    read_report,
    write_report,
)
from act_assets.evaluation.leaderboard import METHODS as LEADERBOARD_METHODS
from act_assets.evaluation.leaderboard import LeaderboardRow, leaderboard_rows
from act_assets.metrics.actions import confusion
from act_assets.pipeline.stage import TRAIN_SIZES, Stage, StageRun, up_to_date
from act_assets.preference import annotate, build_pairs
from act_assets.profile import Profile
from act_assets.roles.build import Cast, describe, describe_labels, usage_facts
from act_assets.roles.role import require_all
from act_assets.rows import count_rows, read_rows, write_rows
from act_assets.seeds import derive_seed
from act_assets.tasks.base import SIDES, Task, Tools, TwinMaker
from act_assets.tasks.files import file_record, source_files
from act_assets.tasks.rules import same_text
from resources.artifacts import Artifact, Key
from resources.embedder import default_embedder
from resources.errors import DataError

LABELLED_SIDES = ("train", "validation")  # nothing is learnt from the test side
METHODS = ("sft", "act")


# --- data -----------------------------------------------------------------------------------------------------


def build_raw_dataset(run: StageRun, folder: Path) -> dict[str, Any]:
    """The official files as they are, decompressed, with their hashes."""
    records = []
    for name, path in source_files(run.task, run.data_dir).items():
        record, content = file_record(path, name)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
        records.append(record)
    (folder / "source.json").write_text(json.dumps([asdict(r) for r in records], indent=1) + "\n", encoding="utf-8")
    return {"origin": run.data_origin, "folder": str(run.data_dir), "files": [asdict(r) for r in records]}


def build_ambiguous_requests(run: StageRun, folder: Path) -> dict[str, Any]:
    """An ambiguous twin of each clear request (appendix C); none where the data brings its own ambiguous requests.

    What cannot be used is dropped and counted: targets that fail, replies that cannot be read, twins that still equal
    their original.
    """
    twins: list[AmbiguousTwin] = []
    facts: dict[str, Any] = {"twins": 0}
    if run.task.twins is not None:
        clear, failing = clear_requests(run)
        perturber = cast_of(run).perturber()
        with run.progress("ambiguous requests", len(clear)) as done:
            texts = require_all(perturber.perturb(clear, done), "ambiguous requests")
        twins, dropped = read_twins(run.task.twins, clear, texts)
        sides, strategies = ([getattr(t.clear, name) for t in twins] for name in ("side", "strategy"))
        facts = {
            "requests": len(clear) + failing,
            "twins": len(twins),
            **{f"twins_{name}": sides.count(name) for name in SIDES},
            **{f"twins_{name}": strategies.count(name) for name in sorted(set(strategies))},
            "dropped_target_fails": failing,
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


def clear_requests(run: StageRun) -> tuple[list[ClearRequest], int]:
    """The clear requests that get a twin, and how many were left out because their target fails."""
    maker = run.task.twins
    if maker is None:
        return [], 0
    data = run.inputs["raw_dataset"].path
    clear = maker.requests(data, run.profile.ambiguous_requests.model_dump())
    usable = [r for r in clear if maker.problem(data, r) is None]
    return usable, len(clear) - len(usable)


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


def build_conversations(run: StageRun, folder: Path) -> dict[str, Any]:
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


def build_action_labels(run: StageRun, folder: Path) -> dict[str, Any]:
    """G's label of every turn, and how far it agrees with gold."""
    source = run.profile.labels_from
    annotator = cast_of(run).annotator()
    facts: dict[str, Any] = {"source": source}
    every: list[ActionLabel] = []
    for side in LABELLED_SIDES:
        labels = annotate(run.task, conversations_of(run, side), annotator, source)
        write_rows(folder / f"{side}.parquet", labels, ActionLabel)
        every += labels
    facts["agreement_with_gold"] = sum(1 for x in every if x.gold == x.label) / len(every)
    facts["confusion"] = confusion([x.gold for x in every], [x.label for x in every], run.task.action_names)
    return facts | usage_facts(annotator.usage)


def build_train_subset(run: StageRun, folder: Path) -> dict[str, Any]:
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


# --- intents and pairs ----------------------------------------------------------------------------------------


def build_intents(run: StageRun, folder: Path) -> dict[str, Any]:
    """What U is grounded in, for every trajectory of the subset (or of the evaluated side): a summary of the
    user's intents (appendix H), or the request in full and its target, which takes no call."""
    conversations = _side_conversations(run, evaluation_side(run) if "train_subset" not in run.inputs else "train")
    if run.task.grounding == "goal":
        goals = goals_of(run, conversations)
        rows = [IntentSummary(t.task, t.conversation_id, t.intent_id, text) for t, text in goals]
        write_rows(folder / "intents.parquet", rows, IntentSummary)
        return {"intents": len(rows)}
    told = told_to_user(run, conversations, in_training="train_subset" in run.inputs)
    summarizer = cast_of(run).intent_summarizer()
    with run.progress("intent summaries", len(told)) as done:
        texts = require_all(summarizer.summarize([c for _, c in told], done), "intent summaries")
    rows = [
        IntentSummary(c.task, c.conversation_id, intent_id, text)
        for (intent_id, c), text in zip(told, texts, strict=True)
    ]
    write_rows(folder / "intents.parquet", rows, IntentSummary)
    return {"intents": len(rows), **usage_facts(summarizer.usage)}


def told_to_user(
    run: StageRun, conversations: Sequence[Conversation], *, in_training: bool = False
) -> list[tuple[str, Conversation]]:
    """(intent id, conversation) for every trajectory in which U may speak.

    In training only turns that call for a reply are rolled out, so that nothing is asked about the others; an
    evaluated policy may ask anywhere.
    """
    told = [way for c in conversations for way in run.task.told(c)]
    if not in_training:
        return told
    turns = turns_of(run, conversations)
    needed = {t.intent_id for t in turns if not run.task.action(t.action).ends_trajectory}
    return [(intent_id, c) for intent_id, c in told if intent_id in needed]


def goals_of(run: StageRun, conversations: Sequence[Conversation]) -> list[tuple[TurnState, str]]:
    """Each turn with what U is told of it: the clear request, then the target (table A27)."""
    return [(t, f"{t.clear_request}\n{t.goal.text}") for t in turns_of(run, conversations)]


def build_contrastive_pairs(run: StageRun, folder: Path) -> dict[str, Any]:
    """Algorithm 1 over the subset (or the validation side); in-context conversations from the training side."""
    conversations = _side_conversations(run, "validation", labelled=True)
    pool = conversations if "train_subset" in run.inputs else labelled_conversations(run, "train")
    generator = cast_of(run).generator(pool)
    turns = turns_of(run, conversations)
    with run.progress("contrastive pairs", len(turns)) as done:
        pairs, report = build_pairs(run.task, turns, generator, run.seed, done)
    write_rows(folder / "pairs.parquet", pairs, PreferencePair)
    directions = {f"pairs_{a.lower()}": sum(1 for p in pairs if p.action == a) for a in run.task.action_names}
    shown = {"in_context_conversations": generator.examples_shown}
    return {"turns": len(turns), **shown, **asdict(report), **directions, **usage_facts(generator.usage)}


# --- training: each in a process of its own -------------------------------------------------------------------


def _training_build(name: str) -> Any:
    """Hands the work to `python -m act_assets.training`, and reads the facts that it leaves behind."""

    def build(run: StageRun, folder: Path) -> dict[str, Any]:
        logs = folder / "logs"
        logs.mkdir()
        job = {
            "stage": name,
            "task": run.task.name,
            "train_size": run.train_size,
            "seed": run.seed,
            "profile": run.profile.model_dump(mode="json"),
            "inputs": {key: str(artifact.path) for key, artifact in run.inputs.items()},
            "prompts_dir": str(run.prompts_dir),
            "calls": run.calls.to_json(),
            "folder": str(folder),
            "work": str(run.work),
        }
        path = logs / "job.json"
        path.write_text(json.dumps(job, indent=1) + "\n", encoding="utf-8")
        run.launch(path)
        return dict(json.loads((logs / "facts.json").read_text(encoding="utf-8")))

    return build


# --- evaluation -----------------------------------------------------------------------------------------------


def _evaluation_build(method: str) -> Any:
    def build(run: StageRun, folder: Path) -> dict[str, Any]:
        from act_assets.training.generation import TransformersEngine
        from act_assets.training.policy import ModelPolicy, PromptEncoder, SamplingSettings, load_model, pick_device

        profile = run.profile
        task = equipped_task(run)
        turns = evaluated_turns(run)
        model, chat = load_model(run.inputs[f"{method}_checkpoint"].file("model"))
        policy = ModelPolicy(
            TransformersEngine(
                model.to(pick_device()), chat.end_id, chat.pad_id, batch_size=profile.evaluation.batch_size
            ),
            chat,
            PromptEncoder(task, chat, profile.policy.max_prompt_tokens),
            SamplingSettings(profile.policy.max_length, profile.policy.max_new_tokens, profile.evaluation.temperature),
        )
        cast = cast_of(run)
        subset = read_rows(run.inputs["train_subset"].file("train.parquet"), Conversation)
        classifier = cast.classifier(subset)
        simulator = cast.simulator()
        with run.progress(f"evaluation of {method}", len(turns)) as done:
            report, rows = evaluate(
                task,
                turns,
                policy,
                classifier,
                simulator,
                intents_of(run.inputs["evaluation_intents"]),
                provenance(run, method),
                max_clarifications=profile.act.max_clarifications,
                bootstrap_samples=profile.evaluation.bootstrap_samples,
                group_size=profile.rollout_batch_size,
                on_done=done,
            )
        write_report(folder / "report.json", report)
        write_rows(folder / "trajectories.parquet", rows, EvaluatedTurn)
        return {**_figures(report), **usage_facts(classifier.usage + simulator.usage)}

    return build


def build_baselines(run: StageRun, folder: Path) -> dict[str, Any]:
    """Always the same action, and a question-only logistic regression: what a method has to beat."""
    train = turns_of(run, read_rows(run.inputs["train_subset"].file("train.parquet"), Conversation))
    turns = evaluated_turns(run)
    predictions = {f"always {a.lower()}": always(a, turns) for a in run.task.action_names}
    predictions["question-only logistic regression"] = question_only(train, turns, run.seed)
    facts: dict[str, Any] = {}
    for method, predicted in predictions.items():
        report = evaluate_actions(
            run.task,
            turns,
            predicted,
            replace(provenance(run, method), policy="none", simulator="none", classifier="none", judge="none"),
            bootstrap_samples=run.profile.evaluation.bootstrap_samples,
        )
        write_report(folder / f"{method.replace(' ', '_')}.json", report)
        metric = report.metric("macro F1")
        facts[f"macro_f1 {method}"] = metric.value if metric else None
    return facts


def provenance(run: StageRun, method: str) -> Provenance:
    """Who is evaluated in a run, with what."""
    roles = run.profile.roles
    base = run.store.find(Key("base_policy", run.task.name))
    return Provenance(
        method=method,
        task=run.task.name,
        train_size=run.train_size,
        seed=run.seed,
        profile=run.profile.name,
        policy=str(base.facts.get("policy", run.profile.policy.model)) if base else run.profile.policy.model,
        simulator=describe(roles.simulator),
        classifier=describe(roles.classifier.llm, roles.classifier.source),
        action_supervision=describe_labels(run.profile),
        judge=_judge(run),
        side=evaluation_side(run),
    )


# --- leaderboard and report -----------------------------------------------------------------------------------

EVALUATIONS = ("evaluation_sft", "evaluation_act", "evaluation_baselines")


def find_evaluations(run: StageRun) -> dict[str, Artifact]:
    """Every evaluation of the task that is up to date for this run, by `<asset>@<train size>`.

    Figures of earlier data, settings or prompts never stand beside those of now.
    """
    return _current(run, EVALUATIONS)


def _current(run: StageRun, assets: Sequence[str]) -> dict[str, Artifact]:
    found = {}
    known: dict[Key, Artifact | None] = {}
    for size in TRAIN_SIZES:
        for asset in assets:
            artifact = up_to_date(STAGES, asset, replace(run, train_size=size), known)
            if artifact is not None:
                found[f"{asset}@{size}"] = artifact
    return found


def reports_in(inputs: Sequence[Artifact]) -> list[EvaluationReport]:
    """All evaluation reports of some artifacts."""
    return [read_report(path) for a in inputs for path in sorted(a.path.glob("*.json")) if path.name != "artifact.json"]


def build_leaderboard(run: StageRun, folder: Path) -> dict[str, Any]:
    """One row per method, train size and metric, the paper's figure beside it."""
    rows = leaderboard_rows(reports_in(list(run.inputs.values())), LEADERBOARD_METHODS)
    if not rows:
        raise DataError(
            "nothing has been evaluated yet",
            where=run.where,
            todo="materialize an evaluation first (act run --task ... --train-size ...)",
        )
    write_rows(folder / "leaderboard.parquet", rows, LeaderboardRow)
    return {"methods": len({(r.method, r.train_size) for r in rows}), "figures": len(rows)}


def build_report(run: StageRun, folder: Path) -> dict[str, Any]:
    """The static HTML page."""
    from act_assets.evaluation.report.evidence import Evidence
    from act_assets.evaluation.report.html import write_html

    found = {(a, int(s)): artifact for k, artifact in run.inputs.items() for a, _, s in [k.partition("@")] if s}
    return write_html(
        Evidence(run.task, run.profile, run.seed, TRAIN_SIZES, found, LEADERBOARD_METHODS), folder / "report.html"
    )


def publish_report(run: StageRun, artifact: Artifact) -> dict[str, Any]:
    """Copies the page to ACT_HOME/reports; returns where it lies."""
    run.reports_dir.mkdir(parents=True, exist_ok=True)
    page = run.reports_dir / report_name(run)
    beside = page.with_suffix(".tmp")
    beside.write_bytes(artifact.file("report.html").read_bytes())
    beside.rename(page)
    return {"page": str(page)}


def report_name(run: StageRun) -> str:
    """The file name of a run's page."""
    return f"{run.task.name}-{run.profile.name}-seed{run.seed}.html"


def find_report_inputs(run: StageRun) -> dict[str, Artifact]:
    """The evaluations, and the checkpoints whose curves the page shows."""
    return _current(run, (*EVALUATIONS, "sft_checkpoint", "act_checkpoint", "contrastive_pairs"))


# --- what stages share ----------------------------------------------------------------------------------------


def conversations_of(run: StageRun, side: str) -> list[Conversation]:
    """A side's conversations with gold labels."""
    return read_rows(run.inputs["conversations"].file(f"{side}.parquet"), Conversation)


def labelled_conversations(run: StageRun, side: str) -> list[Conversation]:
    """A side's conversations with G's labels in place of gold."""
    labels = {x.turn_id: x.label for x in read_rows(run.inputs["action_labels"].file(f"{side}.parquet"), ActionLabel)}
    return [
        replace(c, turns=tuple(replace(t, action=labels[t.turn_id]) for t in c.turns))
        for c in conversations_of(run, side)
    ]


def turns_of(run: StageRun, conversations: Sequence[Conversation]) -> list[TurnState]:
    """Every turn state, in order."""
    return [t for c in conversations for t in run.task.turn_states(c)]


def evaluation_side(run: StageRun) -> str:
    """The side that methods are evaluated on: the test side where the task has one, else validation."""
    return "test" if count_rows(run.inputs["conversations"].file("test.parquet")) else "validation"


def evaluated_turns(run: StageRun) -> list[TurnState]:
    """The turns that methods are evaluated on, with gold actions."""
    return [t for t in turns_of(run, conversations_of(run, evaluation_side(run))) if t.evaluated]


def equipped_task(run: StageRun) -> Task:
    """The run's task with a judge that can score."""
    return run.task.equipped(Tools(run.inputs["raw_dataset"].path, default_embedder(run.profile.embedder)))


def intents_of(artifact: Artifact) -> dict[str, str]:
    """What U is grounded in, by intent id."""
    return {i.intent_id: i.summary for i in read_rows(artifact.file("intents.parquet"), IntentSummary)}


def _side_conversations(run: StageRun, side: str, *, labelled: bool = False) -> list[Conversation]:
    """The subset where the stage is made per train size, else a side, with G's labels or gold ones."""
    if "train_subset" in run.inputs:
        return read_rows(run.inputs["train_subset"].file("train.parquet"), Conversation)
    return (labelled_conversations if labelled else conversations_of)(run, side)


def cast_of(run: StageRun) -> Cast:
    """The roles of a run."""
    return Cast(run.profile, run.task, run.prompts_dir, run.seed, run.calls)


def _count(run: StageRun, side: str, conversations: Sequence[Conversation]) -> dict[str, Any]:
    actions = [t.action for c in conversations for t in c.turns]
    counts = {f"{side}_{a.lower()}": actions.count(a) for a in run.task.action_names}
    return {f"{side}_conversations": len(conversations), f"{side}_turns": len(actions), **counts}


def _figures(report: EvaluationReport) -> dict[str, Any]:
    return {m.name: m.value for m in report.metrics} | {"turns": report.metrics[0].count}


def _raw_fingerprint(run: StageRun) -> Any:
    return [asdict(file_record(path, name)[0]) for name, path in source_files(run.task, run.data_dir).items()]


def _named(run: StageRun) -> Any:
    """What a report says of its run beside its figures."""
    return {"profile": run.profile.name, "action_supervision": describe_labels(run.profile), "judge": _judge(run)}


def _judge(run: StageRun) -> str:
    """What scores, an embedder's weights included; nothing scores where there is no raw dataset to score on."""
    return equipped_task(run).judge.identity if "raw_dataset" in run.inputs else run.task.judge.metric_name


def _policy_files(run: StageRun) -> Any:
    """The files of a policy that lies in a local folder, so that replaced weights are noticed."""
    from act_assets.training.base_policy import local_files

    return local_files(run.profile.policy)


def _page_fingerprint(run: StageRun) -> Any:
    return {"profile": run.profile.name, "settings": run.profile.digest(), "seed": run.seed}


def _roles(*names: str) -> Any:
    return lambda p: {n: getattr(p.roles, n) for n in names}


def _evaluation_settings(profile: Profile) -> Any:
    return {
        "evaluation": profile.evaluation,
        "policy": profile.policy,
        "simulator": profile.roles.simulator,
        "classifier": profile.roles.classifier,
        "in_context": profile.roles.in_context_conversations,
        "max_clarifications": profile.act.max_clarifications,
        "group": profile.rollout_batch_size,
    }


def _judge_and_tolerance(run: StageRun) -> Any:
    """The task's own, for they hold where the profile has none."""
    act, task = run.profile.act, run.task
    return [
        _judge(run),
        act.beta.get(task.name, task.beta),
        task.judge.tolerance if act.tolerance is None else act.tolerance,
    ]


def _sft_settings(profile: Profile) -> Any:
    """Without what only ACT reads of the policy."""
    policy = profile.policy.model_dump(mode="json", exclude={"lora", "max_new_tokens"})
    lora = profile.policy.lora
    return {"policy": policy, "lora": lora if lora is not None and lora.sft else None, "sft": profile.sft}


def _act_settings(profile: Profile) -> Any:
    return {
        "act": profile.act.model_dump(mode="json", exclude={"beta", "tolerance"}),
        "engine": profile.engine.name,
        "policy": profile.policy,
        "simulator": profile.roles.simulator,
        "classifier": profile.roles.classifier,
        "in_context": profile.roles.in_context_conversations,
    }


_LABELLED = ("conversations", "action_labels")
_PAIR_SETTINGS = _roles("generator", "in_context_conversations")

STAGES: dict[str, Stage] = {
    s.name: s
    for s in (
        Stage("raw_dataset", False, (), build_raw_dataset, seeded=False, fingerprint=_raw_fingerprint),
        Stage(
            "ambiguous_requests",
            False,
            ("raw_dataset",),
            build_ambiguous_requests,
            seeded=False,
            settings=lambda p: [p.roles.played()["perturbation"], p.ambiguous_requests],
            prompts=("perturbation",),
        ),
        Stage(
            "conversations", False, ("raw_dataset", "ambiguous_requests"), build_conversations, version=2, seeded=False
        ),
        Stage(
            "action_labels",
            False,
            ("conversations",),
            build_action_labels,
            settings=lambda p: [p.action_supervision, p.roles.annotator],
            prompts=("annotator",),
        ),
        Stage(
            "evaluation_intents",
            False,
            ("conversations",),
            build_intents,
            settings=_roles("intent"),
            prompts=("intent",),
        ),
        Stage(
            "validation_pairs",
            False,
            _LABELLED,
            build_contrastive_pairs,
            settings=_PAIR_SETTINGS,
            prompts=("generator",),
        ),
        Stage(
            "base_policy",
            False,
            ("conversations",),
            _training_build("base_policy"),
            resumable=True,
            version=2,
            settings=lambda p: [p.policy.model, p.policy.revision, p.policy.scratch, p.policy.max_length],
            fingerprint=_policy_files,
        ),
        Stage("train_subset", True, _LABELLED, build_train_subset),
        Stage(
            "intent_summaries", True, ("train_subset",), build_intents, settings=_roles("intent"), prompts=("intent",)
        ),
        Stage(
            "contrastive_pairs",
            True,
            ("train_subset",),
            build_contrastive_pairs,
            settings=_PAIR_SETTINGS,
            prompts=("generator",),
        ),
        Stage(
            "sft_checkpoint",
            True,
            ("base_policy", "train_subset", "conversations"),
            _training_build("sft_checkpoint"),
            resumable=True,
            version=2,
            settings=_sft_settings,
        ),
        Stage(
            "act_checkpoint",
            True,
            (
                "sft_checkpoint",
                "train_subset",
                "intent_summaries",
                "contrastive_pairs",
                "conversations",
                "validation_pairs",
                "raw_dataset",
            ),
            _training_build("act_checkpoint"),
            resumable=True,
            version=2,
            settings=_act_settings,
            fingerprint=_judge_and_tolerance,
            prompts=("simulator", "classifier"),
        ),
        *(
            Stage(
                f"evaluation_{method}",
                True,
                (f"{method}_checkpoint", "train_subset", "conversations", "evaluation_intents", "raw_dataset"),
                _evaluation_build(method),
                version=2,
                settings=_evaluation_settings,
                prompts=("simulator", "classifier"),
                fingerprint=_named,
            )
            for method in METHODS
        ),
        Stage(
            "evaluation_baselines",
            True,
            ("train_subset", "conversations"),
            build_baselines,
            version=3,
            settings=lambda p: p.evaluation.bootstrap_samples,
            fingerprint=_named,
        ),
        Stage("leaderboard", False, (), build_leaderboard, seeded=False, discover=find_evaluations),
        Stage(
            "report",
            False,
            ("leaderboard",),
            build_report,
            fingerprint=_page_fingerprint,
            discover=find_report_inputs,
            publish=publish_report,
        ),
    )
}
