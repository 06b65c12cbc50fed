"""Augmented texts: how often words are masked, swapped and left out, by which words, and what never changes."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from equality import load_quietly
from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend
from tokenizers.models import BPE

from minikd.batching import TokenizedSplit, tokenize
from minikd.checkpoints.tokenizer_files import load_tokenizer
from minikd.errors import MinikdError
from minikd.techniques.augment import (
    LEFT_ALONE,
    UNLABELLED,
    Augmentation,
    augment,
    decode,
    nearest_words,
    swappable_kinds,
)
from minikd.tokenizer import SPECIAL_TOKENS, Tokenizer, bert_wordpiece

CONTENT = [f"w{one}{two}" for one in "abcdefgh" for two in "abcdefgh"]
CAPITALS = [f"{one}{two}x" for one in "ABCD" for two in "abcd"] + [f"{one}{two}Z" for one in "AB" for two in "ABCD"]
FIXED = [*". ! - ' \u2019 t n s 7 2010 4th [unused1]".split(), *"not no never without don the of two million".split()]
PIECES = ["##x", "##y", "##z"]
VOCAB = {token: i for i, token in enumerate([*SPECIAL_TOKENS, *PIECES, *FIXED, *CONTENT, *CAPITALS, "won", "Not"])}
NOTHING = Augmentation(copies=1, mask=0, swap=0, span=0)
CLS, SEP, MASK, UNK = (VOCAB[f"[{name}]"] for name in ("CLS", "SEP", "MASK", "UNK"))


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer(bert_wordpiece(VOCAB, {"do_lower_case": False}))


@pytest.fixture(scope="module")
def table():
    return torch.randn(len(VOCAB), 12, generator=torch.Generator().manual_seed(0))


def texts(count, words, vocabulary=CONTENT, seed=0):
    random = np.random.default_rng(seed)
    return [" ".join(random.choice(vocabulary, words)) for _ in range(count)]


def rows(split):
    return [split.ids[start:end].tolist() for start, end in zip(split.offsets, split.offsets[1:])]


def pairs(tokens, augmented):
    """(original, version) of every example; all of them are altered and none is cut."""
    assert len(augmented) % len(tokens) == 0
    return [(one, other) for one, other in zip(rows(tokens) * (len(augmented) // len(tokens)), rows(augmented))]


def near(share, probability, count):
    """Within 4.5 standard deviations of a binomial share: wrong once in 150,000."""
    return abs(share - probability) <= 4.5 * (probability * (1 - probability) / count) ** 0.5


@pytest.mark.parametrize("mask, swap", [(0.1, 0.25), (0.3, 0.7), (0.0, 0.5), (0.5, 0.0)])
def test_words_are_masked_and_swapped_as_often_as_the_settings_say(tokenizer, table, mask, swap):
    words = [*CONTENT, "waax", "wabyz", "7", "not"]  # the last four may only be masked
    tokens = tokenize(texts(2000, 60, words), None, tokenizer, 300)
    augmented = augment(tokens, tokenizer, table, replace(NOTHING, copies=2, mask=mask, swap=swap), 1)
    before, after = np.concatenate([tokens.ids, tokens.ids]), augmented.ids
    assert len(before) == len(after)  # no span
    for candidates in (CONTENT, ["7", "not"], ["##x"]):
        there = np.isin(before, [VOCAB[word] for word in candidates])
        assert near((after[there] == MASK).mean(), mask, there.sum())
    there = np.isin(before, [VOCAB[word] for word in CONTENT]) & ~np.isin(np.append(before[1:], 0), [5, 6, 7])
    swapped = (before != after) & (after != MASK)
    assert near(swapped[there].mean(), swap, there.sum())
    assert not swapped[~there].any()  # pieces, words of several pieces, numbers, negations, [CLS] and [SEP]


def test_the_pieces_of_a_word_are_masked_together(tokenizer, table):
    tokens = tokenize(texts(300, 12, ["waaxyz", "wbbx", "wcc"]), None, tokenizer, 100)
    seen = set()
    for before, after in pairs(tokens, augment(tokens, tokenizer, table, replace(NOTHING, mask=0.5), 0)):
        words = [i for i, token_id in enumerate(before) if token_id not in (5, 6, 7)]
        for start, end in zip(words[1:-1], words[2:]):
            masks = {token_id == MASK for token_id in after[start:end]}
            assert len(masks) == 1
            seen.add((end - start, masks.pop()))
    assert seen == {(pieces, masked) for pieces in (1, 2, 4) for masked in (True, False)}


def test_special_tokens_stay_where_they_are(tokenizer, table):
    written = ["waa wbb \u4e2d wcc [SEP] wdd [MASK] wee [PAD]", "waa \u4e2d"]
    tokens = tokenize(written, None, tokenizer, 100)
    settings = replace(NOTHING, copies=200, mask=0.6, swap=0.4)  # every word is altered, unless it may only be masked
    for before, after in pairs(tokens, augment(tokens, tokenizer, table, settings, 0)):
        special = [i for i, token_id in enumerate(before) if token_id < 5]
        assert before[0] == CLS and before[-1] == SEP and UNK in before
        assert [after[i] for i in special] == [before[i] for i in special]
        assert all(after[i] != before[i] for i in set(range(len(before))) - set(special))


def test_words_that_were_added_to_the_vocabulary_are_left_alone(table):
    added = [AddedToken(token, normalized=False) for token in CONTENT[:40]]
    own = Tokenizer(bert_wordpiece(VOCAB, {"do_lower_case": False}, added))
    tokens = tokenize([" ".join(CONTENT)], None, own, 99)
    altered = augment(tokens, own, table, replace(NOTHING, copies=20, mask=0.5, swap=0.5), 0).ids.reshape(20, -1)
    assert (altered[:, :41] == tokens.ids[:41]).all() and (altered[:, 41:-1] != tokens.ids[41:-1]).all()
    assert not np.isin(altered[:, 41:], [VOCAB[word] for word in CONTENT[:40]]).any()


def brute_force(table, word, count):
    """The nearest words of the same capitals, by one cosine at a time."""

    def capitals(token):
        return token[0].isupper(), token[1:].isupper()

    others = [other for other in [*CONTENT, *CAPITALS, "won"] if other != word and capitals(other) == capitals(word)]
    cosine = {o: torch.cosine_similarity(table[VOCAB[word]], table[VOCAB[o]], dim=0).item() for o in others}
    return [VOCAB[other] for other in sorted(cosine, key=cosine.get, reverse=True)[:count]]


def test_neighbours_are_the_nearest_words_of_the_same_capitals(tokenizer, table, monkeypatch):
    monkeypatch.setattr("minikd.techniques.augment.ROWS", 7)  # several turns, the last of them not full
    scaled = table * torch.logspace(-2, 2, len(table))[:, None]  # the angle counts, not the length
    used = np.array(sorted(VOCAB[word] for word in [*CONTENT[::3], *CAPITALS]), dtype=np.int32)
    found = nearest_words(used, swappable_kinds(tokenizer), scaled, 5)
    names = {i: word for word, i in VOCAB.items()}
    assert found.tolist() == [brute_force(table, names[i], 5) for i in used.tolist()]


def test_swaps_give_every_neighbour_and_nothing_else(tokenizer, table):
    tokens = tokenize([" ".join(CONTENT[:12] + ["Abx", "AAZ"])] * 200, None, tokenizer, 100)
    augmented = augment(tokens, tokenizer, table, replace(NOTHING, swap=1, neighbours=4), 0)
    for i, word in enumerate(CONTENT[:12] + ["Abx", "AAZ"], start=1):
        counts = np.bincount(augmented.ids[tokens.offsets[:-1] + i], minlength=len(VOCAB))
        assert set(np.flatnonzero(counts).tolist()) == set(brute_force(table, word, 4))
        assert counts.max() < 90  # of 200, about 50 each


def test_a_word_that_has_too_few_neighbours_may_stay(tokenizer):
    few = {token: i for i, token in enumerate([*SPECIAL_TOKENS, "film", "movie", "cinema", "Alone"])}
    own = Tokenizer(bert_wordpiece(few, {"do_lower_case": False}))
    tokens = tokenize(["film movie Alone"] * 100, None, own, 10)
    augmented = augment(tokens, own, torch.randn(len(few), 4), replace(NOTHING, swap=1, neighbours=3), 0)
    first, second, third = augmented.ids.reshape(-1, 5)[:, 1:4].T
    assert set(first) == set(second) == {few["film"], few["movie"], few["cinema"]} and set(third) == {few["Alone"]}


def test_negations_numbers_function_words_and_the_like_are_never_swapped(tokenizer, table):
    tokens = tokenize(
        ["The of not no never without Not two million 7 2010 4th n ' t s . ! - waa"] * 50, None, tokenizer, 99
    )
    augmented = augment(tokens, tokenizer, table, replace(NOTHING, swap=1), 0)
    for before, after in pairs(tokens, augmented):
        assert before[:-2] == after[:-2] and before[-2] != after[-2]
    kinds = swappable_kinds(tokenizer)
    assert {word for word, i in VOCAB.items() if kinds[i]} == {*CONTENT, *CAPITALS, "won"}  # nor put in another's place
    assert {"not", "nor", "cannot", "didn", "never", "without"} < LEFT_ALONE


@pytest.mark.parametrize("apostrophe", ["'", "\u2019"])
def test_the_word_before_t_is_part_of_a_negation(tokenizer, table, apostrophe):
    tokens = tokenize([f"won{apostrophe}t won{apostrophe}s won - t"] * 50, None, tokenizer, 99)
    won = [i for i, token_id in enumerate(rows(tokens)[0]) if token_id == VOCAB["won"]]
    for before, after in pairs(tokens, augment(tokens, tokenizer, table, replace(NOTHING, swap=1), 0)):
        assert [i for i in range(len(before)) if before[i] != after[i]] == won[1:]


def test_a_span_is_a_run_of_whole_words_of_a_long_text(tokenizer, table):
    words = [f"{word}{'xyz'[: i % 3]}" for i, word in enumerate(CONTENT[:9])]
    tokens = tokenize([" ".join(words)], None, tokenizer, 99)
    augmented = augment(tokens, tokenizer, table, replace(NOTHING, copies=3000, span=1, shortest_span=4), 0)
    assert len(augmented) == 3000
    spans = {
        tuple(rows(tokenize([" ".join(words[start : start + length])], None, tokenizer, 99))[0]): length
        for length in range(4, 9)
        for start in range(10 - length)
    }
    found = [tuple(row) for row in rows(augmented)]
    assert set(found) == set(spans)  # every one, with [CLS] and [SEP] around it, and nothing else
    for length in range(4, 9):
        assert near(sum(spans[row] == length for row in found) / 3000, 1 / 5, 3000)


def test_spans_are_as_frequent_as_the_settings_say_and_only_in_long_texts(tokenizer, table):
    tokens = tokenize(texts(4000, 17) + texts(4000, 16), None, tokenizer, 99)
    augmented = augment(tokens, tokenizer, table, Augmentation(1, mask=0, swap=0, span=0.25), 0)
    assert near(len(augmented) / 4000, 0.25, 4000)  # what is not altered is left out
    assert set(augmented.lengths) == {18}


def test_the_result_is_a_split_of_unlabelled_versions(tokenizer, table):
    tokens = tokenize(texts(50, 30) + texts(50, 3), [1] * 100, tokenizer, 20)
    augmented = augment(tokens, tokenizer, table, Augmentation(3), 0)
    assert isinstance(augmented, TokenizedSplit) and augmented.pad_token_id == tokens.pad_token_id
    assert augmented.ids.dtype == np.int32 and augmented.offsets.dtype == augmented.labels.dtype == np.int64
    assert augmented.offsets[0] == 0 and augmented.offsets[-1] == len(augmented.ids)
    assert 200 < len(augmented) == len(augmented.offsets) - 1 <= 300 and set(augmented.labels) == {UNLABELLED}
    assert augmented.lengths.min() >= 3 and augmented.lengths.max() <= tokens.lengths.max()
    assert all(row[0] == CLS and row[-1] == SEP and {*row[1:-1]} != {MASK} for row in rows(augmented))
    assert tokens.labels.tolist() == [1] * 100  # the originals stay as they are
    assert np.array_equal(tokens.ids, tokenize(texts(50, 30) + texts(50, 3), None, tokenizer, 20).ids)


def test_a_version_that_equals_its_original_is_left_out(tokenizer, table):
    tokens = tokenize(["waa", "wbb wcc", "not the 7"] * 40, None, tokenizer, 20)
    settings = Augmentation(5, mask=0.2, swap=0.2)
    augmented = augment(tokens, tokenizer, table, settings, 0)
    originals = {tuple(row) for row in rows(tokens)}
    assert 0 < len(augmented) < 5 * 120 and not originals & {tuple(row) for row in rows(augmented)}
    assert len(augment(tokens, tokenizer, table, NOTHING, 0)) == 0


@pytest.mark.parametrize("written", [[], [""], ["", ""], ["waa"], ["waaxyz", "7", "\u4e2d"]])
def test_texts_without_words_and_of_one_word_are_never_masked_away(tokenizer, table, written):
    tokens = tokenize(written, None, tokenizer, 20)
    augmented = augment(tokens, tokenizer, table, Augmentation(3, mask=1, swap=0), 0)
    assert len(augmented) == 0 and augmented.offsets.tolist() == [0]
    joined = augment(tokens, tokenizer, table, Augmentation(3, mask=0.4, swap=0.6), 0)
    assert MASK not in joined.ids


def test_a_span_has_a_word_that_is_not_masked(tokenizer, table):
    tokens = tokenize(texts(500, 3), None, tokenizer, 20)
    settings = Augmentation(2, mask=0.7, swap=0, span=1, shortest_span=1)
    assert all({*row[1:-1]} != {MASK} for row in rows(augment(tokens, tokenizer, table, settings, 0)))


def test_a_text_that_begins_within_a_word_is_read_from_there(tokenizer, table):
    left = Tokenizer(bert_wordpiece(VOCAB, {"do_lower_case": False}), truncation_side="left")
    tokens = tokenize(["waaxyz wbb wcc"], None, left, 6)
    assert rows(tokens) == [[CLS, VOCAB["##y"], VOCAB["##z"], VOCAB["wbb"], VOCAB["wcc"], SEP]]
    masked = {tuple(row) for row in rows(augment(tokens, left, table, replace(NOTHING, copies=99, mask=0.4), 0))}
    pieces = {row[1:3] for row in masked}
    assert pieces == {(VOCAB["##y"], VOCAB["##z"]), (MASK, MASK)}


def test_the_same_arguments_give_the_same_bytes_whatever_else_is_drawn(tokenizer, table):
    tokens = tokenize(texts(40, 20), None, tokenizer, 99)
    settings = Augmentation(4)
    one = augment(tokens, tokenizer, table, settings, 7)
    np.random.seed(1)
    torch.manual_seed(1)
    drawn = np.random.get_state()[1].copy(), torch.get_rng_state()
    two = augment(tokens, tokenizer, table.clone().requires_grad_(), settings, 7)
    assert one.ids.tobytes() == two.ids.tobytes() and one.offsets.tobytes() == two.offsets.tobytes()
    assert one.fingerprint == two.fingerprint
    assert np.array_equal(drawn[0], np.random.get_state()[1]) and torch.equal(drawn[1], torch.get_rng_state())
    other = augment(tokens, tokenizer, table, settings, 8)
    assert rows(other) != rows(one)
    fewer = augment(tokens, tokenizer, table, replace(settings, copies=2), 7)
    assert rows(fewer) == rows(one)[: len(fewer)] and len(fewer) < len(one)
    assert rows(one)[:40] != rows(one)[40:80]


def test_the_fingerprint_follows_from_all_that_the_versions_depend_on(tokenizer, table):
    tokens = tokenize(texts(40, 20), None, tokenizer, 99)
    settings = Augmentation(4)
    changed = [
        replace(settings, **{name: value})
        for name, value in [("copies", 5), ("mask", 0.2), ("swap", 0.3), ("neighbours", 9), ("span", 0.5)]
    ]
    changed.append(replace(settings, shortest_span=15))
    others = [augment(tokens, tokenizer, table, one, 0) for one in (settings, *changed)]
    others.append(augment(tokens, tokenizer, table, settings, 1))
    others.append(augment(tokens, tokenizer, table.flip(0), settings, 0))
    others.append(augment(replace(tokens, fingerprint="another"), tokenizer, table, settings, 0))
    keys = [other.fingerprint for other in others]
    assert len({*keys, tokens.fingerprint}) == len(keys) + 1


def test_real_neighbours_make_sense(minilm):
    tokenizer, model = load_tokenizer(minilm), load_quietly(minilm)
    table = model.encoder.embeddings.word_embeddings.weight
    tokens = tokenize(["It isn't a great film, Jim: 12 percent!"], None, tokenizer, 32)
    augmented = augment(tokens, tokenizer, table, replace(NOTHING, copies=300, swap=0.5, neighbours=5), 0)
    words = [set(column) for column in zip(*(text.split() for text in decode(augmented, tokenizer, range(200))))]
    assert words[:5] == [{"it"}, {"isn"}, {"'"}, {"t"}, {"a"}]
    assert words[5] == {"great", "terrific", "wonderful", "excellent", "fantastic", "tremendous"}
    assert words[6] == {"film,", "films,", "movie,", "movies,", "filmmaker,", "filmmakers,"}
    assert words[7] == {"jim", "james", "john", "mike", "steve", "ken"} and words[8:10] == [{":"}, {"12"}]


def test_masks_are_seen_in_the_text(tokenizer):
    tokens = tokenize(["waaxy [MASK] wbb", ""], None, tokenizer, 20)
    assert decode(tokens, tokenizer, [0, 1]) == ["waaxy [MASK] wbb", ""]


@pytest.mark.parametrize("settings, message", [
    ({"copies": 0}, "`copies` 0: must be a whole number of at least 1"),
    ({"copies": 2.0}, "`copies` 2.0"),
    ({"copies": True}, "`copies` True"),
    ({"copies": 1, "neighbours": 0}, "`neighbours` 0"),
    ({"copies": 1, "shortest_span": 0}, "`shortest_span` 0"),
    ({"copies": 1, "mask": 1.1}, r"`mask` 1.1: must be a probability in \[0, 1\]"),
    ({"copies": 1, "span": -0.1}, "`span` -0.1"),
    ({"copies": 1, "swap": float("nan")}, "`swap` nan"),
    ({"copies": 1, "swap": "0.1"}, "`swap` '0.1'"),
    ({"copies": 1, "mask": 0.6, "swap": 0.5}, "`mask` 0.6 and `swap` 0.5"),
])  # fmt: skip
def test_settings_out_of_their_range_are_refused_by_name(settings, message):
    with pytest.raises(MinikdError, match=message):
        Augmentation(**settings)


def test_a_vocabulary_that_does_not_fit_is_refused(tokenizer, table):
    tokens = tokenize(["waa"], None, tokenizer, 20)
    with pytest.raises(MinikdError, match=f"has {len(VOCAB) - 1} rows for the tokenizer's {len(VOCAB)} tokens"):
        augment(tokens, tokenizer, table[:-1], Augmentation(1), 0)
    without = {token: i for i, token in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "waa"])}
    for backend in (bert_wordpiece(without, {}), Backend(BPE(vocab=VOCAB, merges=[]))):
        with pytest.raises(MinikdError, match="needs BERT's WordPiece"):
            augment(tokens, Tokenizer(backend), table, Augmentation(1), 0)
