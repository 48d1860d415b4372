"""Algorithm 2: what becomes the winner and the loser, which tokens carry loss, and a whole training."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from act_assets.conversation import Conversation, PreferencePair, Trajectory, TurnState, Utterance
from act_assets.profile import Act, LLMRole, Lora, Profile
from act_assets.roles import EmbeddedProvider, RuleClassifier, Simulator
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

pytestmark = pytest.mark.integration

Train = Callable[..., tuple[dict[str, Any], list[Any], Path]]


def _said(chat: ChatFormat, text: str, action: str, truncated: bool = False) -> Utterance:
    ids = chat.response_ids(text)
    return Utterance("assistant", text, action, tuple(ids[:-1] if truncated else ids), truncated)


def _judged(pair: Pair, task: Task, chat: ChatFormat, *utterances: Utterance, ended: str = "settled"):  # type: ignore[no-untyped-def]
    trajectory = Trajectory(pair.turn.turn_id, utterances, ended)  # type: ignore[arg-type]
    (score,) = outcome_heuristics(task, [pair], [trajectory])
    return (*judge_rollout(pair, trajectory, score, 0.9, chat, mask_user_tokens=True), score)


def _pair(pairs: list[Pair], action: str) -> Pair:
    return next(p for p in pairs if p.turn.action == action)


@pytest.fixture
def train(
    pacific: Task,
    few_turns: list[TurnState],
    preference_pairs: list[PreferencePair],
    model: Any,
    chat: ChatFormat,
    tmp_path_factory: pytest.TempPathFactory,
) -> Train:
    """`train_act` with a profile: facts, points and the folder of the artifact."""

    def run(profile: Profile, model: Any = model, beta: float = 0.01) -> tuple[dict[str, Any], list[Any], Path]:
        folder, task = tmp_path_factory.mktemp("act"), replace(pacific, beta=beta)
        save_model(model, chat.tokenizer, folder / "sft")
        (folder / "out").mkdir()
        turns = {t.turn_id: t for t in few_turns}
        intents = {t.intent_id: f"The user wants to know: 1. {t.clear_request}" for t in few_turns}
        user = Simulator(LLM(EmbeddedProvider()), LLMRole(provider="embedded", model="embedded-rules-1"), task)
        facts, points = train_act(
            task,
            turns,
            preference_pairs,
            turns,
            preference_pairs[:8],
            intents,
            RuleClassifier(task),
            user,
            folder / "sft",
            profile,
            3,
            folder / "out",
            folder / "work",
        )
        return facts, points, folder / "out"

    return run


# --- which side a rollout replaces (lines 3 to 16) ---


# A correct answer is the turn's goal; the published code chooses by F1 alone and ignores the classified action. As
# printed, the reward test stands inside the clarify loop, and answers would never be tested.
@pytest.mark.parametrize(
    ("action", "said", "ended", "verdict", "score", "replaced"),
    [
        ("CLARIFY", ["ANSWER: goal"], "settled", "wrong_action", None, "rejected"),
        ("CLARIFY", ["CLARIFY: Which?", "ANSWER: goal"], "settled", "good_outcome", 1.0, "chosen"),
        ("CLARIFY", ["CLARIFY: Which?", "ANSWER: no idea"], "settled", "bad_outcome", 0.0, "rejected"),
        ("ANSWER", ["ANSWER: no idea"], "settled", "bad_outcome", 0.0, "rejected"),
        ("CLARIFY", ["CLARIFY: Which?"], "max_clarifications", "bad_outcome", None, "rejected"),
        ("ANSWER", ["ANSWER: winner"], "settled", "already_winner", 1.0, ""),
        ("CLARIFY", ["ANSWER: winner"], "settled", "no_contrast", None, ""),
        ("CLARIFY", ["CLARIFY: Which?"], "too_long", "no_room", None, ""),
    ],
)
def test_which_side_a_rollout_replaces(
    pacific: Task,
    chat: ChatFormat,
    pairs: list[Pair],
    action: str,
    said: list[str],
    ended: str,
    verdict: str,
    score: float | None,
    replaced: str,
) -> None:
    pair = _pair(pairs, action)
    words = {"goal": pair.turn.goal.text, "winner": pair.chosen.text}
    utterances: list[Utterance] = []
    for label, text in (each.split(": ") for each in said):
        utterances += [Utterance("user", "the first one", "")] if utterances else []
        utterances.append(_said(chat, words.get(text, text), label))
    new, *found = _judged(pair, pacific, chat, *utterances, ended=ended)
    assert found == [verdict, score]
    for side in ("chosen", "rejected"):
        if side != replaced:
            assert getattr(new, side) is getattr(pair, side)
        else:
            ids = [i for u in utterances for i in u.token_ids or chat.reply_ids(u.text)]
            assert list(getattr(new, side).token_ids) == ids, "the whole trajectory"


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


class Asking:
    """A policy that asks, and then says what the user said."""

    def __init__(self, chat: ChatFormat) -> None:
        self.chat = chat

    def respond(self, dialogues: Sequence[Any]) -> list[Utterance]:
        return [_said(self.chat, d.utterances[-1].text if d.utterances else "Which?", "") for d in dialogues]


def _self_training(task: Task, chat: ChatFormat, reply: Any, intents: dict[str, str], act: Act) -> SelfTraining:
    policy: Any = Asking(chat)
    user: Any = SimpleNamespace(reply=reply)
    return SelfTraining(task, policy, RuleClassifier(task), user, intents, act, 0)


def test_every_reading_is_rolled_out_with_its_own_user(
    pacific: Task, ambiguous: Conversation, chat: ChatFormat, tiny_profile: Profile
) -> None:
    turns, prompts = pacific.turn_states(ambiguous), PromptEncoder(pacific, chat, 320)
    rejected = PreferencePair("pacific", "sales", "", "CLARIFY", "ANSWER", (), turns[0].response.text, "no idea", "")
    pairs = [initial_pair(t, replace(rejected, turn_id=t.turn_id), prompts, 1280) for t in turns]
    intents = {t.intent_id: t.goal.text for t in turns}
    training = _self_training(pacific, chat, lambda turns, intents, said: list(intents), intents, tiny_profile.act)
    sampled = training(pairs, 1, [7] * len(pairs), 7)
    rollouts, updated = [s.rollout for s in sampled], [s.applied(p) for s, p in zip(sampled, pairs, strict=True)]
    assert [r.outcome for r in rollouts] == [t.goal.text for t in turns]
    assert [(r.turn_id, r.verdict, r.heuristic) for r in rollouts] == [(t.turn_id, "good_outcome", 1.0) for t in turns]
    assert [p.rejected for p in updated] == [p.rejected for p in pairs]


def test_a_silent_simulator_ends_the_training_instead_of_spoiling_it(
    pacific: Task, pairs: list[Pair], chat: ChatFormat, tiny_profile: Profile
) -> None:
    def silent(turns: Sequence[TurnState], *_: Any) -> list[LLMFailure]:
        return [LLMFailure("timeout", "no answer", True, t.turn_id) for t in turns]

    clarify = [p for p in pairs if p.turn.action == "CLARIFY"]
    training = _self_training(pacific, chat, silent, {p.turn.intent_id: "" for p in clarify}, tiny_profile.act)
    with pytest.raises(RoleError) as caught:
        training(clarify, 1, [7] * len(clarify), 7)
    assert len(caught.value.failures) == len(clarify)


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
        loss = float(dpo_terms(sequence_log_probs(policy, batch), reference, 0.1)[0])
    ratio = {
        side: _log_prob(policy, new.prompt_ids, c.token_ids, c.loss_mask)
        - _log_prob(other, new.prompt_ids, c.token_ids, c.loss_mask)
        for side, c in (("chosen", new.chosen), ("rejected", new.rejected))
    }
    expected = -math.log(1 / (1 + math.exp(-0.1 * (ratio["chosen"] - ratio["rejected"]))))
    assert loss == pytest.approx(expected, abs=1e-5)


def test_policy_and_reference_score_the_same_token_ids_and_the_reference_stays(
    train: Train, preference_pairs: list[PreferencePair], tiny_profile: Profile, monkeypatch: pytest.MonkeyPatch
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
    train(tiny_profile)
    scored = {key for keys in by_policy for key in keys}
    initial = len({c for p in preference_pairs for c in ((p.turn_id, p.chosen), (p.turn_id, p.rejected))})
    assert scored == by_reference
    assert len(scored) > initial, "trajectories among them"
    ((reference, before),) = references
    assert all(torch.equal(a, b) for a, b in zip(before, reference.parameters(), strict=True))
    assert not any(p.requires_grad for p in reference.parameters())


# --- the whole of it ---


@pytest.mark.parametrize(
    ("named", "beta"), [({"pacific": 0.25}, 0.25), ({"another": 0.25}, 0.5), ({}, 0.5)], ids=["its", "other", "none"]
)
def test_the_tasks_own_beta_is_used_where_the_profile_names_none(
    train: Train, tiny_profile: Profile, monkeypatch: pytest.MonkeyPatch, named: dict[str, float], beta: float
) -> None:
    used: set[float] = set()

    def noting(log_probs: Any, reference: Any, beta: float) -> Any:
        used.add(beta)
        return dpo_terms(log_probs, reference, beta)

    monkeypatch.setattr("act_assets.training.act_trainer.dpo_terms", noting)
    train(tiny_profile.model_copy(update={"act": tiny_profile.act.model_copy(update={"beta": named})}), beta=0.5)
    assert used == {beta}


@pytest.fixture(scope="module")
def two_epochs(tiny_profile: Profile) -> Profile:
    act = tiny_profile.act.model_copy(update={"epochs": 2, "batch_size": 8})
    return tiny_profile.model_copy(update={"act": act})


def test_the_same_seed_gives_the_same_losses_weights_and_rollouts(
    train: Train, preference_pairs: list[PreferencePair], two_epochs: Profile
) -> None:
    (facts, points, out), (_, again, other) = train(two_epochs), train(two_epochs)
    assert points == again
    for name in ("model/model.safetensors", "rollouts/epoch-01.parquet", "rollouts/epoch-02.parquet"):
        assert (out / name).read_bytes() == (other / name).read_bytes()
    margins = {p.epoch: p.reward_margin for p in points if p.split == "validation"}
    assert facts["kept_epoch"] == max(margins, key=lambda e: margins[e] or -math.inf), "by margin, not by loss"
    rows = [r for e in (1, 2) for r in read_rows(out / "rollouts" / f"epoch-0{e}.parquet", Rollout)]
    assert len(rows) == 2 * len(preference_pairs)
    assert {r.epoch for r in rows} == {1, 2}
    assert all(r.chosen != r.rejected for r in rows)
    assert all((r.replaced == "loser") == (r.verdict in ("wrong_action", "bad_outcome")) for r in rows)
    assert not list(out.rglob("*.bin")), "nothing pickled"


def test_lora_keeps_its_base_as_reference_and_exports_a_merged_model(
    train: Train, model: Any, two_epochs: Profile
) -> None:
    from transformers import AutoModelForCausalLM

    policy = two_epochs.policy.model_copy(update={"lora": Lora(r=4, alpha=8)})
    *_, out = train(two_epochs.model_copy(update={"policy": policy}))
    assert (out / "adapter" / "adapter_model.safetensors").is_file()
    merged = AutoModelForCausalLM.from_pretrained(out / "model").state_dict()
    base = model.state_dict()
    changed = [k for k in merged if not torch.allclose(merged[k], base[k])]
    assert changed
    assert not any("embed" in k for k in changed)


def test_a_loss_that_is_not_finite_ends_the_run_with_advice(train: Train, model: Any, two_epochs: Profile) -> None:
    broken = copy.deepcopy(model)
    with torch.no_grad():
        next(iter(broken.parameters())).fill_(float("nan"))
    with pytest.raises(TrainingError, match=r"(?s)loss became nan.*lower the learning rate"):
        train(two_epochs, model=broken)
