"""Six numbers that say how a completion is written, measured on its surface, for any text.

They are the ground of the simulated people's tastes: what a person likes is known for texts that the simulator wrote
and for texts that it did not.
"""

from __future__ import annotations

import math
import re
from typing import Final

import numpy as np
from numpy.typing import NDArray

AXES: Final = ("length", "lists", "formality", "hedging", "warmth", "examples")
"""The axes, in the order of every taste and feature vector: more of the named thing is larger."""

FEATURE_MEAN: Final = (4.2, 0.25, -0.05, 0.19, 0.33, 0.17)
FEATURE_SCALE: Final = (0.57, 0.32, 0.44, 0.24, 0.24, 0.16)
"""About the mean and the spread of the raw features over simulated texts: written down, so that a utility means the
same whatever was simulated."""

_WORD: Final = re.compile(r"\w+(?:'\w+)*")
_SENTENCE_END: Final = re.compile(r"[.!?]+(?=\s|$)|\n")
_LIST_LINE: Final = re.compile(r"\s*(?:[-*+\u2022]|--|\(?\d+[.)])\s+\S")
_EXCLAMATION: Final = re.compile(r"!+")


def _lexicon(words: str) -> re.Pattern[str]:
    phrases = sorted((phrase.strip() for phrase in words.split(",")), key=lambda phrase: (-len(phrase), phrase))
    return re.compile(r"(?<!\w)(?:" + "|".join(phrases) + r")(?!\w)", re.IGNORECASE)


_FORMAL: Final = _lexicon(
    "furthermore, moreover, consequently, accordingly, therefore, thus, hence, in addition, additionally, "
    "one should, ought to, shall, it is advisable, it is recommended, it is prudent, it is necessary, essential, "
    "it should be noted, it must be emphasised, it is well established, as has been documented, "
    "utili[sz]e, commence, purchase, sufficient, select, requires?, request, regarding, prior to, subsequently, "
    "obtain, individuals, in conclusion, with respect to, nevertheless, in this regard, imperative, "
    "it is appropriate, it is to be observed, evident, well advised, demonstrates?"
)
_CASUAL: Final = _lexicon(
    r"\w+n't, it's, that's, here's, let's, what's, \w+'(?:re|ve|ll|d|m), "
    "gonna, wanna, gotta, kinda, sorta, yeah, yep, hey, okay, ok, stuff, super, tons of, folks, guys, dude, buddy, "
    "kids, no biggie, no joke, no kidding, heads up, pretty cool, basically, honestly, big deal, you know, "
    "long story short, get this, awesome, huge, tiny little, turns out, lol, btw, trust me, nuts, neat, "
    "no way around it, cuz"
)
_HEDGES: Final = _lexicon(
    "maybe, perhaps, possibly, probably, presumably, might, may, could, seems?, appears?, i think, i guess, "
    "i believe, i suppose, i suspect, as far as i know, as far as i can tell, not sure, uncertain, "
    "in most cases, it depends, likely, arguably, to some extent, more or less, i might be wrong"
)
_WARM: Final = _lexicon(
    "lovely, wonderful, wonderfully, delightful, glad, happy, dear, my friend, dear friend, sweetheart, proud, "
    "appreciate, cheering, hug, rooting for you, warm wishes, encouragement, thank you, smile, i love, "
    "with all my heart, you deserve, amazing, be kind to yourself, be gentle with yourself, you are not alone, "
    "you can do it, admire, enjoy, doing great, take all the time you need, so sorry, congratulations, well done, "
    "bless you"
)
_EXAMPLES: Final = _lexicon(
    r"for example, for instance, an example, example is, examples are, e\.g\.?, such as, to illustrate, "
    "an illustration, imagine, concrete case, suppose that, picture this, "
    "as an example, one example, examples, consider this, think of, illustrate, concrete cases"
)


def _saturated(count: float, sentences: int) -> float:
    """A rate per sentence, between 0 and 1: the second hedge of a sentence says less than the first."""
    return 1.0 - math.exp(-count / sentences)


def raw_features(completion: str) -> NDArray[np.float64]:
    """Measure a completion.

    - length: log(1 + words)
    - lists: share of the lines that begin with a bullet or a number
    - formality: formal minus casual markers (contractions among them) per sentence, each saturating
    - hedging, examples: markers per sentence, saturating
    - warmth: warm words and half of the exclamation marks per sentence, saturating

    Returns:
        float64 [6], in the order of `AXES`.
    """
    completion = completion.replace("\u2019", "'")
    lines = [line for line in completion.splitlines() if line.strip()]
    sentences = max(1, sum(1 for part in _SENTENCE_END.split(completion) if _WORD.search(part)))

    def count(pattern: re.Pattern[str]) -> int:
        return sum(1 for _ in pattern.finditer(completion))

    return np.array(
        [
            math.log1p(count(_WORD)),
            sum(1 for line in lines if _LIST_LINE.match(line)) / max(1, len(lines)),
            _saturated(count(_FORMAL), sentences) - _saturated(count(_CASUAL), sentences),
            _saturated(count(_HEDGES), sentences),
            _saturated(count(_WARM) + 0.5 * count(_EXCLAMATION), sentences),
            _saturated(count(_EXAMPLES), sentences),
        ]
    )


def surface_features(completion: str) -> NDArray[np.float64]:
    """The raw features, centred and scaled by `FEATURE_MEAN` and `FEATURE_SCALE`: float64 [6]."""
    features = (raw_features(completion) - np.array(FEATURE_MEAN)) / np.array(FEATURE_SCALE)
    return np.asarray(features, dtype=np.float64)
