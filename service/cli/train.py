"""`metareward train`."""

from __future__ import annotations

import re
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from service.cli import train_mrm as mrm
from service.cli.progress import resumable

if TYPE_CHECKING:
    from service.datasets.embedded import EmbeddedDataset


class Recipe(StrEnum):
    """How heads and start are learned."""

    EB = "eb"
    MRM = "mrm"


class Texts(StrEnum):
    """What kind of texts unseen users will be judged on."""

    AUTO = "auto"
    KNOWN = "known"
    NEW = "new"


DataDirectory = Annotated[Path, typer.Option(help="Embedded data set, as `metareward embed` writes it.")]
SplitName = Annotated[str, typer.Option(help="Split of the data set; needed only where there are several.")]


@resumable()
def train(
    data: DataDirectory,
    output: Annotated[Path, typer.Option(help="Checkpoint directory to write.")],
    split: SplitName = "",
    heads: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="K: base rewards per text, and weights per user. Default: 32, or as many as the texts allow; "
            "of recipe mrm 2.",
        ),
    ] = None,
    recipe: Annotated[
        Recipe,
        typer.Option(
            help="`eb`: empirical Bayes, a Gaussian prior over users. `mrm`: Meta Reward Modeling as published "
            "(arXiv 2601.18731), its settings for PRISM unless others are given."
        ),
    ] = Recipe.EB,
    seed: Annotated[
        int,
        typer.Option(
            min=0, help="Decides who is held out for validation, and what recipe mrm draws; nothing else is random."
        ),
    ] = 0,
    texts: Annotated[
        Texts,
        typer.Option(
            help="Choose for users who rank `known` texts or `new` ones; `auto`: new, "
            "if over a tenth of the texts have no training pair."
        ),
    ] = Texts.AUTO,
    name: Annotated[
        str, typer.Option(help="Name of the checkpoint, shown to clients; left out, the output folder's.")
    ] = "",
    force: Annotated[
        bool, typer.Option("--force", help="Overwrite a checkpoint of other data or options in OUTPUT.")
    ] = False,
    link_from: Annotated[
        Path | None,
        typer.Option(help="Checkpoint whose users are to be carried to this one: links it, as `checkpoint link` does."),
    ] = None,
    inner_lr: mrm.InnerLr = None,
    inner_steps: mrm.InnerSteps = None,
    adapt_steps: mrm.AdaptSteps = None,
    meta_lr: mrm.MetaLr = None,
    epochs: mrm.Epochs = None,
    users_per_batch: mrm.UsersPerBatch = None,
    query_share: mrm.QueryShare = None,
    tail: mrm.Tail = None,
    gamma: mrm.Gamma = None,
    rpo: mrm.Rpo = None,
    bias: mrm.Bias = None,
    mode: mrm.ModeOption = None,
    protocol: mrm.ProtocolOption = None,
    held_out: mrm.HeldOut = None,
    patience: mrm.Patience = None,
    save_every: mrm.SaveEvery = None,
    memory_mb: mrm.MemoryMb = None,
    device: mrm.DeviceOption = None,
) -> None:
    """Learn base reward heads and a start for users from the seen users of a data set.

    Everything is chosen on held-out seen users; pairs of unseen users are never read. Finished steps are kept in
    OUTPUT/fit, so that a killed run goes on where it was; OUTPUT/training.json lists all candidates, or all epochs;
    OUTPUT/MODEL_CARD.md tells others what the checkpoint is, how well it does, and what it is not for. A finished
    checkpoint of other data or other options in OUTPUT is not overwritten without --force.

    Example: metareward train --data runs/jokes --output runs/jokes-eb --heads 8 --seed 0, or the paper's recipe:
    metareward train --data runs/prism --output runs/prism-mrm --recipe mrm
    """
    from service.datasets.embedded import EmbeddedDataset

    published = {
        "inner_lr": inner_lr,
        "inner_steps": inner_steps,
        "adapt_steps": adapt_steps,
        "meta_lr": meta_lr,
        "epochs": epochs,
        "users_per_batch": users_per_batch,
        "query_share": query_share,
        "tail": tail,
        "gamma": gamma,
        "rpo": rpo,
        "bias": bias,
        "mode": mode,
        "protocol": protocol,
        "held_out": held_out,
        "patience": patience,
        "save_every": save_every,
        "memory_mb": memory_mb,
        "device": device,
    }
    name = name_or_folder(name, output)
    check_output(output)
    if recipe is Recipe.MRM:
        if texts is not Texts.AUTO:
            mrm.refuse({"texts": texts}, "mrm")
        config = mrm.config(published, heads, seed)
        dataset = EmbeddedDataset.open(data)
        split = split_or_only(dataset, split)
        if not force:
            refuse_another_fit(output, {**_identity(dataset, split, name, recipe), **config.identity()})
        mrm.train(dataset, split, output, name, config)
    else:
        mrm.refuse(published, "eb")
        dataset = EmbeddedDataset.open(data)
        _train_empirical_bayes(dataset, split_or_only(dataset, split), output, name, heads, seed, texts, force)
    if link_from is not None:
        from service.checkpoints import load_checkpoint
        from service.cli.checkpoint import link_checkpoint

        link_checkpoint(load_checkpoint(output), link_from, data).save(output)


def _train_empirical_bayes(
    dataset: EmbeddedDataset,
    split: str,
    output: Path,
    name: str,
    heads: int | None,
    seed: int,
    texts: Texts,
    force: bool,
) -> None:
    from rich.console import Console

    from service.cli.model_card import write_trained
    from service.cli.progress import progress
    from service.datasets.manifest import write_json
    from service.training.empirical_bayes import STEPS, train_empirical_bayes
    from service.training.seen import is_cold

    new_texts = is_cold(dataset, split) if texts is Texts.AUTO else texts is Texts.NEW
    if not force:
        chosen = {"seed": seed, "new_texts": new_texts, **({} if heads is None else {"heads": heads})}
        refuse_another_fit(output, {**_identity(dataset, split, name, Recipe.EB), **chosen})
    with progress(f"training on {split}", STEPS) as on_step:
        checkpoint, report = train_empirical_bayes(
            dataset,
            split,
            heads=heads,
            seed=seed,
            new_texts=new_texts,
            name=name,
            cache=output / "fit",
            on_step=on_step,
        )
    checkpoint.save(output)
    write_json(output / "training.json", {**report, "input": dataset.manifest.input.model_dump()})
    card = write_trained(dataset, checkpoint, report, output)
    Console().print(_summary_table(checkpoint.name, report))
    typer.echo(f"checkpoint {checkpoint.checkpoint_id} in {output}; all candidates in {output / 'training.json'}")
    typer.echo(f"model card in {card}")
    if not report["summary"]["personalises"]:
        typer.secho(
            "warning: this checkpoint does not personalise: on held-out seen users, personalisation did not beat one "
            "taste for all by more than a standard error, so every user gets the same scores, whatever they choose. "
            f"Give more seen users (now {report['summary']['users']}) or more pairs per user (now "
            f"{report['summary']['pairs'] / report['summary']['users']:.0f} on average) and train again.",
            fg=typer.colors.YELLOW,
            err=True,
        )


def _identity(dataset: EmbeddedDataset, split: str, name: str, recipe: Recipe) -> dict[str, Any]:
    return {
        "name": name,
        "backbone": dataset.backbone.fingerprint,
        "data": dataset.manifest.source.name,
        "contents of the data": dataset.manifest.input.model_dump(),
        "split": split,
        "method": recipe.value,
    }


def name_or_folder(name: str, output: Path) -> str:
    """The given name, or the output folder's with what names may not hold replaced by `-`.

    Raises:
        ConfigurationError: The given name is impossible.
    """
    from service.errors import ConfigurationError

    possible = re.sub(r"[^A-Za-z0-9._-]+", "-", name or output.resolve().name).strip("._-")[:64] or "checkpoint"
    if name and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", name):
        raise ConfigurationError(
            f"--name must be letters, digits, '.', '_' and '-', at most 64, the first a letter or digit: try {possible}"
        )
    return name or possible


def check_output(output: Path) -> None:
    """Refuse a folder that cannot be written, or that is a data set's.

    Raises:
        ConfigurationError: Names the flag.
    """
    from service.cli.places import check_folder
    from service.datasets.manifest import MANIFEST_NAME
    from service.datasets.writer import PLAN_NAME
    from service.errors import ConfigurationError

    check_folder("--output", output)
    if any((output / name).exists() for name in (MANIFEST_NAME, PLAN_NAME)):
        raise ConfigurationError(f"--output {output} is a data set's folder: give the checkpoint one of its own")


def refuse_another_fit(output: Path, wanted: dict[str, Any]) -> None:
    """Refuse to overwrite a finished checkpoint that was trained otherwise; the same fit may run again.

    Args:
        output: The checkpoint's folder, which may hold nothing yet.
        wanted: What the checkpoint is to be.

    Raises:
        ConfigurationError: What is there differs, or cannot be read.
    """
    import json

    from service.checkpoints import read_manifest
    from service.checkpoints.checkpoint import MANIFEST_FILE
    from service.errors import CheckpointError, ConfigurationError

    if not (output / MANIFEST_FILE).exists():
        return
    choices = "choose another --output, or give --force to overwrite it"
    try:
        manifest = read_manifest(output)
    except CheckpointError as error:
        raise ConfigurationError(f"--output {output} holds a checkpoint that cannot be read: {choices}") from error
    found = {**manifest.training, "name": manifest.name, "backbone": manifest.backbone.fingerprint}
    try:
        found["contents of the data"] = json.loads((output / "training.json").read_bytes())["input"]
    except (OSError, ValueError, KeyError, TypeError):  # only the manifest is sure to be there
        found["contents of the data"] = wanted["contents of the data"]
    differing = [what for what in wanted if found.get(what) != wanted[what]]
    if differing:
        raise ConfigurationError(
            f"--output {output} holds the finished checkpoint {manifest.name} of another fit "
            f"(other {', '.join(what.replace('_', ' ') for what in differing)}): {choices}"
        )


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
    names = dataset.split_names
    told = any(name.startswith(("warm", "cold")) for name in names)
    forms = "warm: unseen users judge texts that seen users were asked about; cold: texts that nobody was asked about"
    forms = f" ({forms})" if told else ""
    raise InvalidInput.single(
        "--split",
        f"the data set has {len(names)} splits: choose one of {', '.join(names)}, such as --split {names[0]}{forms}",
    )


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
        f"(gain {gain:.4f} ± {summary['standard_error']:.4f})",
        "time": f"{report['seconds']:.1f} s",
    }
    for label, value in rows.items():
        table.add_row(label, value)
    return table
