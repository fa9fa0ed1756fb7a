"""Whether answers ask something back. English."""

import re

from genesis_hf.style.metric import Figure, StyleMetric
from genesis_hf.style.text import is_english, prose_of

CONTENT = re.compile(
    r"[-*+•|#_]|\(?\w{1,3}[.):]\s|(?i:question|answer|chorus|verse)\b|(?:[A-Z][\w.'-]*\s?){1,3}(?:\d+\s?)?:\s"
)
"""How a line begins that is an item of a list or table, a heading, or a speaker's in a dialogue."""

LETTER = re.compile(r"^\W*(?:dear|subject:|hi \[|sincerely|best regards|kind regards)", re.IGNORECASE | re.MULTILINE)

QUESTION = re.compile(r"[^.!?…\n]*\?(?=[\s\"')\]]|$)")

ADDRESSED = re.compile(r"\b(?:you|your|yours|shall i|should i|may i|can i)\b", re.IGNORECASE)
"""What makes a question one to the reader."""

RHETORICAL = re.compile(
    r"\b(?:did you know|what do you (?:call|get)|what are you waiting|have you ever|are you (?:looking|ready|tired)|"
    r"do you want to|don't you)\b",
    re.IGNORECASE,
)

QUIZ = 5
"""So many questions are what was asked for, not asked back."""


class QuestionRate(StyleMetric):
    """Share of answers that ask the user something, and questions an answer."""

    description = (
        "Share of answers that ask the user something back, and such questions an answer. A question counts when it "
        "ends with a question mark in running text and speaks to the reader (you, your, shall I …), or ends an answer "
        "that says more than it. Lists, headings, dialogues, letters, quotations and code are left out, and so are an "
        "advertisement's questions and five or more of them: those are content. Unknown for answers that are not "
        "English."
    )
    figures = (
        Figure("question_rate", "answers that ask back", "share"),
        Figure("questions", "questions an answer", "number"),
    )

    def measure(self, answer: str) -> dict[str, float | None]:
        """`question_rate`: 1 if it asks something; `questions`: how many."""
        if not is_english(answer):
            return {"question_rate": None, "questions": None}
        count = len(questions_of(answer))
        return {"question_rate": float(count > 0), "questions": count}


def questions_of(answer: str) -> list[str]:
    """The questions to the reader, in order."""
    prose = prose_of(answer)
    lines = [line.strip() for line in prose.splitlines() if line.strip()]
    if LETTER.search(prose):
        return []
    found = []
    for number, line in enumerate(lines, 1):
        for match in () if CONTENT.match(line) else QUESTION.finditer(line):
            question = match[0].strip()
            last = number == len(lines) and not line[match.end() :].strip() and question != prose.strip()
            if (last or ADDRESSED.search(question)) and not RHETORICAL.search(question):
                found.append(question)
    return found if len(found) < QUIZ else []
