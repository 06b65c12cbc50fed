"""Groups of texts that contain each other: what is set aside must not appear inside a training text."""

import re
import unicodedata
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable

# Chinese characters, in the ranges of BERT's tokenizer (Devlin et al. 2018, tokenization.py, _is_chinese_char)
CJK = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0002a6df\U0002a700-\U0002ceaf\U0002f800-\U0002fa1f"
WORD = re.compile(rf"[{CJK}]|[^\W{CJK}]+")


def normalize(text: str) -> str:
    """The text without case and with single spaces; to an uncased tokenizer, texts that agree in this are the same."""
    return " ".join(text.split()).casefold()


def containment_groups(texts: list[str]) -> tuple[list[str], list[bool]]:
    """The group of each text, and whether it also appears in a text of another group.

    A text joins the group of the longest text in which its words (`words_of`) appear side by side; the group has the
    name of that text, normalized. A text without words is grouped with those that are the same when normalized.

    Takes time almost linear in the number of words: only texts that no longer one contains are searched, and each
    of their positions by bisection.
    """
    words, normalized = [words_of(text) for text in texts], [normalize(text) for text in texts]
    names: dict[str, str] = {}  # words -> the first, in sorted order, of the normalized texts that have them
    for key, text in zip(words, normalized):
        names[key] = min(names.get(key, text), text)
    longest, shared = _longest_containing(names.keys() - {""})
    groups = [names[longest[key]] if key else text for key, text in zip(words, normalized)]
    return groups, [key in shared for key in words]


def words_of(text: str) -> str:
    """The words of the text, each with a space after it, without case, accents and punctuation.

    As for BERT's uncased tokenizer, "Résumé" is "resume", and each Chinese character is a word.
    """
    text = text.casefold()
    if not text.isascii():
        text = "".join(char for char in unicodedata.normalize("NFD", text) if unicodedata.category(char) != "Mn")
    return "".join(word + " " for word in WORD.findall(text))


def parts_within(texts: list[str], parts: set[str]) -> list[set[str]]:
    """Which of `parts`, written as `words_of` writes them, appear in each text, the text itself included."""
    lengths = {part.count(" ") for part in parts}
    found = []
    for text in texts:
        words = words_of(text).split() if parts else []
        windows = (" ".join(words[i : i + n]) + " " for n in lengths for i in range(len(words) - n + 1))
        found.append(parts.intersection(windows))
    return found


def _longest_containing(distinct: Iterable[str]) -> tuple[dict[str, str], set[str]]:
    """The longest text that contains each text (itself, if no other does), and the texts that belong to several groups.

    `distinct` are different texts as `words_of` writes them.
    """
    starting: dict[str, list[str]] = defaultdict(list)  # first word -> the texts that begin with it, sorted
    shorter: dict[str, str | None] = {}  # the longest other text with which a text begins
    beginnings: list[str] = []  # of the present text, each the beginning of the next
    for text in sorted(distinct):  # a text comes after its beginnings, with nothing but their continuations between
        while beginnings and not text.startswith(beginnings[-1]):
            beginnings.pop()
        shorter[text] = beginnings[-1] if beginnings else None
        beginnings.append(text)
        starting[text[: text.index(" ")]].append(text)

    group: dict[str, str] = {}
    shared, seen_in = set(), {}
    for longest in sorted(shorter, key=lambda text: (-text.count(" "), text)):
        if longest in group:
            continue  # what it contains was found in the text that contains it
        position = 0
        for word in longest.split():
            if candidates := starting.get(word):
                rest = longest[position:]
                # The texts with which `rest` begins are its predecessor in the order and beginnings of that.
                text = candidates[i - 1] if (i := bisect_right(candidates, rest)) else None
                while text and not rest.startswith(text):
                    text = shorter[text]
                while text and text not in shared and seen_in.get(text) is not longest:
                    seen_in[text] = longest
                    if group.setdefault(text, longest) is not longest:
                        shared.add(text)
                    text = shorter[text]
            position += len(word) + 1
    return group, shared
