"""SFT: the response and its end of turn carry loss, nothing else; the kept epoch is the best on validation."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from act_assets.conversation import Conversation, TurnState
from act_assets.errors import TrainingError
from act_assets.profile import Profile
from act_assets.tasks.base import Task
from act_assets.training.act import gold_completion
from act_assets.training.base_policy import build_model, make_base_policy
from act_assets.training.chat import ChatFormat
from act_assets.training.policy import PromptEncoder, save_model
from act_assets.training.sft import response_row, train_sft


@pytest.fixture(scope="module")
def chat(tiny_tokenizer: Any) -> ChatFormat:
    return ChatFormat(tiny_tokenizer)


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
    pacific: Task, few_turns: list[TurnState], chat: ChatFormat, tiny_profile: Profile, tmp_path: Path
) -> None:
    scratch = tiny_profile.policy.scratch
    assert scratch is not None
    profile = tiny_profile.model_copy(
        update={"sft": tiny_profile.sft.model_copy(update={"epochs": 3, "batch_size": 4})}
    )
    save_model(build_model(scratch, len(chat.tokenizer), 1280, chat, seed=1), chat.tokenizer, tmp_path / "base")
    results = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        results.append(
            train_sft(pacific, few_turns, few_turns[:5], (str(tmp_path / "base"), None), profile, 0, tmp_path / name)
        )
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
    chat: ChatFormat,
    tiny_profile: Profile,
    tmp_path: Path,
) -> None:
    scratch = tiny_profile.policy.scratch
    assert scratch is not None
    save_model(build_model(scratch, len(chat.tokenizer), 1280, chat, seed=1), chat.tokenizer, tmp_path / "base")
    readings = list(pacific.turn_states(ambiguous))
    results = []
    for number in (3, 1):
        folder = tmp_path / str(number)
        folder.mkdir()
        turns = [*few_turns[:3], *readings[:number]]
        base = (str(tmp_path / "base"), None)
        results.append(train_sft(pacific, turns, turns, base, tiny_profile, 0, folder))
    (facts, points), alone = results
    assert facts["turns"] == 4
    assert (facts, points) == alone, "one reading or three: the prompt and the response are the same"
    weights = [(tmp_path / str(n) / "model" / "model.safetensors").read_bytes() for n in (3, 1)]
    assert weights[0] == weights[1]


def test_the_base_policy_sees_what_the_user_said_before_and_a_shared_grounding_once(
    pacific: Task, ambiguous: Conversation
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


def test_the_base_policy_sees_no_system_response(pacific: Task, sample: Any) -> None:
    from act_assets.training.base_policy import warm_up_texts

    texts = warm_up_texts(pacific, sample.train)
    assert {m.role for group in texts for m in group} == {"system", "user"}
    responses = {t.response.text for c in sample.train for t in c.turns if t.response.answer_type == "arithmetic"}
    assert not responses & {m.content for group in texts for m in group}


def test_a_folder_as_base_policy_is_referred_to_and_its_files_are_recorded(
    pacific: Task, sample: Any, chat: ChatFormat, tiny_profile: Profile, tmp_path: Path
) -> None:
    from act_assets.training.base_policy import SOURCE, base_policy_source, local_files

    scratch = tiny_profile.policy.scratch
    assert scratch is not None
    save_model(build_model(scratch, len(chat.tokenizer), 1280, chat, seed=1), chat.tokenizer, tmp_path / "mine")
    settings = tiny_profile.policy.model_copy(update={"model": str(tmp_path / "mine"), "scratch": None})
    (tmp_path / "artifact").mkdir()
    facts, points = make_base_policy(pacific, sample.train, settings, 0, tmp_path / "artifact")
    assert points == []
    assert base_policy_source(tmp_path / "artifact") == (str((tmp_path / "mine").resolve()), None)
    assert "model.safetensors" in (tmp_path / "artifact" / SOURCE).read_text()
    assert facts["parameters"] > 0
    before = local_files(settings)
    (tmp_path / "mine" / "model.safetensors").write_bytes(b"other weights")
    assert before
    assert local_files(settings) != before, "replaced weights are noticed"


def test_mixed_precision_trains_and_keeps_fp32_weights(
    pacific: Task, few_turns: list[TurnState], chat: ChatFormat, tiny_profile: Profile, tmp_path: Path
) -> None:
    from safetensors.torch import load_file

    scratch = tiny_profile.policy.scratch
    assert scratch is not None
    policy = tiny_profile.policy.model_copy(update={"mixed_precision": True})
    profile = tiny_profile.model_copy(update={"policy": policy})
    save_model(build_model(scratch, len(chat.tokenizer), 1280, chat, seed=1), chat.tokenizer, tmp_path / "base")
    (tmp_path / "out").mkdir()
    _, points = train_sft(
        pacific, few_turns, few_turns[:4], (str(tmp_path / "base"), None), profile, 0, tmp_path / "out"
    )
    weights = load_file(tmp_path / "out" / "model" / "model.safetensors")
    assert {str(w.dtype) for w in weights.values()} == {"torch.float32"}
    assert points
