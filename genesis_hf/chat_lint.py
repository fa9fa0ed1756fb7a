"""The lint of a chat format: proof on a few conversations that it trains what it should, before anything is trained.

It looks at a tokenizer, and at the config and generation config of a model where there are any; so it also judges the
templates of others, which a base model from elsewhere may bring along.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2.exceptions import TemplateError
from transformers import AutoConfig, GenerationConfig, PreTrainedConfig, PreTrainedTokenizerFast

from genesis_hf.chat import (
    CHAT_TOKENS,
    END_THINK,
    IM_END,
    THINK,
    Message,
    Segment,
    encode_conversation,
    encode_prompt,
    encode_segments,
    special_ids,
)
from genesis_hf.chat_turns import flatten_conversation
from genesis_hf.errors import UserError
from genesis_hf.modeling import IGNORE_INDEX
from genesis_hf.tokenizer import load_tokenizer

PLAIN: list[Message] = [
    {"role": "system", "content": "You answer briefly."},
    {"role": "user", "content": "Where is the river?"},
    {"role": "assistant", "content": "Behind the hill."},
    {"role": "user", "content": " And the sea?\n"},
    {"role": "assistant", "content": "\n Further south. "},
]
THOUGHTFUL: list[Message] = [
    {"role": "user", "content": "Is 91 prime?"},
    {"role": "assistant", "content": f"{THINK}\n7 · 13 = 91\n{END_THINK}\n\nNo."},
    {"role": "user", "content": "And 97?"},
    {"role": "assistant", "content": f"{THINK}\n{END_THINK}\n\nYes."},
]
TOOLS: list[dict[str, Any]] = [
    {"name": "tide", "description": "The next high tide", "parameters": {"type": "object", "properties": {}}},
    {"type": "function", "function": {"name": "wind", "parameters": {"properties": {"at": {"type": "string"}}}}},
]
WITH_TOOLS: list[Message] = [
    {"role": "user", "content": "When can I sail?"},
    {
        "role": "assistant",
        "content": "Let me see.",
        "reasoning_content": "Tide and wind.",
        "tool_calls": [
            {"function": {"name": "tide", "arguments": {}}},
            {"name": "wind", "arguments": '{"at": "noon"}'},
        ],
    },
    {"role": "tool", "content": '{"time": "12:40"}'},
    {"role": "assistant", "content": "At noon."},
]

UNMARKED = (
    "nothing is trained: the chat template has no {% generation %} block; write {% generation %} before and "
    "{% endgeneration %} after the assistant's content and its stop token in it, or remove the template, so that the "
    "base model gets the recipe's chat_format"
)


def lint_chat(
    tokenizer: PreTrainedTokenizerFast,
    model_config: PreTrainedConfig | None = None,
    generation_config: GenerationConfig | None = None,
) -> None:
    """Prove on a few conversations that the format trains what it should; run before any training.

    Checked: every answer and its stop token is trained, and nothing else; the first k turns are a prefix of the
    whole for every k, and the prompt of each answer is token for token what training has before it; the rendering is
    the template's own, also of reasoning and tools; no typed text becomes a special token; eos and pad are the same
    everywhere.

    Raises:
        UserError: every fault found and its mend, in one line.
    """
    faults = chat_faults(tokenizer, model_config, generation_config)
    if faults:
        raise UserError(f"chat format: {'; '.join(faults)}")


def lint_folder(folder: str | Path) -> None:
    """As `lint_chat`, on a model's folder as it was written.

    Raises:
        UserError: every fault found; files that can't be read.
    """
    tokenizer = load_tokenizer(folder)
    try:
        configs = AutoConfig.from_pretrained(folder), GenerationConfig.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise UserError(f"model {folder}: its configs can't be read ({' '.join(str(error).split())[:200]})") from None
    lint_chat(tokenizer, *configs)


def chat_faults(
    tokenizer: PreTrainedTokenizerFast,
    model_config: PreTrainedConfig | None = None,
    generation_config: GenerationConfig | None = None,
) -> list[str]:
    """What `lint_chat` finds: a line for each fault, with its mend."""
    if not tokenizer.chat_template:
        return ["the tokenizer has no chat template: give a chat model, or train one with scripts/sft.py"]
    faults = token_faults(tokenizer, model_config, generation_config)
    if tokenizer.eos_token is None:
        return faults
    if not trains(tokenizer):
        return [UNMARKED, *faults]
    conversations = [PLAIN, THOUGHTFUL]
    with_tools = render_tools(tokenizer)
    if with_tools is not None:
        conversations.append(flatten_conversation(WITH_TOOLS, TOOLS))
    try:
        for messages in conversations:
            segments = encode_segments(tokenizer, [messages])[0]
            found = [
                *mask_faults(tokenizer, segments, messages),
                *rendering_faults(tokenizer, segments, messages),
                *prefix_faults(tokenizer, segments, messages),
            ]
            if found:
                return faults + found  # further conversations only say it again
        if with_tools not in (None, "".join(segment.text for segment in segments)):
            faults.append(
                "the template writes tools, calls or reasoning otherwise than training does: take them from "
                "genesis_hf/assets/chatml.jinja, or let the template refuse tools with raise_exception"
            )
        faults += forgery_faults(tokenizer)
    except UserError as error:
        faults.append(f"{error}: take out of the template what refuses it")
    return faults


def trains(tokenizer: PreTrainedTokenizerFast) -> bool:
    """Whether the tokenizer has a chat template that says what is trained."""
    return bool(re.search(r"{%-?\s*generation\s*-?%}", tokenizer.chat_template or ""))


def mask_faults(
    tokenizer: PreTrainedTokenizerFast, segments: Sequence[Segment], messages: Sequence[Message]
) -> list[str]:
    """Where something else is trained than the answers and their stop tokens."""
    answers = [message["content"] for message in messages if message["role"] == "assistant"]
    trained = "".join(segment.text for segment in segments if segment.trained)
    stop = tokenizer.eos_token
    if not trained:
        return [UNMARKED]
    if trained == "".join(answers):
        return [f"the stop token {stop} is not trained: put it before {{% endgeneration %}}"]
    if trained != "".join(answer + stop for answer in answers):
        return [
            f"trained are not the answers and {stop} but {trained[:80]!r} …: put {{% generation %}} and "
            f"{{% endgeneration %}} around the assistant's content and {stop}, and nothing else"
        ]
    encoded = encode_conversation(tokenizer, messages)
    if [encoded.labels[end - 1] for end in encoded.ends] != [tokenizer.eos_token_id] * len(answers):
        return [f"an answer doesn't end with the token {stop}: make it a special token of the tokenizer"]
    return []


def rendering_faults(
    tokenizer: PreTrainedTokenizerFast, segments: Sequence[Segment], messages: Sequence[Message]
) -> list[str]:
    """Where the encoded text is not what the template makes of the same conversation."""
    theirs = tokenizer.apply_chat_template(list(messages), tokenize=False)
    ours = "".join(segment.text for segment in segments)
    if ours == theirs:
        return []
    at = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs)))
    return [
        f"the template changes contents: it renders {theirs[max(0, at - 20) : at + 20]!r} where a conversation has "
        f"{ours[max(0, at - 20) : at + 20]!r}; let it write every content as it is"
    ]


def prefix_faults(
    tokenizer: PreTrainedTokenizerFast, segments: Sequence[Segment], messages: Sequence[Message]
) -> list[str]:
    """Where the first k turns, or the prompt of an answer, are not what stands there in the whole."""
    whole, labels, _ = encode_conversation(tokenizer, messages)
    text = "".join(segment.text for segment in segments)
    for turns in range(1, len(messages)):
        part = "".join(segment.text for segment in encode_segments(tokenizer, [messages[:turns]])[0])
        if not text.startswith(part):
            return [
                f"the first {turns} turns are not a prefix of the whole conversation: let the template render a turn "
                "without looking at later ones"
            ]
        if messages[turns]["role"] == "assistant":
            prompt = encode_prompt(tokenizer, messages[:turns])
            edge = [label == IGNORE_INDEX for label in labels[len(prompt) - 1 : len(prompt) + 1]]
            if whole[: len(prompt)] != prompt or edge != [True, False]:
                return [
                    "an answer's header differs between training and the prompt: let add_generation_prompt write what "
                    "stands before {% generation %}"
                ]
    return []


def render_tools(tokenizer: PreTrainedTokenizerFast) -> str | None:
    """What the template makes of tools, calls and reasoning; None where it has no place for them, or refuses them."""
    if "tools" not in tokenizer.chat_template:
        return None
    try:
        return tokenizer.apply_chat_template(WITH_TOOLS, tools=TOOLS, tokenize=False)
    except (TemplateError, TypeError):
        return None


def forgery_faults(tokenizer: PreTrainedTokenizerFast) -> list[str]:
    """Where a special token that somebody typed becomes a real one."""
    special = {*special_ids(tokenizer), *CHAT_TOKENS}
    ids = {tokenizer.convert_tokens_to_ids(token) for token in special} - {tokenizer.unk_token_id, None}
    typed, spoken = " ".join(sorted(special)), " ".join(sorted(special - {THINK, END_THINK}))

    def conversation(asked: str, answered: str) -> list[Message]:
        contents = [("system", asked), ("user", asked), ("assistant", answered)]
        return [{"role": role, "content": content} for role, content in contents]

    forged, plain = (
        sum(i in ids for i in encode_conversation(tokenizer, messages).input_ids)
        for messages in (conversation(typed, spoken), conversation("Hello.", "No."))
    )
    if forged == plain:
        return []
    return ["special tokens that somebody typed become real ones: mark them as special in tokenizer.json"]


def token_faults(
    tokenizer: PreTrainedTokenizerFast,
    model_config: PreTrainedConfig | None,
    generation_config: GenerationConfig | None,
) -> list[str]:
    """Where eos and pad of tokenizer, model and generation disagree."""
    faults = []
    if tokenizer.eos_token_id is None:
        faults.append("the tokenizer names no eos token: name the stop token in tokenizer_config.json")
    if tokenizer.pad_token_id is None:
        faults.append('the tokenizer names no pad token: set "pad_token" in tokenizer_config.json')
    if IM_END in special_ids(tokenizer) and tokenizer.eos_token != IM_END and IM_END in tokenizer.chat_template:
        faults.append(f'the tokenizer\'s eos is {tokenizer.eos_token}: set "eos_token": "{IM_END}"')
    if tokenizer.pad_token == tokenizer.eos_token == IM_END:
        faults.append(f"pad is {IM_END}, which has to be learned: keep the base's eos as pad")
    for name, config in (("config.json", model_config), ("generation_config.json", generation_config)):
        for key in ("eos_token_id", "pad_token_id") if config is not None else ():
            theirs, ours = getattr(config, key, None), getattr(tokenizer, key)
            if theirs != ours and not (isinstance(theirs, list) and ours in theirs):
                faults.append(f"{key} is {theirs} in {name} and {ours} in the tokenizer: set it to {ours} in {name}")
    if model_config is not None and model_config.vocab_size < len(tokenizer):
        faults.append(
            f"the model has {model_config.vocab_size:,} rows for {len(tokenizer):,} tokens: give the tokenizer that "
            "it was trained with"
        )
    return faults
