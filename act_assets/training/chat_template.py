"""Conversations as token ids: the one place where text becomes tokens, for SFT, ACT, sampling and evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from act_assets.conversation import Message
from resources.errors import TrainingError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# The form of tokenizers that carry no chat template; our own small policy is built with it too.
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
_REPLY = "@3@"
SPECIAL_TOKENS = ("<|pad|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>")


class ChatFormat:
    """A tokenizer's chat format. Raises TrainingError where the tokenizer has none that can be used."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        if not tokenizer.chat_template:
            raise TrainingError(
                f"the tokenizer of {tokenizer.name_or_path} has no chat template",
                todo="choose a chat model as policy.model, or add a chat_template to its tokenizer_config.json",
            )
        asked, answered, replied = (Message("user", "@1@"), Message("assistant", "@2@"), Message("user", _REPLY))
        whole = self._render([asked, answered, replied])
        head = self._render([asked]) + answered.content
        if not whole.startswith(head):
            raise TrainingError(
                f"the chat template of {tokenizer.name_or_path} renders a prompt differently once it is answered",
                todo="use a template in which the generation prompt is a prefix of the answered conversation",
            )
        self._after_response = whole[len(head) :]

    @cached_property
    def end_id(self) -> int:
        """The token that ends a turn: the template's own, else the tokenizer's end of sequence."""
        ids = self._encode(self._after_response)
        if ids and ids[0] in self.tokenizer.all_special_ids:
            return ids[0]
        if self.tokenizer.eos_token_id is None:
            raise TrainingError(f"the tokenizer of {self.tokenizer.name_or_path} has no token that ends a turn")
        return int(self.tokenizer.eos_token_id)

    @property
    def pad_id(self) -> int:
        pad = self.tokenizer.pad_token_id
        return self.end_id if pad is None else int(pad)

    @cached_property
    def _system_supported(self) -> bool:
        from jinja2 import TemplateError

        try:
            return "@s@" in self._template([{"role": "system", "content": "@s@"}, {"role": "user", "content": "@1@"}])
        except TemplateError:
            return False

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """A prompt up to where the policy's response begins."""
        return self._encode(self._render(messages))

    def response_ids(self, text: str) -> list[int]:
        """A response with its end-of-turn token; what the policy has to write."""
        return [*self._encode(text), self.end_id]

    def reply_ids(self, user_text: str) -> list[int]:
        """What stands between a response's end-of-turn token and the next response: the user's reply."""
        ids = self._encode(self._after_response.replace(_REPLY, user_text, 1))
        return ids[1:] if ids and ids[0] == self.end_id else ids

    def text(self, response_ids: Sequence[int]) -> str:
        """A response's text, without the end-of-turn token."""
        ids = list(response_ids)
        if self.end_id in ids:
            ids = ids[: ids.index(self.end_id)]
        return str(self.tokenizer.decode(ids, skip_special_tokens=True)).strip()

    def _render(self, messages: Sequence[Message]) -> str:
        plain = [{"role": m.role, "content": m.content} for m in messages]
        if plain and plain[0]["role"] == "system" and not self._system_supported:
            first, *rest = plain[1:]
            plain = [{"role": "user", "content": f"{plain[0]['content']}\n\n{first['content']}"}, *rest]
        return self._template(plain)

    def _template(self, messages: list[dict[str, str]]) -> str:
        return str(self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))

    def _encode(self, text: str) -> list[int]:
        return [int(i) for i in self.tokenizer.encode(text, add_special_tokens=False)]
