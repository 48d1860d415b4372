"""Algorithm 2: Action-Based Contrastive Self-Training (sections 3.2.2 and 3.2.3).

For every turn t = (p, r, g, a) of a batch, with the current policy pi_theta:

1. sample y ~ pi_theta(. | p);                                                     line 2
2. if A(y) is not a, then y_l = y;                                                 lines 3-4
3. else roll the conversation out: while the latest response clarifies,
   U replies and the policy responds again, up to `max_clarifications`;            lines 6-12
4. if H(outcome, g) >= epsilon, then y_w = the trajectory, else y_l = it;          lines 13-16
5. one DPO update (equation 1) on the up-to-date pairs.

Printed, line 13 stands inside the loop; the text of 3.2.2 tests every trajectory, and so do we. `judge_rollout`
is steps 2 to 4, `SelfTraining` steps 1 to 4 for many turns, act_trainer.py the loop around it. A
pair is built once, and its token ids are scored by the policy and by the frozen initial policy
alike; the user's tokens carry no loss.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Literal

from act_assets.conversation import PreferencePair, Trajectory, TurnState
from act_assets.profile import Act
from act_assets.tasks.base import Task
from act_assets.training.chat_template import ChatFormat
from act_assets.training.meter import Phase
from act_assets.training.packing import TokenRow
from act_assets.training.policy import ModelPolicy, PromptEncoder
from act_assets.training.sft import too_long
from act_assets.trajectory import ActionClassifier, UserSimulator, dialogue_seeds, simulate

Verdict = Literal["wrong_action", "bad_outcome", "good_outcome", "already_winner", "no_contrast", "no_room"]


@dataclass(frozen=True, slots=True)
class Completion:
    """A response or trajectory as tokens; `loss_mask` is 1 for the policy's own tokens."""

    text: str
    token_ids: tuple[int, ...]
    loss_mask: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Pair:
    """y_w and y_l of one turn under the same prompt."""

    turn: TurnState
    prompt_ids: tuple[int, ...]
    chosen: Completion
    rejected: Completion

    @property
    def rows(self) -> tuple[TokenRow, TokenRow]:
        """Winner and loser as sequences that begin with the prompt."""
        of = (self.chosen, self.rejected)
        before = (0,) * len(self.prompt_ids)
        return tuple(TokenRow(self.prompt_ids + c.token_ids, before + c.loss_mask) for c in of)  # type: ignore[return-value]


@dataclass(frozen=True, slots=True)
class Rollout:
    """What happened to one turn in one step: a row of `rollouts/epoch-NN.parquet`.

    `version` is the policy that was sampled, in updates; `step` the number of updates before the one that the pair
    is used in. `heuristic` is H(outcome, g), None without an outcome. `replaced` says which side the rollout became.
    """

    epoch: int
    step: int
    version: int
    conversation_id: str
    turn_id: str
    action: str
    sampled_action: str
    ended: str
    trajectory: str
    outcome: str | None
    heuristic: float | None
    verdict: str
    replaced: str
    chosen: str
    rejected: str
    sampled_tokens: int


@dataclass(frozen=True, slots=True)
class Sampled:
    """What a rollout makes of a pair: the side that it replaces, None for one that stays."""

    chosen: Completion | None
    rejected: Completion | None
    rollout: Rollout

    def applied(self, pair: Pair) -> Pair:
        return replace(pair, chosen=self.chosen or pair.chosen, rejected=self.rejected or pair.rejected)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Sampled:
        """The inverse of `asdict` through JSON."""
        chosen, rejected = (
            side and Completion(side["text"], tuple(side["token_ids"]), tuple(side["loss_mask"]))
            for side in (value["chosen"], value["rejected"])
        )
        return cls(chosen, rejected, Rollout(**value["rollout"]))


def gold_completion(text: str, chat: ChatFormat) -> Completion:
    """A single response as tokens, in the tokenisation of SFT."""
    ids = tuple(chat.response_ids(text))
    return Completion(text, ids, (1,) * len(ids))


def trajectory_completion(trajectory: Trajectory, chat: ChatFormat, *, mask_user_tokens: bool) -> Completion:
    """A whole trajectory as tokens: what the policy sampled, as it sampled it, and the user's replies between.

    An end of turn that the policy did not sample itself (its token limit was hit) carries no loss.
    """
    ids: list[int] = []
    mask: list[int] = []
    last = len(trajectory.utterances) - 1
    for position, utterance in enumerate(trajectory.utterances):
        if utterance.speaker == "assistant":
            ids += utterance.token_ids
            mask += [1] * len(utterance.token_ids)
            if utterance.truncated and position < last:
                ids.append(chat.end_id)
                mask.append(0)
        else:
            reply = chat.reply_ids(utterance.text)
            ids += reply
            mask += [0 if mask_user_tokens else 1] * len(reply)
    text = trajectory.first.text if len(trajectory.utterances) == 1 else trajectory.text
    return Completion(text, tuple(ids), tuple(mask))


def initial_pair(turn: TurnState, pair: PreferencePair, prompts: PromptEncoder, max_length: int) -> Pair:
    """The pair of phase 1 as tokens. Raises TrainingError, naming the turn, where it does not fit."""
    chosen, rejected = (gold_completion(text, prompts.chat) for text in (pair.chosen, pair.rejected))
    prompt = prompts.ids(turn)
    longest = max(len(chosen.token_ids), len(rejected.token_ids))
    if len(prompt) + longest > max_length:
        raise too_long(turn, len(prompt), longest, max_length)
    return Pair(turn, prompt, chosen, rejected)


def outcome_heuristics(task: Task, pairs: Sequence[Pair], trajectories: Sequence[Trajectory]) -> list[float | None]:
    """H(outcome, g) of each trajectory that began with the right action and has an outcome; None for the others."""
    tested = [
        (i, trajectory.outcome)
        for i, (pair, trajectory) in enumerate(zip(pairs, trajectories, strict=True))
        if trajectory.outcome is not None and trajectory.first.action == pair.turn.action
    ]
    scores = task.judge.heuristic([pairs[i].turn for i, _ in tested], [outcome for _, outcome in tested])
    found = dict(zip((i for i, _ in tested), scores, strict=True))
    return [found.get(i) for i in range(len(pairs))]


def judge_rollout(
    pair: Pair,
    trajectory: Trajectory,
    score: float | None,
    tolerance: float,
    chat: ChatFormat,
    *,
    mask_user_tokens: bool,
) -> tuple[Pair, Verdict]:
    """Steps 2 to 4 for one turn: the up-to-date pair, and why. `score` is H(outcome, g), None without an outcome.

    Where y_w and y_l would become equal the pair of phase 1 stands: such a pair never reaches the loss. It stands
    too where the conversation did not fit max_length: that says nothing about the response.
    """
    sampled = trajectory_completion(trajectory, chat, mask_user_tokens=mask_user_tokens)
    if trajectory.ended == "too_long":
        return pair, "no_room"
    verdict: Verdict
    if trajectory.first.action != pair.turn.action:
        updated, verdict = replace(pair, rejected=sampled), "wrong_action"
    elif score is None or score < tolerance:
        updated, verdict = replace(pair, rejected=sampled), "bad_outcome"
    elif sampled.text == pair.chosen.text:
        return pair, "already_winner"
    else:
        updated, verdict = replace(pair, chosen=sampled), "good_outcome"
    if updated.chosen.text == updated.rejected.text or updated.chosen.token_ids == updated.rejected.token_ids:
        return pair, "no_contrast"
    return updated, verdict


@dataclass
class SelfTraining:
    """Steps 1 to 4 for a batch: the current policy, A, U and H."""

    task: Task
    policy: ModelPolicy
    classifier: ActionClassifier
    simulator: UserSimulator
    intents: dict[str, str]
    settings: Act
    seed: int
    timed: Callable[[Phase], AbstractContextManager[object]] = nullcontext

    def __call__(self, pairs: Sequence[Pair], epoch: int, steps: Sequence[int], version: int) -> list[Sampled]:
        """Samples for these pairs; `steps` says which update each is for, `version` which policy is sampled."""
        turns = [pair.turn for pair in pairs]
        trajectories = simulate(
            turns,
            [dialogue_seeds(self.seed, [t], "rollout", s)[0] for t, s in zip(turns, steps, strict=True)],
            self.policy,
            self.classifier,
            self.simulator,
            [self.intents.get(t.intent_id, "") for t in turns],
            self.task,
            self.settings.max_clarifications,
            continue_first=lambda turn, action: action == turn.action,
        )
        tolerance = self.task.judge.tolerance if self.settings.tolerance is None else self.settings.tolerance
        with self.timed("score"):
            scores = outcome_heuristics(self.task, pairs, trajectories)
        sampled = []
        for pair, trajectory, score, step in zip(pairs, trajectories, scores, steps, strict=True):
            new, verdict = judge_rollout(
                pair, trajectory, score, tolerance, self.policy.chat, mask_user_tokens=self.settings.mask_user_tokens
            )
            chosen = new.chosen if new.chosen is not pair.chosen else None
            rejected = new.rejected if new.rejected is not pair.rejected else None
            rollout = Rollout(
                epoch=epoch,
                step=step,
                version=version,
                conversation_id=pair.turn.conversation_id,
                turn_id=pair.turn.turn_id,
                action=pair.turn.action,
                sampled_action=trajectory.first.action if trajectory.utterances else "",
                ended=trajectory.ended,
                trajectory=trajectory.text,
                outcome=trajectory.outcome,
                heuristic=score,
                verdict=verdict,
                replaced="winner" if chosen else "loser" if rejected else "none",
                chosen=new.chosen.text,
                rejected=new.rejected.text,
                sampled_tokens=sum(len(u.token_ids) for u in trajectory.utterances),
            )
            sampled.append(Sampled(chosen, rejected, rollout))
        return sampled
