"""What is asked: everyday requests of twelve sorts, parted once and for all by what they are for.

Of every sort one prompt is for training a checkpoint, one for people's pairs and two for the test, so that the parts
are alike and no prompt is in two of them.
"""

from __future__ import annotations

from typing import Final

_SORTS: Final = {
    "how to": """How do I make a good omelette?
How can I fix a flat bicycle tyre?
How do I start a small vegetable garden?
How do I remove a red wine stain from a carpet?""",
    "explain": """Why is the sky blue?
What is inflation?
Why do we dream?
How do magnets work?""",
    "comfort": """I failed my driving test today. I feel terrible.
I had a fight with my sister and I regret it.
I did not get the promotion that I hoped for.
I am scared of flying and my flight is tomorrow.""",
    "fun": """Tell me a joke about cats.
Write a short comic dialogue between two clouds.
Write a joke that a grandfather would tell.
Give me a funny toast for a wedding.""",
    "health": """How can I sleep better?
How can I lower my stress at work?
How do I protect my skin from the sun?
How can I eat less sugar?""",
    "money": """How do I make a monthly budget?
Should I lend money to a friend?
How do I ask for a raise?
What is a stock?""",
    "choose": """Should I get a cat or a dog?
Is tea better than coffee?
Which language should I learn, Spanish or Japanese?
Should I study in the morning or in the evening?""",
    "write": """Write a short thank-you note to a teacher.
Write a few lines that introduce me to new neighbours.
Write a product description for a wooden chair.
Write a message that cancels a dinner politely.""",
    "plan": """Plan a weekend in Rome.
Make a plan for moving to a new flat.
Make a training plan for my first five kilometres.
Plan a morning routine for a busy parent.""",
    "technology": """What is the cloud in computing?
Why does my phone battery drain so fast?
How does GPS know where I am?
What is the difference between memory and storage?""",
    "learn": """Who was Marie Curie?
What is the water cycle?
What was the Silk Road?
How do bees make honey?""",
    "people": """How do I make friends in a new city?
How can I be more patient with my children?
How do I apologise well?
How can I become a better listener?""",
}

_TRAINING, _SUPPORT = 1, 1


def _parted() -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    sorts = [prompts.splitlines() for prompts in _SORTS.values()]

    def part(first: int, last: int) -> tuple[str, ...]:
        # one of every sort in turn, so that the first few prompts are of many sorts
        return tuple(sort[place] for place in range(first, last) for sort in sorts)

    return part(0, _TRAINING), part(_TRAINING, _TRAINING + _SUPPORT), part(_TRAINING + _SUPPORT, len(sorts[0]))


TRAINING_PROMPTS, SUPPORT_PROMPTS, TEST_PROMPTS = _parted()
"""12 for training a checkpoint, 12 for people's pairs, 24 for the test."""
