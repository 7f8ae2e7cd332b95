"""Classes are found by id, name, beginning, part and similar spelling, and ambiguous texts are refused."""

from __future__ import annotations

import numpy as np
import pytest

from yt8m.errors import UsageError
from yt8m.search.concepts import find_concepts, plain
from yt8m.vocabulary import Vocabulary

NAMES = {
    11: "Food",
    22: "Cooking",
    7: "Car",
    30: "Cartoon",
    3: "Musical ensemble",
    4: "Guitar",
    900: "Bass guitar",
    901: "Pokémon",
    40: "Double bass",
    41: "Orchestra",
    42: "Orchestra",
    50: "Trailer (promotion)",
    60: "",
    61: "Roller coaster",
    62: "Roller skating",
}
VOCABULARY = Vocabulary(np.array(list(NAMES), np.int64), tuple(NAMES.values()))


def ids(text: str) -> list[int]:
    return [int(VOCABULARY.label_ids[found.class_index]) for found in find_concepts(text, VOCABULARY)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Food", [11]),
        (" fOOd ", [11]),
        ("11", [11]),
        ("60", [60]),
        ("pokemon", [901]),
        ("POKÉMON", [901]),
        ("Car", [7]),  # not Cartoon, which begins with it
        ("cart", [30]),
        ("guitar", [4]),  # not Bass guitar
        ("musical", [3]),
        ("ensemble", [3]),
        ("double", [40]),
        ("orchestra", [41, 42]),  # two classes of one name
        ("orch", [41, 42]),
        ("trailer promotion", [50]),
        ("promotion", [50]),
        ("bas", [900]),  # not Double bass, whose second word begins with it
        ("cook king", [22]),
        ("foodd", [11]),
        ("Cokoing", [22]),
        ("musicl ensmble", [3]),
        ("guitr", [4]),
    ],
)
def test_a_text_finds_its_classes(text: str, expected: list[int]) -> None:
    assert ids(text) == expected


def test_only_incomplete_and_misspelt_names_are_guesses() -> None:
    guesses = {text: find_concepts(text, VOCABULARY)[0].is_guess for text in ("food", "11", "pokemon", "cart", "foodd")}
    assert guesses == {"food": False, "11": False, "pokemon": False, "cart": True, "foodd": True}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "roller",
            "'roller' is the beginning of several concepts (did you mean 'Roller coaster' or 'Roller skating'?).",
        ),
        (
            "c",
            "'c' is the beginning of several concepts (did you mean 'Cooking', 'Car', 'Cartoon' or 'Roller coaster'?).",
        ),
        ("rollerblade", "There is no concept 'rollerblade' (did you mean 'Roller coaster'?)."),
        ("carbon", "There is no concept 'carbon' (did you mean 'Cartoon' or 'Car'?)."),
        ("xylophone", "There is no concept 'xylophone' among the 15 of the model, and none with a similar name."),
        ("12345", "There is no concept '12345' among the 15 of the model, and none with a similar name."),
        ("-", "'-': expected the name of a concept, or the id of a class."),
        ("", "'': expected the name of a concept, or the id of a class."),
    ],
)
def test_a_text_that_means_no_single_concept_is_refused(text: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        find_concepts(text, VOCABULARY)
    assert str(caught.value) == message


def test_every_complete_name_finds_its_class() -> None:
    for label_id, name in NAMES.items():
        if name:
            assert label_id in ids(name)
            assert label_id in ids(name.upper())
        assert ids(str(label_id)) == [label_id]


def test_names_are_compared_without_case_accents_and_punctuation() -> None:
    assert plain("  Mercedes-Benz's  ÜBER_car ") == "mercedes benz s uber car"
    assert plain("日本") == "日本"
