"""`metareward train`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from service.datasets.embedded import EmbeddedDataset


class Recipe(StrEnum):
    """How heads and start are learned."""

    EB = "eb"


class Texts(StrEnum):
    """What kind of texts unseen users will be judged on."""

    AUTO = "auto"
    KNOWN = "known"
    NEW = "new"


DataDirectory = Annotated[Path, typer.Option(help="Embedded data set, as `metareward embed` writes it.")]
SplitName = Annotated[str, typer.Option(help="Split of the data set; needed only where there are several.")]


def train(
    data: DataDirectory,
    output: Annotated[Path, typer.Option(help="Checkpoint directory to write.")],
    split: SplitName = "",
    heads: Annotated[int, typer.Option(min=1, help="K: base rewards per text, and weights per user.")] = 8,
    recipe: Annotated[Recipe, typer.Option(help="`eb`: empirical Bayes, a Gaussian prior over users.")] = Recipe.EB,
    seed: Annotated[int, typer.Option(min=0, help="Decides the validation folds; nothing else is random.")] = 0,
    texts: Annotated[
        Texts,
        typer.Option(
            help="Choose for users who rank `known` texts or `new` ones; `auto`: new, "
            "if over a tenth of the texts have no training pair."
        ),
    ] = Texts.AUTO,
    name: Annotated[str, typer.Option(help="Name of the checkpoint, shown to clients.")] = "",
) -> None:
    """Learn base reward heads and a start for users from the seen users of a data set.

    Everything is chosen on held-out seen users; pairs of unseen users are never read. Finished steps are kept in
    OUTPUT/fit, so that a killed run goes on where it was; OUTPUT/training.json lists all candidates.

    Example: metareward train --data runs/jokes --output runs/jokes-eb --heads 8 --seed 0
    """
    from rich.console import Console

    from service.cli.progress import progress
    from service.datasets.embedded import EmbeddedDataset
    from service.datasets.manifest import write_json
    from service.training.empirical_bayes import STEPS, train_empirical_bayes

    dataset = EmbeddedDataset.open(data)
    split = split_or_only(dataset, split)
    new_texts = None if texts is Texts.AUTO else texts is Texts.NEW
    with progress(f"training on {split}", STEPS) as on_step:
        checkpoint, report = train_empirical_bayes(
            dataset,
            split,
            heads=heads,
            seed=seed,
            new_texts=new_texts,
            name=name or None,
            cache=output / "fit",
            on_step=on_step,
        )
    checkpoint.save(output)
    write_json(output / "training.json", report)
    console = Console()
    console.print(_summary_table(checkpoint.name, report))
    console.print(f"checkpoint {checkpoint.checkpoint_id} in {output}; all candidates in {output / 'training.json'}")


def split_or_only(dataset: EmbeddedDataset, split: str) -> str:
    """The named split, or the only one.

    Raises:
        InvalidInput: Several splits and none named; the message lists them.
    """
    from service.errors import InvalidInput

    if split:
        return split
    if len(dataset.split_names) == 1:
        return dataset.split_names[0]
    raise InvalidInput.single("--split", f"choose one of {', '.join(dataset.split_names)}")


def _summary_table(name: str, report: dict[str, Any]) -> Any:
    from rich.table import Table

    summary = report["summary"]
    gain = summary["validation_loss_of_population"] - summary["validation_loss"]
    table = Table(
        title=f"{name}: {summary['method']}, split {report['split']}", title_justify="left", show_header=False
    )
    rows = {
        "seen users / pairs / texts": f"{summary['users']} / {summary['pairs']} / {summary['texts']}",
        "heads": str(summary["heads"]),
        "features": f"{summary['components']} components, power {summary['power']}",
        "mean": f"ridge {summary['ridge']}, {summary['weighting']} count the same",
        "prior": f"tau {summary['tau']}" if summary["personalises"] else "none: it did not beat the population model",
        "temperature": f"{report['start']['temperature']:.3f}",
        "judged on": "new texts" if summary["new_texts"] else "known texts",
        "held-out loss, one taste": f"{summary['validation_loss_of_population']:.4f}",
        "held-out loss, 5-20 pairs": f"{summary['validation_loss']:.4f} "
        f"(gain {gain:.4f} +- {summary['standard_error']:.4f})",
        "time": f"{report['seconds']:.1f} s",
    }
    for label, value in rows.items():
        table.add_row(label, value)
    return table
