"""`metareward simulate`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from service.datasets.simulated_drift import Drift

if TYPE_CHECKING:
    from service.datasets.simulated import SimulatedPeople

_PEOPLE: Final = "The people"
_SIZE: Final = "How much of everything"
_NOISE: Final = "How they answer"


def simulate(
    output: Annotated[Path, typer.Option(help="The jsonl file of choices; who the people are goes beside it.")],
    users: Annotated[int, typer.Option(min=2, help="People, seen and unseen.", rich_help_panel=_SIZE)] = 400,
    unseen_share: Annotated[
        float, typer.Option(help="Share of the people that are unseen.", rich_help_panel=_SIZE)
    ] = 0.25,
    pairs: Annotated[int, typer.Option(min=1, help="Training pairs of a seen person.", rich_help_panel=_SIZE)] = 40,
    support_pairs: Annotated[
        int, typer.Option(min=1, help="Support pairs of an unseen person.", rich_help_panel=_SIZE)
    ] = 50,
    query_pairs: Annotated[
        int, typer.Option(min=1, help="Query pairs of an unseen person.", rich_help_panel=_SIZE)
    ] = 50,
    prompts: Annotated[
        int, typer.Option(min=1, help="Prompts of the seen people; any number.", rich_help_panel=_SIZE)
    ] = 288,
    new_prompts: Annotated[
        int, typer.Option(min=2, help="Prompts of the unseen people, on other topics.", rich_help_panel=_SIZE)
    ] = 104,
    answers: Annotated[
        int, typer.Option(min=2, help="Different answers that exist of each prompt.", rich_help_panel=_SIZE)
    ] = 16,
    kinds: Annotated[
        bool,
        typer.Option(
            help="People come in kinds (brisk engineers, warm learners, ...), or from one Gaussian of the same mean "
            "and covariance.",
            rich_help_panel=_PEOPLE,
        ),
    ] = True,
    contrarians: Annotated[
        float, typer.Option(help="Probability that a person's taste is turned round.", rich_help_panel=_PEOPLE)
    ] = 0.05,
    decided_spread: Annotated[
        float,
        typer.Option(help="How much people differ in how sure their choices are; 0: not.", rich_help_panel=_PEOPLE),
    ] = 0.3,
    consistency: Annotated[
        float, typer.Option(help="Share of the choices that the true tastes predict.", rich_help_panel=_NOISE)
    ] = 0.85,
    lapse: Annotated[
        float, typer.Option(help="Share of answers at random, part of what is not consistent.", rich_help_panel=_NOISE)
    ] = 0.0,
    graded: Annotated[
        bool,
        typer.Option(
            "--graded",
            help="Give every choice a strength: the difference of two ratings on a scale of the person's own, of 10 "
            "or 100 points.",
            rich_help_panel=_NOISE,
        ),
    ] = False,
    drift: Annotated[
        Drift,
        typer.Option(
            help="Tastes of unseen people change over their support pairs, evenly or at a moment; query pairs follow "
            "the last taste.",
            rich_help_panel=_PEOPLE,
        ),
    ] = Drift.NONE,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same file on every machine.")] = 0,
) -> None:
    """Simulate people with known tastes of style who choose among answers.

    They judge length, lists, formality, hedging, warmth, examples, directness, humour, excitement, jargon, questions,
    caution, numbers and headings. Unseen people judge other topics in other words than seen people. OUTPUT gets one
    choice a line, as `metareward embed` reads it; OUTPUT with the ending .people.json gets the truth: everybody's taste
    and kind.

    Example: metareward simulate --users 400 --seed 0 --output people.jsonl
    """
    from service.cli.places import check_file
    from service.datasets import simulated
    from service.datasets.simulated_choices import Behaviour

    check_file("--output", output)
    people = simulated.simulate(
        seed,
        simulated.Sizes(
            users=users,
            unseen_share=unseen_share,
            pairs=pairs,
            support_pairs=support_pairs,
            query_pairs=query_pairs,
            prompts=prompts,
            new_prompts=new_prompts,
            answers=answers,
        ),
        Behaviour(
            kinds=kinds,
            contrarians=contrarians,
            consistency=consistency,
            decided_spread=decided_spread,
            lapse=lapse,
            graded=graded,
            drift=drift,
        ),
    )
    output.parent.mkdir(parents=True, exist_ok=True)
    people_file = output.with_suffix(".people.json")
    people.write(output, people_file)
    _tell(people, output, people_file)


def _tell(people: SimulatedPeople, output: Path, people_file: Path) -> None:
    from collections import Counter

    kinds = Counter(person.kind for person in people.people)
    named = ", ".join(f"{count} {name}" for name, count in kinds.most_common())
    contrarian = sum(person.contrarian for person in people.people)
    typer.echo(
        f"{output}: {len(people.pairs)} choices of {len(people.people)} people over {len(people.texts)} texts of "
        f"{len(people.prompts)} prompts\n"
        f"people: {named}; {contrarian} of them contrarian\n"
        f"the true taste predicts {100 * people.accuracy():.1f} % of the choices, the mean taste "
        f"{100 * people.accuracy(people.population_taste):.1f} %\n"
        f"{people_file}: the tastes\n"
        f"next: metareward embed --format jsonl --input {output} --backbone minilm --output {output.with_suffix('')}"
    )
