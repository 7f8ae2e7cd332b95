"""Find classes by what a person types: an id, a name, its beginning, a part of it, or a name with a typing error."""

import difflib
import re
import unicodedata
from typing import NamedTuple

from yt8m.errors import UsageError
from yt8m.vocabulary import Vocabulary

SIMILAR = 0.6
"""Lowest similarity (`difflib`) of a suggestion."""
SURE = 0.8
"""Lowest similarity of a name that is taken for the one meant, if no other is within `MARGIN` of it."""
MARGIN = 0.05

_MOST_SUGGESTIONS = 6


class FoundConcept(NamedTuple):
    """A class that was found.

    Args:
        class_index: Its position in the vocabulary.
        is_guess: Whether the name differs from the text in more than case, accents and punctuation.
    """

    class_index: int
    is_guess: bool = False


def find_concepts(text: str, vocabulary: Vocabulary) -> list[FoundConcept]:
    """Classes that a text means: one, or all that share a name.

    Compared are, in this order, the id; the complete name; the beginning of the name; parts of the name that begin a
    word; similar names. Case, accents and punctuation do not matter.

    Args:
        text: What was typed.
        vocabulary: The classes.

    Raises:
        UsageError: No class is meant, or several; the message suggests names.
    """
    names = [plain(name) for name in vocabulary.names]
    wanted = plain(text)
    if text.strip().isdecimal() and (index := int(vocabulary.class_indices(int(text)))) >= 0:
        return [FoundConcept(index)]
    if not wanted:
        raise UsageError(f"{text!r}: expected the name of a concept, or the id of a class.")
    same = [index for index, name in enumerate(names) if name == wanted]
    if same:
        return [FoundConcept(index) for index in same]
    beginning = [index for index, name in enumerate(names) if name.startswith(wanted)]
    inside = [index for index, name in enumerate(names) if f" {wanted}" in name]
    for partial in (beginning, inside):
        if len({names[index] for index in partial}) == 1:
            return [FoundConcept(index, is_guess=True) for index in partial]
        if partial:
            meant = _listed([vocabulary.names[index] for index in [*beginning, *inside]])
            raise UsageError(f"{text!r} is the beginning of several concepts (did you mean {meant}?).")
    return _similar(text, wanted, names, vocabulary)


def _similar(text: str, wanted: str, names: list[str], vocabulary: Vocabulary) -> list[FoundConcept]:
    """Classes with the name most similar to a text; UsageError where none, or more than one, is similar enough."""
    matcher = difflib.SequenceMatcher(b=wanted)
    similarities: dict[str, float] = {}
    for name in dict.fromkeys(names):
        matcher.set_seq1(name)
        if matcher.real_quick_ratio() >= SIMILAR and matcher.quick_ratio() >= SIMILAR:
            similarities[name] = matcher.ratio()
    close = sorted((name for name in similarities if similarities[name] >= SIMILAR), key=lambda n: -similarities[n])
    if not close:
        raise UsageError(
            f"There is no concept {text!r} among the {len(names):,} of the model, and none with a similar name."
        )
    second = similarities[close[1]] if len(close) > 1 else 0.0
    if similarities[close[0]] >= SURE and similarities[close[0]] - second >= MARGIN:
        return [FoundConcept(index, is_guess=True) for index, name in enumerate(names) if name == close[0]]
    meant = _listed([vocabulary.names[names.index(name)] for name in close])
    raise UsageError(f"There is no concept {text!r} (did you mean {meant}?).")


def plain(text: str) -> str:
    """A name without case, accents, punctuation and repeated spaces."""
    decomposed = unicodedata.normalize("NFKD", text.casefold())
    letters = "".join(character for character in decomposed if not unicodedata.combining(character))
    return " ".join(re.findall(r"[^\W_]+", letters))


def _listed(names: list[str]) -> str:
    """Names as `'a', 'b' or 'c'`, the first few of them."""
    *before, last = [repr(name) for name in dict.fromkeys(names)][:_MOST_SUGGESTIONS]
    return f"{', '.join(before)} or {last}" if before else last
