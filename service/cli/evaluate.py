"""`metareward evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from service.cli.train import DataDirectory, SplitName, split_or_only

if TYPE_CHECKING:
    from rich.table import Table

    from service.training.evaluation import Evaluation


def evaluate(
    checkpoint: Annotated[Path, typer.Option(help="Checkpoint directory.")],
    data: DataDirectory,
    split: SplitName = "",
    shots: Annotated[str, typer.Option(help="Numbers of support pairs.")] = "0,5,10,20,50",
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the numbers to this file.")] = None,
    plots: Annotated[Path | None, typer.Option(help="Write PNG plots to this directory.")] = None,
    baseline: Annotated[
        bool, typer.Option(help="Also tune a Bradley-Terry model of the same seen users, one taste for everybody.")
    ] = True,
) -> None:
    """Judge a checkpoint on the unseen users of a data set, after a few of their choices.

    Every user is adapted by the code that the server runs. The table shows mean accuracy, the worst-served users (the
    method's own), log-loss, and calibration error beside what a perfectly calibrated model would show at this sample
    size; --json keeps more, such as those whom the population model serves worst. The last line is the verdict.

    Example: metareward evaluate --checkpoint runs/jokes-eb --data runs/jokes --json runs/jokes-eb/evaluation.json
    """
    from rich.console import Console

    from service.checkpoints import load_checkpoint
    from service.cli.places import check_file, check_folder
    from service.cli.progress import progress
    from service.datasets.embedded import EmbeddedDataset
    from service.datasets.manifest import write_json
    from service.training.empirical_bayes import BASELINE_STEPS, fit_tuned_bradley_terry, is_cold, seen_data
    from service.training.evaluation import evaluate_checkpoint, unseen_users

    counts = _parse_shots(shots)
    if json_file is not None:
        check_file("--json", json_file)
    if plots is not None:
        check_folder("--plots", plots)
    trained, dataset = load_checkpoint(checkpoint), EmbeddedDataset.open(data)
    split = split_or_only(dataset, split)
    same_data = trained.training.get("data") == dataset.manifest.source.name
    taught = trained.training.get("split", split)
    if same_data and taught != split:
        typer.secho(
            f"warning: the checkpoint was trained on split {taught} of this data: users that are unseen in {split} may "
            "have taught it",
            fg=typer.colors.YELLOW,
            err=True,
        )
    tuned = None
    if baseline:
        seed = int(trained.training.get("seed", 0))
        at_home = same_data and taught == split and "new_texts" in trained.training
        new_texts = bool(trained.training["new_texts"]) if at_home else is_cold(dataset, split)
        kept = checkpoint / "fit"  # what `train` tuned on the same data, if it is still there
        with progress("tuning Bradley-Terry", BASELINE_STEPS) as on_step:
            tuned = fit_tuned_bradley_terry(
                seen_data(dataset, split), seed, new_texts, cache=kept if kept.is_dir() else None, on_step=on_step
            )
    with progress(f"adapting unseen users of {split}", len(unseen_users(dataset, split))) as on_user:
        result = evaluate_checkpoint(dataset, split, trained, counts, tuned, lambda: on_user(""))
    report = {
        "checkpoint_id": trained.checkpoint_id,
        "checkpoint": trained.name,
        "data": dataset.manifest.source.name,
        "split": split,
        **result.as_json(),
    }
    Console().print(_table(report, {measured.shots for measured in result.distinct()}))
    if len(result.distinct()) < len(result.by_shots):
        typer.echo(
            f"note: no unseen user has more than {result.support_U.max()} pairs: rows above are left out"
            + (f", {json_file} keeps them" if json_file else "")
        )
    if json_file is not None:
        json_file.parent.mkdir(parents=True, exist_ok=True)
        write_json(json_file, report)
        typer.echo(f"numbers in {json_file}")
    good, verdict = _verdict(result)
    typer.secho(verdict, fg=None if good else typer.colors.YELLOW)
    if plots is not None:
        from service.training.plots import write_plots

        subject = f"{trained.name} on {dataset.manifest.source.name}, split {split}"
        for path in write_plots(result, plots, subject):
            typer.echo(f"plot in {path}")


def _parse_shots(text: str) -> list[int]:
    from service.errors import InvalidInput

    try:
        counts = [int(part) for part in text.split(",")]
    except ValueError:
        raise InvalidInput.single("--shots", "give whole numbers with commas between, such as 0,5,20") from None
    if min(counts) < 0:
        raise InvalidInput.single("--shots", "numbers of pairs are 0 or more")
    return counts


def _verdict(result: Evaluation) -> tuple[bool, str]:
    """Whether adaptation did no harm at the most pairs, and one line about it."""
    last, population = result.by_shots[-1], result.population
    against = "tuned BT" if result.baseline else f"{population.shots} pairs"
    gain, error = result.gain()
    line = f"verdict: with {result.pairs_given(last.shots):.1f} pairs on average, accuracy gains {100 * gain:+.2f}"
    line += f" ± {100 * error:.2f}" if error is not None else ""
    line += f" points over {against}"
    line += f" (standard error over {len(result.user_U)} users)" if error is not None else " (one user, no error)"
    ours, theirs = float(last.loss_U.mean()), float(population.loss_U.mean())
    worse = [
        *(["accuracy"] if gain < 0 else []),
        *([f"log-loss ({ours:.4f} against {theirs:.4f})"] if ours > theirs else []),
    ]
    if worse:
        line += f"; adapted {' and '.join(worse)} WORSE than {against}"
    elif error is not None and gain <= error:
        line += "; no more than its standard error"
    return not worse, line


def _table(report: dict[str, Any], shown: set[int]) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(
        title=f"{report['checkpoint']} on {report['data']}, split {report['split']}: "
        f"{report['users']} unseen users, {report['query_pairs']} query pairs",
        title_justify="left",
        caption="accuracy in %, of all users and of each row's worst-served; ECE: calibration error, and that of a "
        "perfect model at this sample size",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        collapse_padding=True,
        pad_edge=False,
    )
    rows = [row for row in report["by_shots"] if row["shots"] in shown]
    if any(row["pairs_given"] < row["shots"] for row in rows):
        table.caption = f"{table.caption}; in brackets: pairs given on average, where some users have fewer"
    for heading in ("pairs", "accuracy", "gain", "10%", "20%", "50%", "log-loss", "ECE", "perfect"):
        table.add_column(f"worst\n{heading}" if "%" in heading else heading, justify="right", no_wrap=True)
    if report["baseline"]:
        table.add_row("tuned BT", *_cells(report["baseline"]), end_section=True)
    for row in rows:
        fewer = row["pairs_given"] < row["shots"]
        table.add_row(f"{row['shots']} ({row['pairs_given']:.1f})" if fewer else str(row["shots"]), *_cells(row))
    return table


def _cells(row: dict[str, Any]) -> list[str]:
    return [
        f"{100 * row['accuracy']:.2f}",
        f"{100 * row['gain']:+.2f}",
        *(f"{100 * row['worst_own'][share]:.1f}" for share in ("10%", "20%", "50%")),
        f"{row['log_loss']:.4f}",
        f"{row['calibration_error']:.4f}",
        f"{row['calibration_error_if_perfect']:.4f}",
    ]
