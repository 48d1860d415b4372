"""SFT: the response and its end of turn carry loss, nothing else; the kept epoch is the best on validation."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from act_assets.conversation import Conversation, TurnState
from act_assets.profile import Profile
from act_assets.tasks.base import Task
from act_assets.training.act import gold_completion
from act_assets.training.base_policy import make_base_policy
from act_assets.training.chat_template import ChatFormat
from act_assets.training.logging import TrainingPoint
from act_assets.training.policy import PromptEncoder
from act_assets.training.sft import response_row, train_sft
from resources.errors import TrainingError
from resources.settings import Compute

pytestmark = pytest.mark.integration

UNMEASURED = (
    "turns",
    "steps",
    "kept_epoch",
    "validation_loss",
    "learning_rate",
    "tried_learning_rates",
    "loss_tokens_per_epoch",
)


def _train(
    task: Task, turns: list[TurnState], validation: list[TurnState], base: Path, profile: Profile, folder: Path
) -> tuple[dict[str, Any], list[TrainingPoint]]:
    """Facts without what was measured, and points."""
    work = folder.with_name(f"{folder.name}-work")
    facts, points = train_sft(task, turns, validation, (str(base), None), profile, 0, folder, work)
    return {k: v for k, v in facts.items() if k in UNMEASURED}, points


def test_only_the_response_carries_loss_and_it_is_tokenised_as_in_act(
    pacific: Task, every_turn: list[TurnState], chat: ChatFormat
) -> None:
    """The published code packs whole documents with loss on every token and tokenises SFT differently from ACT."""
    prompts = PromptEncoder(pacific, chat, 320)
    for turn in every_turn[::25]:
        row = response_row(turn, prompts, chat, 1280)
        response = gold_completion(turn.response.text, chat).token_ids
        assert row.token_ids == (*prompts.ids(turn), *response)
        assert row.loss_mask == (0,) * len(prompts.ids(turn)) + (1,) * len(response)
        assert len(prompts.ids(turn)) <= 320


def test_a_response_is_never_cut(pacific: Task, few_turns: list[TurnState], chat: ChatFormat) -> None:
    turn = few_turns[0]
    long = replace(turn, response=replace(turn.response, text="word " * 2000))
    with pytest.raises(TrainingError, match=turn.turn_id):
        response_row(long, PromptEncoder(pacific, chat, 320), chat, 1280)


def test_the_same_seed_gives_the_same_bytes_and_the_best_epoch_is_kept(
    pacific: Task, few_turns: list[TurnState], saved: Path, tiny_profile: Profile, tmp_path: Path
) -> None:
    profile = tiny_profile.model_copy(
        update={"sft": tiny_profile.sft.model_copy(update={"epochs": 3, "batch_size": 4})}
    )
    results = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        results.append(_train(pacific, few_turns, few_turns[:5], saved, profile, tmp_path / name))
    assert results[0] == results[1]
    a, b = (tmp_path / name / "model" / "model.safetensors" for name in ("a", "b"))
    assert a.read_bytes() == b.read_bytes()
    facts, points = results[0]
    losses = {p.epoch: p.loss for p in points if p.split == "validation"}
    assert facts["kept_epoch"] == min(losses, key=lambda e: losses[e])
    train = [p.loss for p in points if p.split == "train"]
    assert train[-1] < train[0], "it learns"


def test_a_prompt_with_several_readings_is_learnt_once(
    pacific: Task,
    ambiguous: Conversation,
    few_turns: list[TurnState],
    saved: Path,
    tiny_profile: Profile,
    tmp_path: Path,
) -> None:
    readings = list(pacific.turn_states(ambiguous))
    results = []
    for number in (3, 1):
        folder = tmp_path / str(number)
        folder.mkdir()
        turns = [*few_turns[:3], *readings[:number]]
        results.append(_train(pacific, turns, turns, saved, tiny_profile, folder))
    (facts, points), alone = results
    assert facts["turns"] == 4
    assert (facts, points) == alone, "one reading or three: the prompt and the response are the same"
    weights = [(tmp_path / str(n) / "model" / "model.safetensors").read_bytes() for n in (3, 1)]
    assert weights[0] == weights[1]


def test_the_base_policy_sees_what_the_user_said_before_and_a_shared_grounding_once(
    pacific: Task, ambiguous: Conversation, sample: Any
) -> None:
    from act_assets.training.base_policy import warm_up_texts

    twin = replace(ambiguous, conversation_id="twin", history=())
    texts = [(m.role, m.content) for group in warm_up_texts(pacific, [ambiguous, twin]) for m in group]
    assert texts == [
        ("system", pacific.reader.system_message(ambiguous.context)),
        ("user", "What does it sell?"),
        ("user", "What were the sales?"),
        ("user", "What were the sales?"),
    ]
    said = {m.content for group in warm_up_texts(pacific, sample.train) for m in group}
    responses = {t.response.text for c in sample.train for t in c.turns if t.response.answer_type == "arithmetic"}
    assert not responses & said, "no system response"


def test_a_folder_as_base_policy_is_referred_to_and_its_files_are_recorded(
    pacific: Task, sample: Any, saved: Path, tiny_profile: Profile, tmp_path: Path
) -> None:
    from act_assets.training.base_policy import SOURCE, base_policy_source, local_files

    shutil.copytree(saved, tmp_path / "mine")
    settings = tiny_profile.policy.model_copy(update={"model": str(tmp_path / "mine"), "scratch": None})
    (tmp_path / "artifact").mkdir()
    facts, points = make_base_policy(
        pacific, sample.train, settings, Compute(), 0, tmp_path / "artifact", tmp_path / "work"
    )
    assert points == []
    assert base_policy_source(tmp_path / "artifact") == (str((tmp_path / "mine").resolve()), None)
    assert "model.safetensors" in (tmp_path / "artifact" / SOURCE).read_text()
    assert facts["parameters"] > 0
    before = local_files(settings)
    (tmp_path / "mine" / "model.safetensors").write_bytes(b"other weights")
    assert before
    assert local_files(settings) != before, "replaced weights are noticed"


def test_mixed_precision_trains_and_keeps_fp32_weights(
    pacific: Task, few_turns: list[TurnState], saved: Path, tiny_profile: Profile, tmp_path: Path
) -> None:
    from safetensors.torch import load_file

    policy = tiny_profile.policy.model_copy(update={"mixed_precision": True})
    profile = tiny_profile.model_copy(update={"policy": policy})
    (tmp_path / "out").mkdir()
    _, points = _train(pacific, few_turns, few_turns[:4], saved, profile, tmp_path / "out")
    weights = load_file(tmp_path / "out" / "model" / "model.safetensors")
    assert {str(w.dtype) for w in weights.values()} == {"torch.float32"}
    assert points


def test_of_several_learning_rates_the_one_with_the_lowest_validation_loss_is_kept(
    pacific: Task, few_turns: list[TurnState], saved: Path, tiny_profile: Profile, tmp_path: Path
) -> None:

    def trained(name: str, *rates: float) -> tuple[dict[str, Any], bytes]:
        changes = {"learning_rate": rates[0], "further_learning_rates": rates[1:], "epochs": 2, "batch_size": 4}
        profile = tiny_profile.model_copy(update={"sft": tiny_profile.sft.model_copy(update=changes)})
        (tmp_path / name).mkdir()
        facts, _ = _train(pacific, few_turns, few_turns[:5], saved, profile, tmp_path / name)
        return facts, (tmp_path / name / "model" / "model.safetensors").read_bytes()

    several, weights = trained("several", 1e-6, 5e-3, 1e-5)
    alone, expected = trained("alone", 5e-3)
    assert several["learning_rate"] == 5e-3
    assert [rate for rate, _ in several["tried_learning_rates"]] == [1e-6, 5e-3, 1e-5]
    assert several["validation_loss"] == min(loss for _, loss in several["tried_learning_rates"])
    assert (several["validation_loss"], weights) == (alone["validation_loss"], expected), "as if it were tried alone"


def test_packing_the_turns_of_a_conversation_computes_less_and_changes_no_loss(
    pacific: Task, few_turns: list[TurnState], chat: ChatFormat, model: Any
) -> None:
    from act_assets.training.logprobs import sequence_log_probs
    from act_assets.training.packing import Batch, rows_of
    from act_assets.training.sft import groups_of

    model.eval()
    prompts = PromptEncoder(pacific, chat, 320)
    scores, tokens = [], []
    for packing in (True, False):
        rows = [r for g in groups_of(few_turns, prompts, chat, 1280, packing=packing) for r in rows_of(g, share=True)]
        batch = Batch.of(rows, chat.pad_id)
        found = sequence_log_probs(model, batch).tolist()
        texts = [s.token_ids for row in rows for s in row.sequences]
        scores.append([score for _, score in sorted(zip(texts, found, strict=True))])
        tokens.append(batch.tokens)
    assert scores[0] == pytest.approx(scores[1], rel=1e-5)
    assert tokens[0] < 0.8 * tokens[1]


def test_a_conversation_that_is_longer_than_a_pass_is_split(
    pacific: Task, few_turns: list[TurnState], saved: Path, tiny_profile: Profile, tmp_path: Path
) -> None:
    losses = []
    for limit in (None, 500):
        profile = tiny_profile.model_copy(update={"compute": Compute(micro_batch_tokens=limit)})
        (tmp_path / str(limit)).mkdir()
        _, points = _train(pacific, few_turns, few_turns, saved, profile, tmp_path / str(limit))
        losses.append([p.loss for p in points])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
