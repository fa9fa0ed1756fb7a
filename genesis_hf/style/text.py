"""What of an answer is prose, which words it has, and whether English word lists can say anything about it."""

import re
import sys
import unicodedata

MARKS = "".join(chr(code) for code in range(0x300, sys.maxunicode) if unicodedata.category(chr(code))[0] == "M")
"""Combining marks: vowel signs of Hindi or Thai belong to their word, but are none of `\\w`."""

WORD = re.compile(rf"[\w{MARKS}]+(?:['’-][\w{MARKS}]+)*")

WITHOUT_SPACES = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005\u3007\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    "\U00020000-\U0003134f]"
)
"""Thai, Lao, Burmese, Khmer, kana and Han: scripts that put no space between words."""

THINKING = re.compile(r"<think>.*?(?:</think>|\Z)", re.DOTALL)
CODE = re.compile(r"```.*?(?:```|\Z)|~~~.*?(?:~~~|\Z)|`[^`\n]+`", re.DOTALL)
QUOTED_LINE = re.compile(r"^[ \t]*>.*$", re.MULTILINE)
QUOTATION = re.compile(r'(?<!\w)"(?=\S)[^"\n]*"(?!\w)|“[^”\n]*”|«[^»\n]*»|„[^“”\n]*[“”]')


def listed(words: str) -> frozenset[str]:
    return frozenset(words.split())


ENGLISH = listed(
    """
    the of and to is that it you for with are this be as or not can have has your by from will i we they their
    there which but if at what all when how do does use used its was were been would should could also them
    these those he she his her my our who than then because about into more such other some any only so
    """
)
OTHER_LANGUAGES = listed(
    """
    der das und ist nicht ein eine einen einem einer mit für auf den dem des sich auch von zu im es sie wir ich
    er wird werden bei nach aus wie oder noch nur kann als um haben aber war le la les un une et pour dans qui
    sur pas ce cette vous nous est sont du au aux que avec plus je te el las en una por con para su lo como del
    al más son este esta mi de os e um uma da dos das em não são seu sua ao à pelo pela na mais foi isso também
    il gli di che è della delle nel questo anche ed ai het een van zijn niet voor op dat aan ook wordt bir ve bu
    için ile olarak daha değil nie się jest przez oraz của là một không có được các và cho với
    """
) - {"e", "di", "ed", "na", "op", "con", "war"}
"""Function words of German, French, Spanish, Portuguese, Italian, Dutch, Turkish, Polish and Vietnamese, without those
that are English words, too, or common in names and formulas."""

SPACELESS_WEIGHT = 3
"""Latin letters that a letter of a script without spaces says as much as."""


def visible(text: str) -> str:
    """The answer without its `<think>` blocks; one that was never closed takes the rest along."""
    return THINKING.sub("", text).strip()


def prose_of(text: str) -> str:
    """What the answer says itself: no code, no quoted lines, no quotations; apostrophes made straight.

    An answer that is one quotation from end to end is no quotation.
    """
    text = visible(text)
    if QUOTATION.fullmatch(text):
        text = text[1:-1]
    text = CODE.sub(" ", text)
    text = QUOTED_LINE.sub(" ", text)
    return QUOTATION.sub(" ", text).replace("’", "'")


def words_of(text: str) -> list[str]:
    """The words in lower case; a letter of a script without spaces is a word here."""
    words = []
    for word in WORD.findall(text.lower()):
        words += re.findall(rf"[{MARKS}]*[\w'’-][{MARKS}]*", word) if WITHOUT_SPACES.search(word) else [word]
    return words


def counts_words(text: str) -> bool:
    """Whether words can be counted: less than half of its letters are of a script without spaces."""
    letters = sum(character.isalpha() for character in text)
    return 2 * len(WITHOUT_SPACES.findall(text)) <= letters


def is_english(answer: str) -> bool:
    """Whether English word lists can say anything about an answer's prose: a guess by script and function words.

    No: it is mostly in another script; more than one letter in ten bears an accent, or one in fifty without an English
    function word; or another language's function words outnumber English ones. A few bare words, names or formulas
    count as English.
    """
    text = prose_of(answer)
    if not any(map(str.isalpha, text)):  # nothing but quotations or code
        text = visible(answer)
    letters = [character for character in text if character.isalpha()]
    latin = [character for character in letters if "LATIN" in unicodedata.name(character, "")]
    spaceless = len(WITHOUT_SPACES.findall(text))
    if len(letters) - len(latin) + (SPACELESS_WEIGHT - 1) * spaceless > len(latin):
        return False
    # With a capital they are mostly parts of names: Los Angeles, Da Vinci.
    words = [word for number, word in enumerate(WORD.findall(text)) if number == 0 or word[0].islower()]
    words = [word.lower() for word in words]
    english = sum(word.lower().partition("'")[0] in ENGLISH for word in WORD.findall(text))
    other = sum(word in OTHER_LANGUAGES for word in words)
    accented = sum(not character.isascii() for character in latin)
    if other > english and 6 * other > len(words):
        return False
    return (10 if english else 50) * accented <= len(latin)
