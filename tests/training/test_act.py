"""Algorithm 2: what becomes the winner and the loser, which tokens carry loss, and a whole training."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from act_assets.conversation import Conversation, PreferencePair, Trajectory, TurnState, Utterance
from act_assets.preference import build_pairs
from act_assets.profile import LLMRole, Lora, Profile
from act_assets.roles import EmbeddedProvider, Generator, RuleClassifier, Simulator
from act_assets.rows import read_rows
from act_assets.tasks.base import Task
from act_assets.tasks.pacific.answer import PacificJudge
from act_assets.training.act import (
    Pair,
    Rollout,
    SelfTraining,
    initial_pair,
    judge_rollout,
    outcome_heuristics,
    trajectory_completion,
)
from act_assets.training.act_trainer import train_act
from act_assets.training.base_policy import build_model
from act_assets.training.chat_template import ChatFormat
from act_assets.training.logprobs import ReferenceScores, dpo_terms, sequence_log_probs, text_key
from act_assets.training.packing import Batch, rows_of
from act_assets.training.policy import PromptEncoder, save_model
from resources.errors import RoleError, TrainingError
from resources.llm.base import LLMFailure
from resources.llm.client import LLM


@pytest.fixture(scope="module")
def chat(tiny_tokenizer: Any) -> ChatFormat:
    return ChatFormat(tiny_tokenizer)


@pytest.fixture(scope="module")
def model(tiny_profile: Profile, chat: ChatFormat) -> Any:
    scratch = tiny_profile.policy.scratch
    assert scratch is not None
    return build_model(scratch, len(chat.tokenizer), 1280, chat, seed=1)


@pytest.fixture(scope="module")
def preference_pairs(pacific: Task, few_turns: list[TurnState]) -> list[PreferencePair]:
    settings = LLMRole(provider="embedded", model="embedded-rules-1")
    return build_pairs(pacific, few_turns, Generator(LLM(EmbeddedProvider()), settings, pacific, ()), 0)[0]


@pytest.fixture(scope="module")
def pairs(
    pacific: Task, few_turns: list[TurnState], preference_pairs: list[PreferencePair], chat: ChatFormat
) -> list[Pair]:
    prompts, turns = PromptEncoder(pacific, chat, 320), {t.turn_id: t for t in few_turns}
    return [initial_pair(turns[p.turn_id], p, prompts, 1280) for p in preference_pairs]


def _said(chat: ChatFormat, text: str, action: str, truncated: bool = False) -> Utterance:
    ids = chat.response_ids(text)
    return Utterance("assistant", text, action, tuple(ids[:-1] if truncated else ids), truncated)


def _judged(pair: Pair, task: Task, chat: ChatFormat, *utterances: Utterance, ended: str = "settled"):  # type: ignore[no-untyped-def]
    trajectory = Trajectory(pair.turn.turn_id, utterances, ended)  # type: ignore[arg-type]
    (score,) = outcome_heuristics(task, [pair], [trajectory])
    return (*judge_rollout(pair, trajectory, score, 0.9, chat, mask_user_tokens=True), score)


def _pair(pairs: list[Pair], action: str) -> Pair:
    return next(p for p in pairs if p.turn.action == action)


# --- which side a rollout replaces (lines 3 to 16) ---


def test_a_wrong_action_loses_even_with_the_right_words(pacific: Task, chat: ChatFormat, pairs: list[Pair]) -> None:
    """The published code chooses the winner by F1 alone and ignores the classified action."""
    pair = _pair(pairs, "CLARIFY")
    new, verdict, score = _judged(pair, pacific, chat, _said(chat, pair.turn.goal.text, "ANSWER"))
    assert (verdict, score) == ("wrong_action", None)
    assert new.rejected.text == pair.turn.goal.text
    assert new.chosen is pair.chosen


def test_a_good_trajectory_wins_as_a_whole(pacific: Task, chat: ChatFormat, pairs: list[Pair]) -> None:
    pair = _pair(pairs, "CLARIFY")
    ask, reply = _said(chat, "Which one do you mean?", "CLARIFY"), Utterance("user", "the first one", "")
    new, verdict, score = _judged(pair, pacific, chat, ask, reply, _said(chat, pair.turn.goal.text, "ANSWER"))
    assert (verdict, score) == ("good_outcome", 1.0)
    assert new.rejected is pair.rejected
    expected = [*ask.token_ids, *chat.reply_ids("the first one"), *chat.response_ids(pair.turn.goal.text)]
    assert list(new.chosen.token_ids) == expected


def test_a_bad_outcome_loses_as_a_whole(pacific: Task, chat: ChatFormat, pairs: list[Pair]) -> None:
    pair = _pair(pairs, "CLARIFY")
    ask, reply = _said(chat, "Which one do you mean?", "CLARIFY"), Utterance("user", "the first one", "")
    new, verdict, score = _judged(pair, pacific, chat, ask, reply, _said(chat, "no idea", "ANSWER"))
    assert (verdict, score) == ("bad_outcome", 0.0)
    assert new.rejected.text.endswith("no idea")
    assert new.chosen is pair.chosen


def test_a_single_answer_is_tested_too(pacific: Task, chat: ChatFormat, pairs: list[Pair]) -> None:
    """As printed, the reward test stands inside the clarify loop, and answers would never be tested."""
    pair = _pair(pairs, "ANSWER")
    new, verdict, score = _judged(pair, pacific, chat, _said(chat, "no idea", "ANSWER"))
    assert (verdict, score, new.rejected.text) == ("bad_outcome", 0.0, "no idea")


def test_a_trajectory_that_never_settles_loses(pacific: Task, chat: ChatFormat, pairs: list[Pair]) -> None:
    pair = _pair(pairs, "CLARIFY")
    new, verdict, score = _judged(pair, pacific, chat, _said(chat, "Which?", "CLARIFY"), ended="max_clarifications")
    assert (verdict, score, new.rejected.text) == ("bad_outcome", None, "Which?")


def test_a_correct_answer_that_is_already_the_winner_changes_nothing(
    pacific: Task, chat: ChatFormat, pairs: list[Pair]
) -> None:
    pair = _pair(pairs, "ANSWER")
    new, verdict, score = _judged(pair, pacific, chat, _said(chat, pair.chosen.text, "ANSWER"))
    assert (new, verdict, score) == (pair, "already_winner", 1.0)


def test_equal_winner_and_loser_never_reach_the_loss(pacific: Task, chat: ChatFormat, pairs: list[Pair]) -> None:
    pair = _pair(pairs, "CLARIFY")
    new, verdict, _ = _judged(pair, pacific, chat, _said(chat, pair.chosen.text, "ANSWER"))
    assert (new, verdict) == (pair, "no_contrast")


def test_a_conversation_that_does_not_fit_says_nothing_about_the_response(
    pacific: Task, chat: ChatFormat, pairs: list[Pair]
) -> None:
    pair = _pair(pairs, "CLARIFY")
    new, verdict, score = _judged(pair, pacific, chat, _said(chat, "Which?", "CLARIFY"), ended="too_long")
    assert (new, verdict, score) == (pair, "no_room", None)


def test_outcomes_are_judged_at_once_and_only_those_of_the_right_action(
    pacific: Task, chat: ChatFormat, pairs: list[Pair]
) -> None:
    asked: list[list[str]] = []

    class Noting(PacificJudge):
        def heuristic(self, turns: Sequence[TurnState], outcomes: Sequence[str]) -> list[float]:
            asked.append(list(outcomes))
            return super().heuristic(turns, outcomes)

    clarify, answer = _pair(pairs, "CLARIFY"), _pair(pairs, "ANSWER")
    ask, reply = _said(chat, "Which one?", "CLARIFY"), Utterance("user", "the first one", "")
    said = (
        (answer, (_said(chat, "no idea", "ANSWER"),), "settled"),
        (clarify, (_said(chat, clarify.turn.goal.text, "ANSWER"),), "not_rolled_out"),
        (clarify, (ask,), "max_clarifications"),
        (clarify, (), "too_long"),
        (clarify, (ask, reply, _said(chat, clarify.turn.goal.text, "ANSWER")), "settled"),
    )
    trajectories = [Trajectory("t", utterances, ended) for _, utterances, ended in said]  # type: ignore[arg-type]
    of = [pair for pair, _, _ in said]
    scores = outcome_heuristics(replace(pacific, judge=Noting()), of, trajectories)
    assert scores == [0.0, None, None, None, 1.0]
    assert asked == [["no idea", clarify.turn.goal.text]]
    assert outcome_heuristics(pacific, [], []) == []


@pytest.mark.parametrize(("score", "verdict"), [(0.7, "good_outcome"), (0.69, "bad_outcome"), (None, "bad_outcome")])
def test_an_outcome_at_the_tolerance_wins(
    chat: ChatFormat, pairs: list[Pair], score: float | None, verdict: str
) -> None:
    pair = _pair(pairs, "CLARIFY")
    said = (_said(chat, "Which one?", "CLARIFY"), Utterance("user", "this", ""), _said(chat, "12 of it", "ANSWER"))
    trajectory = Trajectory(pair.turn.turn_id, said, "settled")
    assert judge_rollout(pair, trajectory, score, 0.7, chat, mask_user_tokens=True)[1] == verdict


def test_every_reading_is_rolled_out_with_its_own_user(
    pacific: Task, ambiguous: Conversation, chat: ChatFormat, tiny_profile: Profile
) -> None:
    turns, prompts = pacific.turn_states(ambiguous), PromptEncoder(pacific, chat, 320)
    rejected = PreferencePair("pacific", "sales", "", "CLARIFY", "ANSWER", (), turns[0].response.text, "no idea", "")
    pairs = [initial_pair(t, replace(rejected, turn_id=t.turn_id), prompts, 1280) for t in turns]

    class AsksThenRepeats:
        """Asks, and then says what the user said."""

        def __init__(self) -> None:
            self.chat = chat

        def respond(self, dialogues: Sequence[Any]) -> list[Utterance]:
            return [_said(chat, d.utterances[-1].text if d.utterances else "Which?", "") for d in dialogues]

    class Wanting:
        def reply(self, turns, intents, trajectories):  # type: ignore[no-untyped-def]
            return list(intents)

    training = SelfTraining(
        pacific,
        AsksThenRepeats(),  # type: ignore[arg-type]
        RuleClassifier(pacific),
        Wanting(),  # type: ignore[arg-type]
        {t.intent_id: t.goal.text for t in turns},
        tiny_profile.act,
        0,
    )
    sampled = training(pairs, 1, [7] * len(pairs), 7)
    rollouts, updated = [s.rollout for s in sampled], [s.applied(p) for s, p in zip(sampled, pairs, strict=True)]
    assert [r.outcome for r in rollouts] == [t.goal.text for t in turns]
    assert [(r.turn_id, r.verdict, r.heuristic) for r in rollouts] == [(t.turn_id, "good_outcome", 1.0) for t in turns]
    assert [p.rejected for p in updated] == [p.rejected for p in pairs]


def test_a_silent_simulator_ends_the_training_instead_of_spoiling_it(
    pacific: Task, few_turns: list[TurnState], pairs: list[Pair], chat: ChatFormat, tiny_profile: Profile
) -> None:
    class Asking:
        def __init__(self) -> None:
            self.chat = chat

        def respond(self, dialogues: Sequence[Any]) -> list[Utterance]:
            return [_said(chat, "Which?", "") for _ in dialogues]

    class Refusing:
        def reply(self, turns, intents, trajectories):  # type: ignore[no-untyped-def]
            return [LLMFailure("timeout", "no answer", True, t.turn_id) for t in turns]

    clarify = [p for p in pairs if p.turn.action == "CLARIFY"]
    training = SelfTraining(
        pacific,
        Asking(),  # type: ignore[arg-type]
        RuleClassifier(pacific),
        Refusing(),  # type: ignore[arg-type]
        {p.turn.intent_id: "" for p in clarify},
        tiny_profile.act,
        0,
    )
    with pytest.raises(RoleError, match=f"simulated user: {len(clarify)} of {len(clarify)}"):
        training(clarify, 1, [7] * len(clarify), 7)


# --- which tokens carry loss ---


def test_the_users_tokens_carry_no_loss_unless_asked_for(chat: ChatFormat) -> None:
    utterances = (_said(chat, "Which?", "CLARIFY"), Utterance("user", "2019", ""), _said(chat, "5", "ANSWER"))
    trajectory = Trajectory("t", utterances, "settled")
    reply = len(chat.reply_ids("2019"))
    masked = trajectory_completion(trajectory, chat, mask_user_tokens=True)
    first, last = len(utterances[0].token_ids), len(utterances[2].token_ids)
    assert masked.loss_mask == (1,) * first + (0,) * reply + (1,) * last
    assert set(trajectory_completion(trajectory, chat, mask_user_tokens=False).loss_mask) == {1}


def test_an_end_of_turn_that_was_not_sampled_carries_no_loss(chat: ChatFormat) -> None:
    cut = _said(chat, "Which year? And", "CLARIFY", truncated=True)
    trajectory = Trajectory("t", (cut, Utterance("user", "2019", ""), _said(chat, "5", "ANSWER")), "settled")
    completion = trajectory_completion(trajectory, chat, mask_user_tokens=True)
    position = len(cut.token_ids)
    assert completion.token_ids[position] == chat.end_id
    assert completion.loss_mask[position] == 0
    alone = trajectory_completion(Trajectory("t", (cut,), "max_clarifications"), chat, mask_user_tokens=True)
    assert alone.token_ids == cut.token_ids


def test_every_pair_keeps_all_its_response_tokens(pairs: list[Pair], chat: ChatFormat) -> None:
    """In the published code a fifth of the examples keep no response token, and so no gradient."""
    for pair in pairs:
        for row, text in zip(pair.rows, (pair.chosen.text, pair.rejected.text), strict=True):
            kept = [i for i, carries in zip(row.token_ids, row.loss_mask, strict=True) if carries]
            assert kept == chat.response_ids(text)
            assert row.token_ids[: len(pair.prompt_ids)] == pair.prompt_ids


def test_what_does_not_fit_is_an_error_that_names_the_turn(
    pacific: Task, few_turns: list[TurnState], preference_pairs: list[PreferencePair], chat: ChatFormat
) -> None:
    prompts, turns = PromptEncoder(pacific, chat, 320), {t.turn_id: t for t in few_turns}
    pair = replace(preference_pairs[0], rejected="word " * 2000)
    with pytest.raises(TrainingError, match=pair.turn_id):
        initial_pair(turns[pair.turn_id], pair, prompts, 1280)


# --- the update (equation 1) ---


def _log_prob(model: Any, prompt: Sequence[int], ids: Sequence[int], mask: Sequence[int]) -> float:
    with torch.no_grad():
        logits = model(torch.tensor([[*prompt, *ids]])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
    chosen = logits[range(len(ids)), list(ids)]
    return float((chosen * torch.tensor(mask)).sum())


def test_the_loss_is_equation_1_on_the_updated_pair_with_user_tokens_left_out(
    pacific: Task, chat: ChatFormat, model: Any, pairs: list[Pair], tiny_profile: Profile
) -> None:
    pair = _pair(pairs, "CLARIFY")
    ask, reply = _said(chat, "Which one?", "CLARIFY"), Utterance("user", "the first one", "")
    new, _, _ = _judged(pair, pacific, chat, ask, reply, _said(chat, pair.turn.goal.text, "ANSWER"))
    assert 0 in new.chosen.loss_mask
    assert tiny_profile.policy.scratch is not None
    other = build_model(tiny_profile.policy.scratch, len(chat.tokenizer), 1280, chat, seed=2).eval()
    policy = copy.deepcopy(model).eval()
    batch = Batch.of(rows_of(new.rows, share=True), chat.pad_id)
    reference = torch.tensor(ReferenceScores(other, chat.pad_id, "cpu")([new.rows]))
    with torch.no_grad():
        loss = float(dpo_terms(sequence_log_probs(policy, batch), reference, 0.1).loss)
    ratio = {
        side: _log_prob(policy, new.prompt_ids, c.token_ids, c.loss_mask)
        - _log_prob(other, new.prompt_ids, c.token_ids, c.loss_mask)
        for side, c in (("chosen", new.chosen), ("rejected", new.rejected))
    }
    expected = -math.log(1 / (1 + math.exp(-0.1 * (ratio["chosen"] - ratio["rejected"]))))
    assert loss == pytest.approx(expected, abs=1e-5)


def test_policy_and_reference_score_the_same_token_ids_and_the_reference_stays(
    pacific: Task,
    few_turns: list[TurnState],
    preference_pairs: list[PreferencePair],
    model: Any,
    chat: ChatFormat,
    tiny_profile: Profile,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In the published code the reference simulates a trajectory of its own."""
    by_policy: list[list[str]] = []
    by_reference: set[str] = set()
    references: list[Any] = []

    class Noting(ReferenceScores):
        def __init__(self, model: Any, *arguments: Any, **options: Any) -> None:
            super().__init__(model, *arguments, **options)
            references.append((model, [p.clone() for p in model.parameters()]))

        def __call__(self, groups: Any) -> list[float]:
            by_reference.update(text_key(row) for group in groups for row in group)
            return super().__call__(groups)

    of = Batch.of

    def noting_batch(rows: Any, *arguments: Any) -> Any:
        by_policy.append([text_key(s) for row in rows for s in row.sequences])
        return of(rows, *arguments)

    monkeypatch.setattr("act_assets.training.act_trainer.ReferenceScores", Noting)
    monkeypatch.setattr("act_assets.training.act_trainer.Batch.of", noting_batch)
    _train(pacific, few_turns, preference_pairs, model, chat, tiny_profile, tmp_path / "run")
    scored = {key for keys in by_policy for key in keys}
    initial = len({c for p in preference_pairs for c in ((p.turn_id, p.chosen), (p.turn_id, p.rejected))})
    assert scored == by_reference
    assert len(scored) > initial, "trajectories among them"
    ((reference, before),) = references
    assert all(torch.equal(a, b) for a, b in zip(before, reference.parameters(), strict=True))
    assert not any(p.requires_grad for p in reference.parameters())


# --- the whole of it ---


def _train(
    task: Task,
    turns: list[TurnState],
    pairs: list[PreferencePair],
    model: Any,
    chat: ChatFormat,
    profile: Profile,
    folder: Path,
) -> tuple[dict[str, Any], list[Any]]:
    folder.mkdir()
    save_model(model, chat.tokenizer, folder / "sft")
    (folder / "out").mkdir()
    by_id = {t.turn_id: t for t in turns}
    intents = {t.intent_id: f"The user wants to know: 1. {t.clear_request}" for t in turns}
    user = Simulator(LLM(EmbeddedProvider()), LLMRole(provider="embedded", model="embedded-rules-1"), task)
    return train_act(
        task,
        by_id,
        pairs,
        by_id,
        pairs[:8],
        intents,
        RuleClassifier(task),
        user,
        folder / "sft",
        profile,
        3,
        folder / "out",
        folder / "work",
    )


@pytest.mark.parametrize(
    ("named", "beta"), [({"pacific": 0.25}, 0.25), ({"another": 0.25}, 0.5), ({}, 0.5)], ids=["its", "other", "none"]
)
def test_the_tasks_own_beta_is_used_where_the_profile_names_none(
    pacific: Task,
    few_turns: list[TurnState],
    preference_pairs: list[PreferencePair],
    model: Any,
    chat: ChatFormat,
    tiny_profile: Profile,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    named: dict[str, float],
    beta: float,
) -> None:
    used: set[float] = set()

    def noting(log_probs: Any, reference: Any, beta: float) -> Any:
        used.add(beta)
        return dpo_terms(log_probs, reference, beta)

    monkeypatch.setattr("act_assets.training.act_trainer.dpo_terms", noting)
    profile = tiny_profile.model_copy(update={"act": tiny_profile.act.model_copy(update={"beta": named})})
    _train(replace(pacific, beta=0.5), few_turns, preference_pairs, model, chat, profile, tmp_path / "out")
    assert used == {beta}


@pytest.fixture(scope="module")
def two_epochs(tiny_profile: Profile) -> Profile:
    act = tiny_profile.act.model_copy(update={"epochs": 2, "batch_size": 8})
    return tiny_profile.model_copy(update={"act": act})


def test_the_same_seed_gives_the_same_losses_weights_and_rollouts(
    pacific: Task,
    few_turns,
    preference_pairs,
    model,
    chat,
    two_epochs: Profile,
    tmp_path: Path,  # type: ignore[no-untyped-def]
) -> None:
    runs = [_train(pacific, few_turns, preference_pairs, model, chat, two_epochs, tmp_path / name) for name in "ab"]
    assert runs[0][1] == runs[1][1]
    for name in ("model/model.safetensors", "rollouts/epoch-01.parquet", "rollouts/epoch-02.parquet"):
        assert (tmp_path / "a" / "out" / name).read_bytes() == (tmp_path / "b" / "out" / name).read_bytes()
    facts, points = runs[0]
    margins = {p.epoch: p.reward_margin for p in points if p.split == "validation"}
    assert facts["kept_epoch"] == max(margins, key=lambda e: margins[e] or -math.inf), "by margin, not by loss"
    rows = [r for e in (1, 2) for r in read_rows(tmp_path / "a" / "out" / "rollouts" / f"epoch-0{e}.parquet", Rollout)]
    assert len(rows) == 2 * len(preference_pairs)
    assert {r.epoch for r in rows} == {1, 2}
    assert all(r.chosen != r.rejected for r in rows)
    assert all((r.replaced == "loser") == (r.verdict in ("wrong_action", "bad_outcome")) for r in rows)
    assert not list((tmp_path / "a" / "out").rglob("*.bin")), "nothing pickled"


def test_lora_keeps_its_base_as_reference_and_exports_a_merged_model(
    pacific: Task,
    few_turns,
    preference_pairs,
    model,
    chat,
    two_epochs: Profile,
    tmp_path: Path,  # type: ignore[no-untyped-def]
) -> None:
    from transformers import AutoModelForCausalLM

    policy = two_epochs.policy.model_copy(update={"lora": Lora(r=4, alpha=8)})
    profile = two_epochs.model_copy(update={"policy": policy})
    _train(pacific, few_turns, preference_pairs, model, chat, profile, tmp_path / "lora")
    out = tmp_path / "lora" / "out"
    assert (out / "adapter" / "adapter_model.safetensors").is_file()
    merged = AutoModelForCausalLM.from_pretrained(out / "model").state_dict()
    base = model.state_dict()
    changed = [k for k in merged if not torch.allclose(merged[k], base[k])]
    assert changed
    assert not any("embed" in k for k in changed)


def test_a_loss_that_is_not_finite_ends_the_run_with_advice(
    pacific: Task,
    few_turns,
    preference_pairs,
    model,
    chat,
    two_epochs: Profile,
    tmp_path: Path,  # type: ignore[no-untyped-def]
) -> None:
    broken = copy.deepcopy(model)
    with torch.no_grad():
        next(iter(broken.parameters())).fill_(float("nan"))
    with pytest.raises(TrainingError, match=r"(?s)loss became nan.*lower the learning rate"):
        _train(pacific, few_turns, preference_pairs, broken, chat, two_epochs, tmp_path / "nan")
