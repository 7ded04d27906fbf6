"""`metareward simulate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def simulate(
    output: Annotated[Path, typer.Option(help="The jsonl file of choices; who the people are goes beside it.")],
    users: Annotated[int, typer.Option(min=2, help="People, seen and unseen.")] = 400,
    unseen_share: Annotated[float, typer.Option(help="Share of the people that are unseen.")] = 0.25,
    pairs: Annotated[int, typer.Option(min=1, help="Training pairs of a seen person.")] = 40,
    support_pairs: Annotated[int, typer.Option(min=1, help="Support pairs of an unseen person.")] = 50,
    query_pairs: Annotated[int, typer.Option(min=1, help="Query pairs of an unseen person.")] = 50,
    answers: Annotated[int, typer.Option(min=2, help="Different answers that exist of each prompt.")] = 16,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same file on every machine.")] = 0,
) -> None:
    """Simulate people with known tastes (length, lists, formality, hedging, warmth, examples) choosing among answers.

    Unseen people judge other topics in other words than seen people. OUTPUT gets one choice a line, as
    `metareward embed` reads it; OUTPUT with the ending .people.json gets the tastes.

    Example: metareward simulate --users 400 --seed 0 --output people.jsonl
    """
    from service.cli.places import check_file
    from service.datasets import simulated

    check_file("--output", output)
    people = simulated.simulate(
        seed,
        users,
        pairs,
        unseen_share=unseen_share,
        support_pairs=support_pairs,
        query_pairs=query_pairs,
        answers_per_prompt=answers,
    )
    output.parent.mkdir(parents=True, exist_ok=True)
    people_file = output.with_suffix(".people.json")
    people.write(output, people_file)
    accuracy = people.as_json()["accuracy"]
    typer.echo(
        f"{output}: {len(people.pairs)} choices of {len(people.people)} people over {len(people.texts)} texts\n"
        f"{people_file}: their tastes. The true taste predicts {100 * accuracy['true_taste']:.1f} % of the choices, "
        f"the mean taste {100 * accuracy['population_taste']:.1f} %"
    )
