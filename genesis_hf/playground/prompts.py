"""What a model is given: a conversation or a text as ids, cut to its context, with a word about what was left out."""

from collections.abc import Sequence
from dataclasses import dataclass

from genesis_hf.chat import Message, encode_prompt
from genesis_hf.chat_lint import trains
from genesis_hf.errors import UserError
from genesis_hf.playground.loading import Speaker
from genesis_hf.tokenizer import encode_documents


@dataclass(frozen=True)
class Prompt:
    """Ids that a model goes on from."""

    ids: list[int]
    stop_ids: list[int]
    max_new_tokens: int
    """what the context leaves of those that were asked for"""
    left_out: str = ""
    """what of the conversation didn't fit, in words"""


def conversation_prompt(speaker: Speaker, messages: Sequence[Message], max_new_tokens: int) -> Prompt:
    """A conversation that ends with the user's turn; the oldest turns go where it is longer than the context.

    Half of the context at most is kept free for the answer.

    Raises:
        UserError: the system prompt and the last turn alone don't fit; no chat template, or one that refuses a role.
    """
    system = [message for message in messages[:1] if message["role"] == "system"]
    turns = list(messages[len(system) :])
    room = speaker.context - min(max_new_tokens, speaker.context // 2)
    dropped = 0
    while len(ids := encode_prompt(speaker.tokenizer, [*system, *turns[dropped:]])) > room:
        # A conversation begins with its user.
        starts = [i for i in range(dropped + 1, len(turns)) if turns[i]["role"] == "user"]
        if not starts:
            raise too_long(len(ids), room)
        dropped = starts[0]
    left_out = f"the oldest {dropped} turns no longer fit the context of {speaker.context:,} tokens" if dropped else ""
    return Prompt(ids, speaker.stop_ids(), min(max_new_tokens, speaker.context - len(ids)), left_out)


def text_prompt(speaker: Speaker, text: str, max_new_tokens: int) -> Prompt:
    """A text to go on with, at the beginning of a document as training saw it.

    Raises:
        UserError: it doesn't fit the context.
    """
    begin = document_start(speaker)
    ids = [*([] if begin is None else [begin]), *encode_documents(speaker.tokenizer, [text])[0]]
    room = speaker.context - min(max_new_tokens, speaker.context // 2)
    if len(ids) > room:
        raise too_long(len(ids), room)
    if not ids:
        raise UserError(f"{speaker.name}: has no token that begins a text, so it needs one to go on with")
    stop_ids = sorted({*speaker.stop_ids(), *([] if begin is None else [begin])})
    return Prompt(ids, stop_ids, min(max_new_tokens, speaker.context - len(ids)))


def document_start(speaker: Speaker) -> int | None:
    """The token before a document: bos where a tokenizer has one, else what ends the document before it.

    A base model's eos is a chat model's pad (`genesis_hf.chat.prepare_for_chat`).
    """
    tokenizer = speaker.tokenizer
    if tokenizer.bos_token_id is not None:
        return tokenizer.bos_token_id
    return tokenizer.pad_token_id if trains(tokenizer) else tokenizer.eos_token_id


def too_long(tokens: int, room: int) -> UserError:
    return UserError(f"the prompt has {tokens:,} tokens, and the model's context has room for {room:,}: shorten it")
