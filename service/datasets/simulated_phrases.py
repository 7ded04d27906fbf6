"""The words of simulated answers: one bank for training, one held out. No phrase is in both.

`{p}` is an imperative point, `{c}` a clause, `{e}` an example, `{t}` the topic; a capital letter asks for a capital.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

Kind = Literal["how-to", "facts"]
Register = Literal["casual", "neutral", "formal"]


@dataclass(frozen=True)
class PhraseBank:
    """Everything around the points of an answer.

    Attributes:
        questions: Forms of the prompt, by kind.
        frames: Sentences round a point, by kind and register.
        hedged: Sentences round a point that commit to little, by kind.
        hedge_tails: What may follow a sentence instead.
        prefixes: What opens a sentence in a register.
        substitutions: Words that a register replaces.
        reasons: Sentences that elaborate a point, by kind.
        openings: Warm first sentences.
        asides: Warm sentences on the way.
        closings: Warm last sentences.
        example_leads: Sentences before several examples.
        examples: Sentences that introduce an example.
        list_openings: Lines before a list.
        bullets: Marks of a list line; `{n}` counts.
    """

    questions: dict[Kind, tuple[str, ...]]
    frames: dict[Kind, dict[Register, tuple[str, ...]]]
    hedged: dict[Kind, tuple[str, ...]]
    hedge_tails: tuple[str, ...]
    prefixes: dict[Register, tuple[str, ...]]
    substitutions: dict[Register, dict[str, str]]
    reasons: dict[Kind, tuple[str, ...]]
    openings: tuple[str, ...]
    asides: tuple[str, ...]
    closings: tuple[str, ...]
    example_leads: tuple[str, ...]
    examples: tuple[str, ...]
    list_openings: tuple[str, ...]
    bullets: tuple[str, ...]


CONTRACTIONS: Final = {
    "do not": "don't",
    "does not": "doesn't",
    "is not": "isn't",
    "it is": "it's",
    "that is": "that's",
    "you are": "you're",
    "you have": "you've",
    "you will": "you'll",
    "I am": "I'm",
    "I would": "I'd",
    "cannot": "can't",
}
"""What a casual writer contracts. Grammar, not phrases: both banks use it."""

TRAINING: Final = PhraseBank(
    questions={
        "how-to": (
            "Can you help me with {t}?",
            "What should I know about {t}?",
            "Give me advice on {t}.",
            "I have a question about {t}. Where do I start?",
            "What matters most with {t}?",
            "My last attempt at {t} went wrong. What now?",
        ),
        "facts": (
            "Can you explain {t}?",
            "What should I know about {t}?",
            "I would like to understand {t}.",
            "Describe {t}.",
            "What is the story behind {t}?",
            "Write something about {t}.",
        ),
    },
    frames={
        "how-to": {
            "neutral": ("{P}.", "Try to {p}.", "It helps to {p}.", "Remember to {p}."),
            "casual": (
                "Just {p}, dude.",
                "You'll wanna {p}.",
                "Don't forget to {p}, it's a big deal.",
                "Yeah, {p}, that's key.",
                "Dude, {p}, trust me.",
                "Gotta {p}, no way around it, lol.",
                "Hey, why don't you {p}?",
                "Let's {p}, it's super easy stuff.",
            ),
            "formal": (
                "It is advisable to {p}.",
                "One should {p}.",
                "Furthermore, it is recommended to {p}.",
                "It is therefore essential to {p}.",
                "In this regard, it is imperative to {p}.",
                "Thus, one is well advised to {p}.",
                "Subsequently, it is appropriate to {p}.",
                "With respect to the matter at hand, one must {p}.",
            ),
        },
        "facts": {
            "neutral": ("{C}.", "Here {c}.", "The key is that {c}.", "First of all, {c}."),
            "casual": (
                "So basically, {c}.",
                "{C}, and that's pretty cool.",
                "Yeah, {c}.",
                "Turns out {c}, no joke.",
                "Dude, {c}, that's nuts.",
                "Honestly, {c}, lol.",
                "Hey, {c}, it's super neat stuff.",
                "Here's the deal, {c}.",
            ),
            "formal": (
                "It should be noted that {c}.",
                "Furthermore, {c}.",
                "Consequently, {c}.",
                "It is well established that {c}.",
                "In this regard, it is to be observed that {c}.",
                "Thus, {c}.",
                "It is therefore evident that {c}.",
                "With respect to the matter at hand, {c}.",
            ),
        },
    },
    hedged={
        "how-to": (
            "Perhaps you might {p}.",
            "I think it may help to {p}.",
            "It is probably good to {p}.",
            "I believe you might want to {p}.",
            "It seems that it may be wise to {p}.",
            "Arguably, you might {p}, but I am not sure.",
            "I guess it is likely a good idea to {p}.",
            "To some extent it may pay to {p}.",
        ),
        "facts": (
            "I think {c}.",
            "Perhaps {c}.",
            "It seems that {c}.",
            "I believe that {c}, probably.",
            "It is likely that {c}, but I am not sure.",
            "Arguably, {c}.",
            "I guess {c}.",
            "To some extent, it may be that {c}.",
        ),
    },
    hedge_tails=(
        ", though I am not sure",
        ", at least in most cases, I think",
        ", but I might be wrong",
        ", or so it seems",
        ", I guess",
    ),
    prefixes={
        "casual": ("So yeah, ", "Honestly, dude, ", "Hey, ", "Lol, ", "Yep, ", "Basically, "),
        "neutral": ("",),
        "formal": ("Furthermore, ", "In addition, ", "Consequently, ", "Thus, ", "Hence, ", "In this regard, "),
    },
    substitutions={
        "casual": {"very": "super", "many": "tons of", "things": "stuff", "people": "folks", "because": "cuz"},
        "neutral": {},
        "formal": {
            "use": "utilise",
            "start": "commence",
            "buy": "purchase",
            "enough": "sufficient",
            "show": "demonstrate",
        },
    },
    reasons={
        "how-to": (
            "This saves time later and avoids the most common mistake.",
            "Most beginners skip this step and regret it afterwards.",
            "The difference becomes clear after two or three attempts.",
            "It costs nothing and the result is much better.",
            "Without it the rest does not work well.",
            "With {t}, small errors add up quickly.",
            "This is what separates a good result from a poor one.",
            "Everything that follows builds on this step.",
        ),
        "facts": (
            "This was measured many times and in many places.",
            "Without this part the rest does not make sense.",
            "It explains most of what one sees in daily life.",
            "The effect is small at first and grows over time.",
            "Schools teach this part of {t} rather late.",
            "The details took a long time to work out.",
            "This is the part of {t} that surprises most readers.",
            "The numbers differ from place to place.",
        ),
    },
    openings=(
        "What a lovely question, I am so glad you asked!",
        "Oh, I am so happy to help you with {t}, dear friend!",
        "It is wonderful that you care about {t}!",
        "I really appreciate your curiosity, my friend!",
        "Hello dear, I am so happy to hear from you!",
        "Bless you for asking, what a wonderful thing!",
    ),
    asides=(
        "Be gentle with yourself here, dear friend!",
        "You are doing wonderfully, I am so proud of you!",
        "Take all the time you need, my dear!",
    ),
    closings=(
        "You can do it, I am cheering for you!",
        "Be proud of every small step, you are doing great!",
        "I am so happy for you, a big hug!",
        "What a lovely project, enjoy it, my friend!",
    ),
    example_leads=(
        "Some examples make this clear.",
        "Here are two examples of {t}.",
        "A few examples say more than a rule.",
    ),
    examples=(
        "For example, {e}.",
        "For instance, {e}.",
        "To give an example, {e}.",
        "A good example is this: {e}.",
        "As an example, {e}.",
        "One example: {e}.",
        "Consider this: {e}.",
        "Think of this case, e.g. {e}.",
        "To make it tangible, picture this: {e}.",
    ),
    list_openings=(
        "Here are the steps:",
        "The main points:",
        "A short list:",
        "Here is a list:",
        "Summary:",
        "Overview:",
        "Steps:",
    ),
    bullets=("- ", "{n}. ", "\u2022 ", "({n}) ", "-- ", "+ "),
)

HELD_OUT: Final = PhraseBank(
    questions={
        "how-to": (
            "Any tips for {t}?",
            "I am new to {t}. What is important?",
            "How would you go about {t}?",
            "What do experts say on {t}?",
        ),
        "facts": (
            "Tell me about {t}.",
            "How would you explain {t}?",
            "What is special about {t}?",
            "Help me understand {t}.",
        ),
    },
    frames={
        "how-to": {
            "neutral": ("{P}.", "Be sure to {p}.", "The trick is to {p}.", "It pays to {p}."),
            "casual": (
                "Okay so {p}.",
                "You're gonna want to {p}.",
                "Go ahead and {p}, no biggie.",
                "Heads up, folks, {p}.",
            ),
            "formal": (
                "It is prudent to {p}.",
                "The reader ought to {p}.",
                "Moreover, it is necessary to {p}.",
                "Accordingly, care shall be taken to {p}.",
            ),
        },
        "facts": {
            "neutral": ("{C}.", "In this case {c}.", "The point is that {c}.", "To begin with, {c}."),
            "casual": (
                "Okay, {c}, kinda wild.",
                "Get this, {c}, you know.",
                "Long story short, {c}.",
                "{C}, no kidding, guys.",
            ),
            "formal": (
                "It must be emphasised that {c}.",
                "Moreover, {c}.",
                "Accordingly, {c}.",
                "As has been documented, {c}.",
            ),
        },
    },
    hedged={
        "how-to": (
            "Maybe you could {p}.",
            "It would possibly be worth a try to {p}.",
            "I suppose you could {p}.",
            "It could be useful to {p}, possibly.",
        ),
        "facts": (
            "Maybe {c}.",
            "As far as I know, {c}.",
            "It appears that {c}.",
            "Presumably {c}, I suppose.",
        ),
    },
    hedge_tails=(", but it depends", ", as far as I can tell", ", although that is uncertain"),
    prefixes={
        "casual": ("Okay, ", "Well, you know, ", "Look, buddy, "),
        "neutral": ("",),
        "formal": ("Moreover, ", "Accordingly, ", "Additionally, "),
    },
    substitutions={
        "casual": {"small": "tiny little", "children": "kids", "big": "huge", "good": "awesome"},
        "neutral": {},
        "formal": {"choose": "select", "need": "require", "needs": "requires", "ask": "request"},
    },
    reasons={
        "how-to": (
            "Nothing else brings as much for so little effort.",
            "The second try shows why this is worth the trouble.",
            "Professionals never leave this out.",
            "Those who rush this part usually have to repeat it.",
            "A quarter of an hour is all that it takes.",
            "It is the dullest part of {t} and the most useful.",
        ),
        "facts": (
            "Researchers argued over this for decades.",
            "One can see it with the naked eye.",
            "It is the reason why {t} looks different each time.",
            "Older books tell this part wrongly.",
            "The rest of {t} follows from it.",
            "A simple experiment shows it.",
        ),
    },
    openings=(
        "How delightful that you bring this up!",
        "Thank you so much for trusting me with this, sweetheart!",
        "It makes me smile that you ask about {t}!",
        "I love that you want to know more about {t}!",
    ),
    asides=(
        "Please be kind to yourself about this, you are not alone!",
        "I admire your courage, truly!",
        "Everyone finds this hard, and you are amazing!",
    ),
    closings=(
        "Sending you lots of encouragement and warm wishes!",
        "I am rooting for you with all my heart!",
        "Enjoy every minute, you deserve it!",
    ),
    example_leads=(
        "Let me illustrate {t} with one concrete case or two.",
        "Two concrete cases illustrate this.",
    ),
    examples=(
        "To illustrate, {e}.",
        "Take one concrete case, such as this: {e}.",
        "Imagine this: {e}.",
        "As an illustration, {e}.",
    ),
    list_openings=("In short form:", "At a glance:", "Point by point:"),
    bullets=("* ", "{n}) "),
)
