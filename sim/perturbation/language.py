"""Language: paraphrases of the instruction, by rules for the imperative sentences of these benchmarks.

Level 1 uses other verbs, 2 changes the word order, 3 adds polite phrases, 4 uses synonyms of the nouns, 5 does all of
this after an unrelated remark.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

LEVEL_DESCRIPTIONS = {
    1: "other verbs",
    2: "other order",
    3: "polite",
    4: "other names",
    5: "everything, after a remark",
}

PLACE_VERBS, PICK_VERBS = ("put", "place", "move", "drop", "set"), ("pick up", "grab", "take")

VERB_SYNONYMS: Mapping[str, tuple[str, ...]] = {
    "put": ("place", "set", "lay"),
    "place": ("put", "set", "lay"),
    "move": ("bring", "transfer"),
    "drop": ("place", "set"),
    "pick up": ("grab", "take", "lift"),
    "open": ("pull open",),
    "close": ("shut",),
    "turn on": ("switch on", "start"),
    "turn off": ("switch off",),
    "push": ("slide", "shove"),
    "bin": ("discard", "throw away"),
    "press": ("push down", "hit"),
    "turn": ("rotate", "twist"),
    "stack": ("pile", "set"),
    "pour": ("tip", "empty"),
}
"""Verbs that begin a clause, with their synonyms."""

PARTICIPLES = {
    "open": "opened",
    "close": "closed",
    "turn on": "turned on",
    "turn off": "turned off",
    "push": "pushed",
    "press": "pressed",
    "turn": "turned",
    "stack": "stacked",
    "pour": "poured",
}

NOUN_SYNONYMS = {
    "cube": "block",
    "cubes": "blocks",
    "can": "tin",
    "puck": "disc",
    "bin": "container",
    "bowl": "dish",
    "basket": "hamper",
    "cabinet": "cupboard",
    "stove": "cooker",
    "ramekin": "little pot",
    "cookie box": "box of biscuits",
    "mug": "cup",
    "moka pots": "coffee makers",
    "moka pot": "coffee maker",
    "wine bottle": "bottle of wine",
    "rack": "holder",
    "caddy": "organizer",
    "microwave": "microwave oven",
    "plate": "platter",
    "alphabet soup": "letter soup",
    "cream cheese": "soft cheese",
    "salad dressing": "dressing for salad",
    "bbq sauce": "barbecue sauce",
    "tomato sauce": "pasta sauce",
    "chocolate pudding": "cocoa pudding",
    "orange juice": "juice of oranges",
    "ketchup": "tomato ketchup",
    "milk": "carton of milk",
    "butter": "stick of butter",
    "book": "volume",
    "button": "switch",
    "knob": "dial",
    "mat": "pad",
    "ball": "marble",
    "cup": "beaker",
    "left of": "on the left side of",
    "right of": "on the right side of",
    "to the right of": "on the right side of",
    "next to": "beside",
    "in front of": "before",
    "behind": "at the back of",
    "nearest": "closest to",
    "farthest from": "most distant from",
    "far from": "well away from",
    "on top of": "atop",
    "was lit": "lit up",
    "was not lit": "stayed dark",
}

POLITE_TEMPLATES = (
    "please {}",
    "{} please",
    "could you {}",
    "could you please {} for me",
    "now {} if you would, thanks",
)

DISTRACTING_REMARKS = (
    "it has been a long day and the kettle is on.",
    "the others will be here at noon.",
    "i have just wiped everything clean.",
    "mind the cable behind you.",
)

PREPOSITIONS = ("into", "inside", "in", "onto", "on", "to", "next to", "from")


@dataclass(frozen=True)
class _Clause:
    """One clause: a verb, its object, and the destination (empty if there is none)."""

    verb: str
    thing: str
    place: str = ""

    def __str__(self) -> str:
        return " ".join(part for part in (self.verb, self.thing, self.place) if part)


def rephrase(instruction: str, level: int, generator: np.random.Generator) -> str:
    """Paraphrase an instruction.

    Args:
        instruction: The instruction; one that no rule matches gets a polite phrase.
        level: 1 to 5, see the module.
        generator: Chooses among the synonyms.

    Returns:
        The paraphrase, which differs from the instruction.
    """
    choices = generator.integers(2**31, size=8)
    clauses = _clauses(instruction)
    merged_clauses = _merge_pick_and_place(clauses)
    match level:
        case 1:
            words = _other_verbs(clauses, choices)
        case 2:
            words = _other_order(merged_clauses, choices)
        case 3:
            words = _polite(_other_verbs(clauses, choices), choices)
        case 4:
            words = _other_names(_other_verbs(clauses, choices))
        case _:
            remark = DISTRACTING_REMARKS[choices[6] % len(DISTRACTING_REMARKS)]
            words = (
                f"{remark} {_polite(_other_names(_other_order(merged_clauses, choices)), choices[1:], ordered=True)}"
            )
    return words if words != instruction else _polite(instruction, choices)


def _clauses(instruction: str) -> list[_Clause]:
    """Split a sentence into clauses; a sentence that no rule matches is one clause without a verb."""
    verbs = "|".join(sorted(VERB_SYNONYMS, key=len, reverse=True))
    parts = re.split(rf"(?:,? and |, then |, )(?=(?:{verbs})\b)", " ".join(instruction.lower().split()).rstrip("."))
    clauses = []
    for part in parts:
        found = re.match(rf"({verbs})\b\s*(.*)", part)
        if found is None:
            return [_Clause("", instruction)]
        clauses.append(_clause(found[1], found[2]))
    return clauses


def _merge_pick_and_place(clauses: list[_Clause]) -> list[_Clause]:
    """Merge "pick up X and put it Y" into "put X Y"."""
    match clauses:
        case [_Clause(verb=take, thing=thing), _Clause(verb=carry, thing="it", place=place)]:
            if take in PICK_VERBS and carry in PLACE_VERBS:
                return [_Clause("put", thing, place)]
    return clauses


def _clause(verb: str, rest: str) -> _Clause:
    # A clause with two destinations cannot be split: it keeps its order.
    if verb not in (*PLACE_VERBS, "push", "turn", "stack", "pour") or ", " in rest:
        return _Clause(verb, rest)
    # The last place is the destination; earlier ones describe the object.
    places = "|".join(PREPOSITIONS)
    found = re.fullmatch(rf"(.+?) ((?:{places}) (?:(?!.* (?:{places}) (?:the|it)\b).*)|inside)", rest)
    if rest.startswith("it "):
        found = re.fullmatch(r"(it) (.+)", rest)
    return _Clause(verb, found[1], found[2]) if found else _Clause(verb, rest)


def _other_verbs(clauses: Sequence[_Clause], choices: np.ndarray) -> str:
    sentences = []
    for clause, choice in zip(clauses, choices, strict=False):
        others = VERB_SYNONYMS.get(clause.verb, (clause.verb,))
        place = re.sub(r"^in\b", "into", clause.place) if clause.verb in PLACE_VERBS else clause.place
        sentences.append(str(_Clause(others[choice % len(others)], clause.thing, place)))
    return " and ".join(sentences)


def _other_order(clauses: Sequence[_Clause], choices: np.ndarray) -> str:
    sentences = []
    for clause, choice in zip(clauses, choices, strict=False):
        if clause.verb in PLACE_VERBS and clause.place:
            templates = (
                "{thing} should go {place}",
                "{place} is where {thing} should go",
                "{place} is the place for {thing}",
            )
        elif clause.verb in PARTICIPLES:
            templates = ("{thing} should be {done} {place}", "{thing} needs to be {done} {place}")
        elif clause.verb:
            templates = ("what to do: {whole}", "{whole}, that is the job")
        else:
            templates = ("the job: {whole}",)
        done = PARTICIPLES.get(clause.verb, "")
        sentence = templates[choice % len(templates)].format(
            thing=clause.thing, place=clause.place, done=done, whole=str(clause)
        )
        sentences.append(sentence.strip())
    return ", then ".join(sentences)


def _polite(words: str, choices: np.ndarray, *, ordered: bool = False) -> str:
    templates = ("so {}, please", "{}, thank you", "remember: {}") if ordered else POLITE_TEMPLATES
    return templates[choices[5] % len(templates)].format(words)


def _other_names(words: str) -> str:
    names = "|".join(sorted(map(re.escape, NOUN_SYNONYMS), key=len, reverse=True))
    return re.sub(rf"\b(?:{names})\b", lambda found: NOUN_SYNONYMS[found[0]], words)
