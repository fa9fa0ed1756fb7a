"""Records of evaluation sets, from the forms in which people have them to the one that lm-eval's task reads.

Each function takes a record of a form that it tells by the record's keys (the authors' own, the Hub's, or llm-foundry's
in-context form) and returns the Hub's columns. A `KeyError`, `ValueError` or `TypeError` means: none of these forms.
"""

from collections.abc import Callable
from typing import Any

Record = dict[str, Any]

LETTERS = "ABCDEFGHIJ"


def hellaswag(row: Record) -> Record:
    """The task joins `ctx_a` and `ctx_b` and capitalizes the latter.

    The cleaned form has `ctx` alone. There the unfinished sentence at its end, where there is one, is `ctx_b`, as in
    the authors' own files.
    """
    if "ctx_a" in row:
        first, second = row["ctx_a"], row["ctx_b"]
    else:
        first, second = split_unfinished(row["ctx"])
    label = int(row["label"])
    if not 0 <= label < len(row["endings"]):
        raise ValueError(f"label {label}")
    return {
        "activity_label": row["activity_label"],
        "ctx_a": first,
        "ctx_b": second,
        "endings": list(row["endings"]),
        "label": str(label),
    }


def split_unfinished(text: str) -> tuple[str, str]:
    """What stands before and after the last sentence end, where the text goes on after it in a lower-case letter."""
    text = text.strip()
    cut = max(text.rfind(mark) for mark in (". ", "! ", "? "))
    if cut >= 0 and text[-1:] not in ".!?" and text[cut + 2 : cut + 3].islower():
        return text[: cut + 1], text[cut + 2 :]
    return text, ""


def piqa(row: Record) -> Record:
    if "query" in row:
        goal = strip_mark(row["query"], "Question: ")
        first, second = row["choices"]
        return {"goal": goal, "sol1": first, "sol2": second, "label": index_of(row["gold"], 2)}
    return {"goal": row["goal"], "sol1": row["sol1"], "sol2": row["sol2"], "label": index_of(row["label"], 2)}


def winogrande(row: Record) -> Record:
    """In the in-context form the sentence's blank lies where its two beginnings part."""
    if "context_options" in row:
        one, other = row["context_options"]
        shared = common_words(one, other)
        sentence = f"{shared}_ {row['continuation']}"
        return {
            "sentence": sentence,
            "option1": one[len(shared) :],
            "option2": other[len(shared) :],
            "answer": str(index_of(row["gold"], 2) + 1),
        }
    if row["answer"] not in ("1", "2") or "_" not in row["sentence"]:
        raise ValueError(f"answer {row['answer']!r}")
    return {key: row[key] for key in ("sentence", "option1", "option2", "answer")}


def common_words(one: str, other: str) -> str:
    """The whole words that both texts begin with, and the space after them."""
    pairs = enumerate(zip(one, other, strict=False))
    parted = next((place for place, (a, b) in pairs if a != b), min(len(one), len(other)))
    return one[: one.rfind(" ", 0, parted) + 1]


def arc(row: Record) -> Record:
    """Both sets of ARC; the question's stem and choices lie in it, beside it, or in the in-context form."""
    if "query" in row:
        return lettered(strip_mark(row["query"], "Question: "), row["choices"], row["gold"])
    stem, choices = stem_and_choices(row)
    return {"question": stem, **choices}


def openbookqa(row: Record) -> Record:
    if "query" in row:
        made = lettered(row["query"], row["choices"], row["gold"])
        return {"question_stem": made.pop("question"), **made}
    stem, choices = stem_and_choices(row)
    return {"question_stem": stem, **choices}


def stem_and_choices(row: Record) -> tuple[str, Record]:
    """AI2's nested form and the Hub's flat one."""
    if "question_stem" in row or isinstance(row.get("question"), str):
        stem = row.get("question_stem", row.get("question"))
        texts, labels = row["choices"]["text"], row["choices"]["label"]
    else:
        stem = row["question"]["stem"]
        texts, labels = zip(*((c["text"], c["label"]) for c in row["question"]["choices"]), strict=True)
    if row["answerKey"].strip() not in labels:
        raise ValueError(f"answerKey {row['answerKey']!r}")
    return stem, {"choices": {"text": list(texts), "label": list(labels)}, "answerKey": row["answerKey"].strip()}


def lettered(question: str, texts: list[str], gold: Any) -> Record:
    """Choices without labels, called A, B, C …"""
    labels = list(LETTERS[: len(texts)])
    choices = {"text": list(texts), "label": labels}
    return {"question": question, "choices": choices, "answerKey": labels[index_of(gold, len(texts))]}


def lambada(row: Record) -> Record:
    text = f"{row['context']} {row['continuation']}" if "continuation" in row else row["text"]
    if " " not in text:
        raise ValueError("one word")
    return {"text": text}


def gsm8k(row: Record) -> Record:
    if "chain_of_thought" in row:
        return {"question": row["context"], "answer": f"{row['chain_of_thought']}\n#### {row['answer']}"}
    if "####" not in row["answer"]:
        raise ValueError("no `####` in the answer")
    return {"question": row["question"], "answer": row["answer"]}


def boolq(row: Record) -> Record:
    if "query" in row:
        passage, mark, question = row["query"].rpartition("\nQuestion: ")
        if not mark:
            raise KeyError("Question")
        label = row["choices"][index_of(row["gold"], 2)]
        label = int({"no": False, "yes": True}[label])
        return {"passage": strip_mark(passage, "Passage: "), "question": question.removesuffix("?"), "label": label}
    label = row["answer"] if "answer" in row else row["label"]
    return {"passage": row["passage"], "question": row["question"], "label": index_of(int(label), 2)}


def copa(row: Record) -> Record:
    if "query" in row:
        for word, kind in (("because", "cause"), ("therefore", "effect")):
            if row["query"].endswith(word):
                premise = row["query"].removesuffix(word).strip().rstrip(",")
                one, other = row["choices"]
                label = index_of(row["gold"], 2)
                return {"premise": f"{premise}.", "question": kind, "choice1": one, "choice2": other, "label": label}
        raise KeyError("because")
    keys = ("premise", "question", "choice1", "choice2")
    return {**{key: row[key] for key in keys}, "label": index_of(row["label"], 2)}


def truthfulqa(row: Record) -> Record:
    """The authors' CSV: the best answer against the wrong ones (mc1), all right ones against them (mc2)."""
    if "mc1_targets" in row:
        return {key: row[key] for key in ("question", "mc1_targets", "mc2_targets")}
    best = row["Best Answer"].strip()
    right, wrong = (split_answers(row[f"{kind} Answers"]) for kind in ("Correct", "Incorrect"))
    if not (best and wrong):
        raise ValueError("no answers")
    return {
        "question": row["Question"].strip(),
        "mc1_targets": {"choices": [best, *wrong], "labels": [1] + [0] * len(wrong)},
        "mc2_targets": {"choices": [*right, *wrong], "labels": [1] * len(right) + [0] * len(wrong)},
    }


def split_answers(text: str) -> list[str]:
    return [answer.strip() for answer in text.split(";") if answer.strip()]


def blimp(row: Record) -> Record:
    return {key: row[key] for key in ("sentence_good", "sentence_bad")}


def mmlu(row: Record | list[str]) -> Record:
    """A row of the authors' headerless CSV (question, four choices, letter), or the Hub's columns."""
    if isinstance(row, list):
        question, *choices, letter = row
        if len(choices) != 4:
            raise ValueError(f"{len(row)} columns")
        return {"question": question, "choices": choices, "answer": "ABCD".index(letter.strip())}
    return {"question": row["question"], "choices": list(row["choices"]), "answer": index_of(row["answer"], 4)}


def strip_mark(text: str, mark: str) -> str:
    return text.strip().removeprefix(mark)


def index_of(value: Any, choices: int) -> int:
    """A whole number that counts one of so many choices."""
    number = int(value)
    if not 0 <= number < choices:
        raise ValueError(f"{value} of {choices} choices")
    return number


Form = Callable[[Any], Record]
