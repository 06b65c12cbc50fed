"""Writes the embedded corpus: short film reviews whose probability of being positive is known exactly.

    python data/sample/generate.py [--output DIR]

A review is a few opinion sentences, between which stands, now and then, a sentence of plot that means nothing. Every
opinion has a value (below zero: negative), the review's score is their sum, and the label is drawn by a coin:

    p = sigmoid(SCALE * score),    label = positive with probability p

So two reviews with much the same words may have different labels, as with human raters, and the best possible
classifier is known: it answers p > 0.5. What makes the task harder than counting words is in `clause` and `opinion`:
negation turns a value round, intensifiers scale it, the clause before "but" or after "although" counts a quarter, a
film that is only compared with counts nothing, and neither does praise or blame of somebody in the plot.

Only `random.Random(seed).random()` is drawn from: Python promises to keep its sequence, which it does not for `choice`
or `shuffle`. All values are multiples of 1/16, so their sums are exact, and p is rounded before anything is drawn from
it: the files come out the same on every machine.
"""

import argparse
import csv
import io
import math
import random
from pathlib import Path

SIZES = {"train": (12_000, 11), "validation": (1_000, 12), "test": (2_000, 13)}  # split: (reviews, seed)
SCALE = 1.4  # how much the score decides; at 0 the label is a fair coin
SECOND = 0.4  # probability of a second opinion sentence
ALIKE = 0.7  # probability that an opinion sentence follows the reviewer's mood instead of a coin
TURNED = 0.14  # share of clauses made by turning round a word of the opposite sign
PLAIN, CONTRAST = 0.72, 0.18  # shares of opinion sentences of one clause and of two; the rest are comparisons
PLOT = 0.45  # probability of a plot sentence
LURE = 0.15  # probability that somebody in the plot has an adjective of praise or blame

PRAISE = {  # strength: adjectives
    1: """charming clever convincing decent elegant engaging enjoyable fine fresh funny good honest inventive likeable
    lively memorable pleasant smart touching witty""",
    2: """amazing beautiful brilliant dazzling excellent fantastic flawless gripping magnificent masterful outstanding
    perfect remarkable splendid stunning superb wonderful""",
}
BLAME = {
    1: """artificial bad bland cheap clumsy confused dull empty flat forced lazy messy poor predictable shallow silly
    slow stale tired weak""",
    2: """abysmal appalling atrocious awful boring disastrous dreadful ghastly hopeless horrible miserable painful
    pathetic ridiculous terrible tedious unbearable""",
}
PLEASE = "amuse captivate delight entertain excite impress"  # verbs, strength 1
ANNOY = "annoy bore disappoint disgust exhaust irritate"

ASPECTS = """acting action atmosphere beginning camerawork cast casting choreography cinematography comedy climax
costuming dialogue direction drama editing ending finale humour imagery lighting makeup music mystery narration opening
pacing performance photography plot premise production romance satire scenery screenplay script singing
soundtrack staging story storytelling style suspense symbolism tension theme tone twist villain
voiceover writing"""
RIVALS = """novel original sequel prequel remake trailer pilot musical play series cartoon documentary"""
CONTRASTS = ["{granted}, but {main}", "{granted}, but {main}", "although {granted}, {main}"]
MILDER = "slightly somewhat fairly rather"  # counts half
STRONGER = "very really truly deeply utterly extremely"  # counts one and a half

PEOPLE = """accountant actor aunt baker banker barber bishop boxer captain carpenter clerk colonel cook cousin dancer
dentist detective doctor driver farmer fisherman florist gambler gardener general guard hunter inventor journalist
judge king lawyer librarian mayor mechanic merchant miner monk neighbour nurse painter pianist pilot poet policeman
postman priest prince professor queen sailor scientist sheriff singer smuggler soldier spy stranger student surgeon
tailor teacher thief traveller twin uncle waiter widow writer"""
DEEDS = """borrows buries buys carries discovers draws finds follows forgets guards hides inherits keeps leaves loses
meets needs opens paints photographs receives remembers repairs sees sells sends steals studies takes visits wants
watches"""
THINGS = """boat book box bridge camera car castle clock coat diary dog door farm fortune garden gold hat horse hotel
house island key lamp letter map mirror painting parcel piano picture ring ship shop statue suitcase telescope ticket
train treasure umbrella violin wallet watch"""
PLACES = """airport bank beach border canal cathedral cellar church city desert factory forest harbour hospital
kitchen lake library market monastery mountain museum office palace park port prison railway river school station
stadium suburb theatre tower tunnel university valley village"""


class Dice:
    """Draws from the one generator whose sequence is the same everywhere."""

    def __init__(self, seed: int):
        self.random = random.Random(seed).random

    def chance(self, probability: float) -> bool:
        return self.random() < probability

    def pick(self, words: str | list) -> str:
        words = words.split() if isinstance(words, str) else words
        return words[int(self.random() * len(words))]


def adjective(dice: Dice, sign: int) -> tuple[str, float]:
    """A word of praise (sign 1) or blame (sign -1), and its value."""
    strength = 1 + dice.chance(0.5)
    return dice.pick((PRAISE if sign > 0 else BLAME)[strength]), float(sign * strength)


def degree(dice: Dice) -> tuple[str, float]:
    """An intensifier with the space after it, or none, and the factor that it stands for."""
    kind = dice.random()
    if kind < 0.5:
        return "", 1.0
    return (dice.pick(MILDER) + " ", 0.5) if kind < 0.65 else (dice.pick(STRONGER) + " ", 1.5)


def clause(dice: Dice, sign: int) -> tuple[str, float]:
    """A statement about one aspect of the film that speaks for it (sign 1) or against it (sign -1), and its value."""
    noun = dice.pick(ASPECTS)
    if dice.chance(TURNED):
        return turned_clause(dice, sign, noun)
    if dice.chance(0.15):
        verb = dice.pick(PLEASE if sign > 0 else ANNOY)
        return f"the {noun} managed to {verb} me", float(sign)
    word, value = adjective(dice, sign)
    intensifier, factor = degree(dice)
    return f"the {noun} {dice.pick(['is', 'was', 'seemed', 'felt'])} {intensifier}{word}", value * factor


def turned_clause(dice: Dice, sign: int, noun: str) -> tuple[str, float]:
    """The same, made by denying a word of the opposite sign; it then counts three quarters of what the word does."""
    if dice.chance(0.15):
        verb = dice.pick(ANNOY if sign > 0 else PLEASE)
        return f"the {noun} did not {verb} me", sign * 0.75
    word, value = adjective(dice, -sign)
    if dice.chance(0.12):
        return f"I expected the {noun} to be {word} and got the opposite", -0.75 * value
    return f"the {noun} {dice.pick(['is not', 'was not', 'was never'])} {word}", -0.75 * value


def opinion(dice: Dice, sign: int) -> tuple[str, float]:
    """One sentence of judgement for (sign 1) or against (sign -1) the film, and its value."""
    kind = dice.random()
    if kind < PLAIN:
        return clause(dice, sign)
    if kind < PLAIN + CONTRAST:
        (granted, less), (main, value) = clause(dice, -sign), clause(dice, sign)
        return dice.pick(CONTRASTS).format(granted=granted, main=main), value + less / 4
    return comparison(dice, sign)


def comparison(dice: Dice, sign: int) -> tuple[str, float]:
    """A sentence that holds the film against another one, and its value: what is said of the other film is nothing."""
    noun, rival, kind = dice.pick(ASPECTS), dice.pick(RIVALS), dice.random()
    word, value = adjective(dice, sign)
    opposite, other = adjective(dice, -sign)
    if kind < 0.4:
        return f"the {noun} is more {word} than in the {rival}", value
    if kind < 0.7:
        return f"the {noun} is less {opposite} than in the {rival}", -0.75 * other
    return f"unlike in the {opposite} {rival}, the {noun} is {word}", value


def plot(dice: Dice) -> str:
    """A sentence of plot, worth nothing, whatever adjectives it has."""
    lure = adjective(dice, dice.pick([1, -1]))[0] + " " if dice.chance(LURE) else ""
    where = f" {dice.pick(['in', 'near', 'behind'])} the {dice.pick(PLACES)}" if dice.chance(0.5) else ""
    return f"the {lure}{dice.pick(PEOPLE)} {dice.pick(DEEDS)} the {dice.pick(THINGS)}{where}"


def review(dice: Dice) -> tuple[str, float]:
    """The text of a review and the probability that it is labelled positive, to four decimals."""
    mood = dice.pick([1, -1])
    sentences, score = [], 0.0
    for _ in range(1 + dice.chance(SECOND)):
        sentence, value = opinion(dice, mood if dice.chance(ALIKE) else dice.pick([1, -1]))
        sentences.append(sentence)
        score += value
    if dice.chance(PLOT):
        sentences.insert(dice.pick(list(range(len(sentences) + 1))), plot(dice))
    text = " ".join(sentence[0].upper() + sentence[1:] + "." for sentence in sentences)
    return text, round(1 / (1 + math.exp(-SCALE * score)), 4)


def write_split(path: Path, size: int, seed: int, seen: set[str]) -> None:
    """Write `size` reviews that are not in `seen`, and add them to it: no text stands twice in the corpus."""
    dice = Dice(seed)
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["text", "label", "p_positive"])
    end = len(seen) + size
    while len(seen) < end:
        text, p = review(dice)
        label = "positive" if dice.chance(p) else "negative"
        if text not in seen:
            seen.add(text)
            writer.writerow([text, label, f"{p:.4f}"])
    path.write_bytes(file.getvalue().encode())


def main() -> None:
    parser = argparse.ArgumentParser(description="Write train.csv, validation.csv and test.csv.")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent, help="folder (default: the script's own)")
    folder = parser.parse_args().output
    folder.mkdir(parents=True, exist_ok=True)
    seen: set[str] = set()
    for name, (size, seed) in SIZES.items():
        write_split(folder / f"{name}.csv", size, seed, seen)


if __name__ == "__main__":
    main()
