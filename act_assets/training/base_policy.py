"""The policy that training starts from: a small Llama-architecture model built here, or any Hugging Face model.

The small one's tokenizer and warm-up see the grounding and the users' utterances of the training side, never a
system response: what a response should be is learnt from the train subset alone.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from act_assets.conversation import Conversation, Message
from act_assets.profile import Optimisation, Policy, ScratchModel
from act_assets.seeds import derive_seed
from act_assets.tasks.base import Task
from act_assets.training.chat_template import CHAT_TEMPLATE, SPECIAL_TOKENS, ChatFormat
from act_assets.training.checkpoint import RunFolder
from act_assets.training.logging import TrainingLog, TrainingPoint
from act_assets.training.optimizer import is_first_process
from act_assets.training.packing import TokenRow
from act_assets.training.policy import load_model, save_model
from act_assets.training.supervised import Supervised
from resources.artifacts import sha256_of
from resources.errors import TrainingError
from resources.settings import Compute

SOURCE = "source.json"
_HASHED_BYTES = 64 * 2**20


def warm_up_texts(task: Task, conversations: Sequence[Conversation]) -> list[list[Message]]:
    """Each conversation's grounding, then each of its users' utterances, as prompts without responses.

    A grounding that several conversations share (a story, a schema) is taken once.
    """
    texts: list[list[Message]] = []
    seen: set[str] = set()
    for c in conversations:
        grounding = task.reader.system_message(c.context)
        if grounding not in seen:
            texts.append([Message("system", grounding)])
        seen.add(grounding)
        texts += [[m] for m in c.history if m.role == "user"]
        texts += [[Message("user", turn.user)] for turn in c.turns]
    return texts


def train_tokenizer(texts: Sequence[str], vocab_size: int) -> Any:
    """A byte-level BPE tokenizer with our chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    core.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="<|end|>", pad_token="<|pad|>", chat_template=CHAT_TEMPLATE
    )


def build_model(settings: ScratchModel, vocab_size: int, max_length: int, chat: ChatFormat, seed: int) -> Any:
    """A Llama-architecture model with random weights."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocab_size,
            hidden_size=settings.hidden_size,
            intermediate_size=3 * settings.hidden_size,
            num_hidden_layers=settings.layers,
            num_attention_heads=settings.heads,
            num_key_value_heads=settings.heads,
            max_position_embeddings=max_length,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=chat.end_id,
            pad_token_id=chat.pad_id,
        )
    )


def make_base_policy(
    task: Task,
    conversations: Sequence[Conversation],
    settings: Policy,
    compute: Compute,
    seed: int,
    folder: Path,
    work: Path,
) -> tuple[dict[str, Any], list[TrainingPoint]]:
    """Writes `model/`, or `source.json` for a Hugging Face model. Returns facts and the warm-up's curve."""
    if settings.scratch is None:
        if not is_first_process():
            return {}, []
        loaded, chat = load_model(settings.model, settings.revision)  # which proves that it can be used
        record: dict[str, Any] = {"model": settings.model, "end_of_turn_id": chat.end_id}
        local = Path(settings.model).expanduser()
        if local.is_dir():
            record |= {"model": str(local.resolve()), "files": local_files(settings)}
        else:
            record["commit"] = str(loaded.config._commit_hash)
        (folder / SOURCE).write_text(json.dumps(record, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        count = sum(p.numel() for p in loaded.parameters())
        policy = f"{settings.model}, {count:,} parameters"
        return {"policy": policy, "parameters": count, "vocabulary": len(chat.tokenizer)}, []
    scratch = settings.scratch
    messages = warm_up_texts(task, conversations)
    tokenizer = train_tokenizer([m.content for group in messages for m in group], scratch.vocab_size)
    chat = ChatFormat(tokenizer)
    model = build_model(scratch, len(tokenizer), settings.max_length, chat, derive_seed(seed, "base", "weights"))
    stream = [token for group in messages for token in chat.prompt_ids(group)[:-1]]
    size = scratch.warm_up_block_tokens
    blocks = [tuple(stream[i : i + size]) for i in range(0, len(stream) - size + 1, size)]
    if len(blocks) < 2:
        raise TrainingError(
            f"only {len(stream)} tokens to warm the base policy up with",
            where=f"task {task.name}",
            todo="use more conversations, or lower policy.scratch.warm_up_block_tokens",
        )
    random.Random(derive_seed(seed, "base", "blocks")).shuffle(blocks)
    held_out = max(1, len(blocks) // 20)
    rows = [TokenRow(block, (0, *(1,) * (len(block) - 1))) for block in blocks]
    with TrainingLog("base_policy", f"task {task.name}", folder / "logs" if is_first_process() else None) as log:
        training = Supervised(
            model,
            chat.pad_id,
            [[row] for row in rows[held_out:]],
            [[row] for row in rows[:held_out]],
            Optimisation(
                epochs=scratch.warm_up_epochs,
                learning_rate=scratch.warm_up_learning_rate,
                batch_size=scratch.warm_up_batch_size,
            ),
            compute,
            derive_seed(seed, "base", "order"),
            log,
        )
        meter = training.updater.meter()
        training.run(RunFolder(work, compute, log.where), meter)
    weights = training.updater.sharding.weights()
    if is_first_process():
        save_model(training.updater.policy, tokenizer, folder / "model", weights)
    facts = {
        "policy": f"Llama architecture from scratch, {training.updater.parameters:,} parameters",
        "parameters": training.updater.parameters,
        "vocabulary": len(tokenizer),
        "validation_loss": log.points[-1].loss,
        **meter.facts(),
    }
    return facts, log.points


def base_policy_source(artifact: Path) -> tuple[str, str | None]:
    """Where the base policy is loaded from, and at which commit: the artifact's own `model/`, or what it refers to."""
    source = artifact / SOURCE
    if not source.is_file():
        return str(artifact / "model"), None
    record = json.loads(source.read_text(encoding="utf-8"))
    return record["model"], record.get("commit")


def local_files(settings: Policy) -> dict[str, str] | None:
    """The files of a policy in a local folder by hash (weights by size and time of change), None for others."""
    folder = Path(settings.model).expanduser()
    if settings.scratch is not None or not folder.is_dir():
        return None
    return {
        p.name: f"{of.st_size} bytes, changed {of.st_mtime_ns}" if of.st_size > _HASHED_BYTES else sha256_of(p)
        for p, of in ((p, p.stat()) for p in sorted(folder.iterdir()) if p.is_file())
    }
