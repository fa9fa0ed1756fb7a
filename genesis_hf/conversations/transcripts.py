"""Conversations inside one text: ChatML, Alpaca's template, Llama-2's, and turns that begin with a name."""

import re
from collections.abc import Callable

from genesis_hf.chat import Message
from genesis_hf.conversations.turns import ROLE_NAMES

NAMES = "Human|User|Assistant|GPT|System|Bot"
ALPACA_PREAMBLE = re.compile(r"\s*Below is an instruction that describes a task\b[^\n]*\s*")
HEADERS = ("### Response:", "### Assistant:", "\nAssistant:", "<|im_start|>assistant", "[/INST]")
"""What stands before an answer that is still to come."""
ALPACA_ROLES = {"Instruction": "user", "Response": "assistant"}
EDGES = re.compile(r"\A(\s|<s>)+|(\s|</s>|<\|endoftext\|>|<\|end_of_text\|>)+\Z")
"""Around a turn, none of it its own: spaces and the marks of a document's begin and end."""


def read_transcript(text: str, input_mark: str) -> list[Message] | None:
    """The turns of a text that holds a conversation, without the marks between them; None where it holds none."""
    return next((reader(text, input_mark) for found, reader in DIALECTS if found.search(text)), None)


def read_prompt_text(text: str, input_mark: str) -> list[Message]:
    """The turns of a prompt: what stands in a template that ends with the answer's header, else one user's turn."""
    if text.rstrip().endswith(HEADERS):
        messages = read_transcript(text, input_mark) or []
        if messages[-1:] == [assistant("")]:
            return messages[:-1]
    return [{"role": "user", "content": text}]


def read_chatml(text: str, input_mark: str) -> list[Message]:
    """`<|im_start|>role`, a newline, the content, `<|im_end|>`."""
    turns = re.findall(r"<\|im_start\|>(\w+)(?:\n|\Z)(.*?)(?:<\|im_end\|>|\Z)", text, re.DOTALL)
    return [{"role": ROLE_NAMES.get(name, name), "content": content} for name, content in turns]


def read_alpaca(text: str, input_mark: str) -> list[Message]:
    """`### Instruction:`, perhaps `### Input:`, and `### Response:`, each on a line of its own."""
    head, *sections = ALPACA_MARKS.split(text)
    messages = preamble(ALPACA_PREAMBLE.sub("", head))
    for name, content in zip(sections[::2], sections[1::2], strict=True):
        if name == "Input" and messages:
            messages[-1] = {**messages[-1], "content": messages[-1]["content"] + input_mark + strip(content)}
        else:
            messages.append({"role": ALPACA_ROLES[name], "content": strip(content)})
    return messages


def read_named(text: str, input_mark: str) -> list[Message]:
    """`### Human: …`, or bare names where a paragraph begins, a line if no paragraph does, or in capitals."""
    kinds = (rf"### ({NAMES}):", rf"(?:\A\s*|\n\n)({NAMES}):(?=\s|\Z)", rf"(?:\A|\n)({NAMES}):(?=\s|\Z)")
    marks = next(
        (kind for kind in kinds if len(re.findall(kind, text)) > 1), r"(?:\A|\s|</s>)(USER|ASSISTANT):(?=\s|\Z)"
    )
    head, *sections = re.split(marks, text)
    return preamble(head) + [
        {"role": ROLE_NAMES.get(name.lower(), name.lower()), "content": strip(content)}
        for name, content in zip(sections[::2], sections[1::2], strict=True)
    ]


def read_llama2(text: str, input_mark: str) -> list[Message]:
    """`[INST] question [/INST] answer`, with the system text between `<<SYS>>` marks in the first question."""
    messages: list[Message] = []
    for turn in text.split("[INST]")[1:]:
        question, _, answer = turn.partition("[/INST]")
        system = re.match(r"\s*<<SYS>>(.*?)<</SYS>>", question, re.DOTALL)
        if system and not messages:
            messages += preamble(system[1])
            question = question[system.end() :]
        messages += [{"role": "user", "content": strip(question)}, assistant(strip(answer.removesuffix("<s>")))]
    return messages


def preamble(text: str) -> list[Message]:
    """A system turn of what stands before the first turn, if anything does."""
    return [{"role": "system", "content": strip(text)}] if strip(text) else []


def assistant(content: str) -> Message:
    return {"role": "assistant", "content": content}


def strip(text: str) -> str:
    return EDGES.sub("", text)


ALPACA_MARKS = re.compile(r"(?:\A|\n)\s*### (Instruction|Input|Response):[ \t]*(?=\n|\Z)")

DIALECTS: tuple[tuple[re.Pattern, Callable[[str, str], list[Message]]], ...] = (
    (re.compile(r"\A\s*<\|im_start\|>\w+\n"), read_chatml),
    (re.compile(r"(\A|\n)### Instruction:[ \t]*\n"), read_alpaca),
    (re.compile(rf"\A\s*({NAMES}):\s|### Human:.*### Assistant:|\bUSER: .*\sASSISTANT:", re.DOTALL), read_named),
    (re.compile(r"\A\s*(<s>)?\s*\[INST\].*\[/INST\]", re.DOTALL), read_llama2),
)
"""How a text shows what it is, and its reader."""
