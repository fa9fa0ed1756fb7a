"""Answers to one conversation in the order in which somebody preferred them: rows → rankings."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from genesis_hf.chat import Message
from genesis_hf.conversations.checks import Fault, Row
from genesis_hf.conversations.shapes import (
    TURN_LISTS,
    Shape,
    drop_prompt,
    read_answer,
    read_question,
    system_of,
)
from genesis_hf.conversations.transcripts import read_transcript
from genesis_hf.conversations.trees import is_message, is_tree, ranked_replies
from genesis_hf.conversations.turns import first_of, flatten, read_conversation, read_text


@dataclass(frozen=True)
class Ranking:
    """Answers to a conversation, best first, with their scores where they are known."""

    prompt: list[Message]
    answers: list[str]
    scores: list[float] | None = None


QUESTION_KEYS = ("prompt", "instruction", "question", "query", "input")
ANSWER_KEYS = ("response", "text", "completion", "answer", "content", "output")
SCORE_KEYS = ("score", "overall_score", "rating", "reward")
LIST_KEYS = ("completions", "responses", "answers", "generations")
SCORE_LIST_KEYS = ("scores", "ratings", "rewards")
PAIR_KEYS = (("chosen", "rejected"), ("chosen_response", "rejected_response"))
PAIR_SCORE_KEYS = (
    ("score_chosen", "score_rejected"),
    ("chosen_score", "rejected_score"),
    ("chosen_rating", "rejected_rating"),
    ("chosen-rating", "rejected-rating"),
)
OPPONENTS = (("output_1", "output_2"), ("human_ref_A", "human_ref_B"), ("response_a", "response_b"))
"""Keys of two answers beside a key that says which is better."""


def from_chosen_rejected(row: Row, input_mark: str) -> list[Ranking]:
    """`chosen` and `rejected`: texts, messages or lists of messages, after a prompt or with it in both of them."""
    keys = next((pair for pair in PAIR_KEYS if any(key in row for key in pair)), PAIR_KEYS[0])
    for key in keys:
        if key not in row:
            raise Fault(f"no {keys[0]} and {keys[1]}" if keys[0] not in row and keys[1] not in row else f"no {key}")
    sides = [whole_conversation(row[key], input_mark) for key in keys]
    if all(len(side) > 1 and side[0]["role"] in ("system", "user") for side in sides):
        prompt = common_prompt(*sides)
        system = system_of(row)
        if system and prompt[0]["role"] != "system":
            prompt = [{"role": "system", "content": system}, *prompt]
        answers = [side[-1:] for side in sides]
    else:
        prompt = read_prompt(row, input_mark)
        answers = [drop_prompt(prompt, side) for side in sides]
    for key, answer in zip(keys, answers, strict=True):
        if len(answer) != 1 or answer[0]["role"] != "assistant":
            raise Fault(f"{key} is not one answer")
    flat = [flatten([*prompt, *answer], row.get("tools")) for answer in answers]
    texts = [side[-1]["content"] for side in flat]
    for key, text in zip(keys, texts, strict=True):
        if not text.strip():
            raise Fault(f"empty {key}")
    return [Ranking(flat[0][:-1], texts, pair_scores(row))]


def whole_conversation(value: Any, input_mark: str) -> list[Message]:
    """The turns of an answer, or of the conversation that it ends: messages, a transcript or a text."""
    if isinstance(value, str) and value.lstrip().startswith(("Human:", "System:", "<|im_start|>")):
        messages = read_transcript(value, input_mark) or []
        if {"user", "assistant"} <= {message["role"] for message in messages}:
            return messages
    return read_answer(value)


def common_prompt(chosen: list[Message], rejected: list[Message]) -> list[Message]:
    """What two conversations begin with alike, all but the last turn of each."""
    prompt = [a for a, _ in takewhile(lambda pair: pair[0] == pair[1], zip(chosen[:-1], rejected[:-1], strict=False))]
    if not len(prompt) == len(chosen) - 1 == len(rejected) - 1:
        raise Fault("chosen and rejected answer different prompts")
    return prompt


def read_prompt(row: Row, input_mark: str) -> list[Message]:
    """The conversation that the answers of a row follow; a missing one is a `Fault`."""
    key = next((key for key in ("messages", *TURN_LISTS) if row.get(key)), None)
    if key is not None:
        return read_conversation(row[key], None, system_of(row))
    if isinstance(row.get("history"), str):  # SHP
        return [{"role": "user", "content": row["history"]}]
    key = next((key for key in QUESTION_KEYS if key in row), None)
    if key is None:
        raise Fault("answers without a prompt")
    return read_question(row, key, input_mark)


def pair_scores(row: Row) -> list[float] | None:
    """The scores of chosen and rejected, beside them or in `metadata`; None: unknown."""
    for values in (row, row.get("metadata")):
        for keys in PAIR_SCORE_KEYS:
            if isinstance(values, Mapping) and all(values.get(key) is not None for key in keys):
                scores = [number(values[key]) for key in keys]
                if scores[0] < scores[1]:
                    raise Fault("rejected is scored above chosen")
                return scores
    return None if row.get("margin") is None else [number(row["margin"]), 0.0]


def from_scored(row: Row, input_mark: str) -> list[Ranking]:
    """`completions` with a score or a rank each, or lists of `responses` and `scores`."""
    answers = first_of(row, *LIST_KEYS)
    if all(isinstance(answer, str) for answer in answers):
        texts, scores = answers, [number(score) for score in first_of(row, *SCORE_LIST_KEYS)]
    else:
        texts = [read_text(first_of(answer, *ANSWER_KEYS)) for answer in answers]
        scores = [score_of(answer) for answer in answers]
    best_first = sorted(zip(texts, scores, strict=True), key=lambda pair: -pair[1])
    prompt = read_prompt(row, input_mark)
    return [Ranking(flatten(prompt, row.get("tools")), [text for text, _ in best_first], [s for _, s in best_first])]


def score_of(answer: Mapping[str, Any]) -> float:
    """The score of a completion: the mean of what UltraFeedback's `annotations` rate, its own, or minus its rank.

    The mean comes first: in UltraFeedback many answers rated 1 have an `overall_score` of 10 (found by Argilla, who
    published ultrafeedback-binarized-preferences with means for that reason).
    """
    aspects = [aspect for aspect in (answer.get("annotations") or {}).values() if aspect]
    ratings = [number(aspect["Rating"]) for aspect in aspects if aspect["Rating"] != "N/A"]
    if ratings:
        return sum(ratings) / len(ratings)
    if any(answer.get(key) is not None for key in SCORE_KEYS):
        return number(first_of(answer, *SCORE_KEYS))
    if answer.get("rank") is not None:
        return -number(answer["rank"])
    raise KeyError("score")


def from_ranked(row: Row, input_mark: str) -> list[Ranking]:
    """`output`: a list of answers, best first."""
    return [Ranking(flatten(read_prompt(row, input_mark), row.get("tools")), list(map(read_text, row["output"])))]


def from_comparison(row: Row, input_mark: str) -> list[Ranking]:
    """Two answers and which is better: `preference` 1 to 2 (AlpacaEval), `labels` (SHP), or `winner`."""
    first, second = next(keys for keys in OPPONENTS if keys[0] in row and keys[1] in row)
    answers = [read_text(row[first]), read_text(row[second])]
    if first == "human_ref_A":
        scores = [number(row["score_A"]), number(row["score_B"])] if "score_A" in row and "score_B" in row else None
        first_wins = int(row["labels"]) == 1
    elif "preference" in row:
        second_share = number(row["preference"]) - 1
        if not 0 <= second_share <= 1:
            raise Fault("a preference that is not between 1 and 2")
        scores, first_wins = [1 - second_share, second_share], second_share <= 0.5
    else:
        scores, first_wins = None, winner_of(row)
    order = slice(None) if first_wins else slice(None, None, -1)
    prompt = flatten(read_prompt(row, input_mark), row.get("tools"))
    return [Ranking(prompt, answers[order], scores and scores[order])]


def from_arena(row: Row, input_mark: str) -> list[Ranking]:
    """Chatbot Arena: `conversation_a` and `conversation_b` and the `winner`."""
    sides = [read_conversation(row[key]) for key in ("conversation_a", "conversation_b")]
    if not winner_of(row):
        sides.reverse()
    try:
        prompt = common_prompt(*sides)
    except Fault as fault:  # each model's own earlier answers: as it should be, and of no use here
        raise Fault(str(fault), malformed=False) from None
    return [Ranking(prompt, [side[-1]["content"] for side in sides])]


def winner_of(row: Row) -> bool:
    """Whether the first of two won."""
    winner = str(row["winner"]).lower()
    if "tie" in winner:
        raise Fault("a tie", malformed=False)
    return {"model_a": True, "a": True, "model_b": False, "b": False}[winner]


def from_tree(row: Row, input_mark: str) -> list[Ranking]:
    """An Open-Assistant tree: every message with ranked replies."""
    rankings = [Ranking(prompt, answers) for prompt, answers in ranked_replies(row)]
    if not rankings:
        raise Fault("one answer only", malformed=False)
    return rankings


def number(value: Any) -> float:
    """A score, which may be text; a `Fault` where it isn't a number."""
    try:
        result = float(value)
    except (TypeError, ValueError):
        result = float("nan")
    if result != result:
        raise Fault("a score that is not a number")
    return result


def is_scored(row: Row) -> bool:
    answers = next((row[key] for key in LIST_KEYS if isinstance(row.get(key), Sequence)), None)
    return bool(answers) and (isinstance(answers[0], Mapping) or any(key in row for key in SCORE_LIST_KEYS))


RANKINGS: dict[str, Shape] = {
    "open_assistant_tree": Shape(is_tree, from_tree),
    "open_assistant_messages": Shape(is_message, from_tree),
    "chosen_rejected": Shape(lambda row: any(key in row for pair in PAIR_KEYS for key in pair), from_chosen_rejected),
    "arena": Shape(lambda row: {"conversation_a", "conversation_b", "winner"} <= row.keys(), from_arena),
    "comparison": Shape(lambda row: any(a in row and b in row for a, b in OPPONENTS), from_comparison),
    "scored": Shape(is_scored, from_scored),
    "ranked": Shape(lambda row: isinstance(row.get("output"), list), from_ranked),
}
