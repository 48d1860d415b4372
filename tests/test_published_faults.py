"""One test for each fault of the published code that can be tested (docs/architecture.md lists where each is).

Those that another file tests in depth are named there; here stand the rest, and one end-to-end look at each seam.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from act_assets.conversation import TurnState, Utterance
from act_assets.preference import build_pairs
from act_assets.profile import LLMRole
from act_assets.roles import EmbeddedProvider, Generator, Simulator
from act_assets.roles.role import draw_in_context
from act_assets.tasks.base import Task, TaskData, messages_of
from resources.errors import RoleError
from resources.llm.base import LLMRequest, LLMResponse, ProviderError
from resources.llm.client import LLM

ROLE = LLM(EmbeddedProvider()), LLMRole(provider="embedded", model="embedded-rules-1", max_output_tokens=77)


def test_a_post_clarification_prompt_does_not_hold_its_own_gold_answer(
    pacific: Task, every_turn: list[TurnState]
) -> None:
    """Published: 320 of 320 such prompts do, and half of all prompts hold history twice."""
    after = [t for t in every_turn if t.position and t.open_request < len(t.history) - 1]
    assert len(after) == 320
    for turn in after:
        messages = [m.content for m in messages_of(pacific, turn)[1:]]
        assert messages[-1] == turn.request
        assert len(messages) == 2 * turn.position + 1
        earlier = {
            t.response.text
            for t in every_turn
            if t.conversation_id == turn.conversation_id and t.position < turn.position
        }
        assert turn.response.text not in messages or turn.response.text in earlier


def test_m_is_shown_seeded_conversations_of_the_training_side_and_has_limits_as_u_has(
    pacific: Task, sample: TaskData, few_turns: list[TurnState]
) -> None:
    """Published: few-shot prompts are never used, and drawn unseeded, validation's from validation gold;
    limits and stop sequences are never passed to U and M."""
    examples = draw_in_context(sample.train, 10, seed=0)
    assert examples == draw_in_context(sample.train, 10, 0) != draw_in_context(sample.train, 10, 1)
    assert len(draw_in_context(sample.train[:4], 10, 0)) == 4
    assert not {c.conversation_id for c in sample.validation} & {c.conversation_id for c in sample.train}
    number = len(few_turns)
    asked = Generator(*ROLE, pacific, examples).requests(few_turns, ["ANSWER"] * number, [0] * number)
    for request in asked:
        text = "\n".join(m.content for m in request.messages)
        assert sum(e.turns[0].user in text for e in examples) >= 9
    said = (Utterance("assistant", "Which year?", "CLARIFY"),)
    asked += Simulator(*ROLE, pacific).requests(few_turns[:1], ["The user wants to know: 1. a thing in 2019"], [said])
    assert {r.sampling.max_output_tokens for r in asked} == {77}
    assert all(r.sampling.stop for r in asked)


def test_the_loser_of_a_clarify_turn_is_a_sample_of_m_and_not_the_gold_answer(
    pacific: Task, every_turn: list[TurnState]
) -> None:
    turns = [t for t in every_turn if t.action == "CLARIFY"]
    pairs, report = build_pairs(pacific, turns, Generator(*ROLE, pacific), 0)
    assert report["pairs"] == len(turns)
    same = sum(p.rejected == p.goal for p in pairs)
    assert same <= 0.05 * len(pairs), f"{same} losers equal the gold goal"


def test_an_error_of_a_provider_never_becomes_data(pacific: Task, few_turns: list[TurnState]) -> None:
    """Published: after 126 s of retries an error sentence becomes a response, a reply, an intent or a label."""

    class Failing:
        name = "failing"

        async def complete(self, request: LLMRequest) -> LLMResponse:
            raise ProviderError("rate_limited", "Error: the quota is used up", retryable=False)

    with pytest.raises(RoleError) as error:
        build_pairs(pacific, few_turns, Generator(LLM(Failing()), ROLE[1], pacific), 0)
    assert [f.label for f in error.value.failures] == [t.where for t in few_turns]


def test_a_reply_and_the_next_response_are_kept_apart(pacific: Task) -> None:
    """Published: replies are parsed after the last colon, and nothing separates them from the next response."""
    read = Simulator(*ROLE, pacific).read
    assert read("User: the ratio 3:1 in FY:2019\nAssistant: 5") == "the ratio 3:1 in FY:2019"


def test_no_key_reaches_a_job_file_a_command_or_an_artifact(
    pacific: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Published: keys and tokens travel on command lines and into written configurations."""
    from act_assets.pipeline.graph import STAGES
    from act_assets.pipeline.stage import run_stage
    from act_assets.profile import Compute
    from act_assets.run import make_run
    from resources.artifacts import ArtifactStore
    from resources.compute import training_command

    secret = "sk-THIS-IS-A-SECRET"
    for name in ("OPENAI_API_KEY", "GEMINI_API_KEY", "GOOGLE_API_KEY", "HF_TOKEN"):
        monkeypatch.setenv(name, secret)
    monkeypatch.setenv("ACT_HOME", str(tmp_path))
    commands: list[list[str]] = []

    def launch(job: Path) -> None:
        commands.append(training_command(Compute(), job, 1))
        (job.parent / "facts.json").write_text("{}")

    run = make_run(str(Path(__file__).parent / "tiny.yaml"), 0, "pacific", 50, launch)
    assert isinstance(run.store, ArtifactStore)
    made = "raw_dataset ambiguous_requests conversations action_labels base_policy train_subset contrastive_pairs"
    for name in made.split():
        run_stage(STAGES, name, run)
    assert commands
    assert secret not in json.dumps(commands)
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or secret.encode() not in path.read_bytes(), path
