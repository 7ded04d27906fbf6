"""`metareward checkpoint show|verify|link|import|export-hf`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from service.settings import DEMO_CHECKPOINT

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from service.checkpoints import BackboneIdentity, Checkpoint, Golden

app = typer.Typer(
    help="Look at a checkpoint, prove that it is whole, import a published one, or export it for other engines.",
    no_args_is_help=True,
)

Directory = Annotated[Path, typer.Argument(help="Checkpoint directory; without one, the demo checkpoint.")]


@app.command(epilog="Example: metareward checkpoint show runs/mine")
def show(directory: Directory = DEMO_CHECKPOINT) -> None:
    """Print what a checkpoint is and how it was made."""
    import numpy as np
    from rich.console import Console
    from rich.table import Table

    from service.checkpoints import load_checkpoint
    from service.mrm import Support, solve

    checkpoint = load_checkpoint(directory)
    table = Table(show_header=False, title=f"checkpoint {checkpoint.name}", title_justify="left")
    start = solve(Support.empty(checkpoint.heads), checkpoint.start)
    rows = {
        "checkpoint_id": checkpoint.checkpoint_id,
        "heads_id": checkpoint.heads_id[:16],
        "recipe": checkpoint.recipe,
        "K x D": f"{checkpoint.heads} x {checkpoint.backbone.hidden_size}",
        "backbone": checkpoint.backbone.id,
        "start": np.array2string(start.weights_K, precision=3, max_line_width=100),
        **{f"map from {each.name}": f"fidelity {each.fidelity.mean:.3f}" for each in checkpoint.maps},
        **{name: str(value) for name, value in checkpoint.training.items()},
    }
    for name, value in rows.items():
        table.add_row(name, value)
    Console().print(table)


@app.command(epilog="Example: metareward checkpoint verify runs/mine --engine")
def verify(
    directory: Directory = DEMO_CHECKPOINT,
    engine: Annotated[
        bool, typer.Option("--engine", help="Also load its backbone and score the golden texts against the records.")
    ] = False,
    backbone: Annotated[str, typer.Option(help="Backbone to load, where it lies elsewhere than in training.")] = "",
) -> None:
    """Read a checkpoint strictly: digests, shapes, numbers; with --engine its rewards too."""
    from service.checkpoints import load_checkpoint

    checkpoint = load_checkpoint(directory)
    typer.echo(f"{directory}: whole; checkpoint_id {checkpoint.checkpoint_id}, K = {checkpoint.heads}")
    if engine:
        from service.backbone.load import load_backbone
        from service.runtime.engine import start_worker

        loaded = load_backbone(backbone or checkpoint.backbone.id)
        worker, result = start_worker(checkpoint, loaded, max_batch_tokens=8192, max_queue_tokens=65_536)
        worker.stop(drain=True, timeout_s=10.0)
        typer.echo(f"engine: {result}")


@app.command(epilog="Example: metareward checkpoint link runs/summer --from runs/spring --data runs/embedded")
def link(
    directory: Annotated[Path, typer.Argument(metavar="NEW", help="Checkpoint directory; maps are written into it.")],
    old: Annotated[Path, typer.Option("--from", help="Directory of the checkpoint whose users are to be carried.")],
    data: Annotated[Path, typer.Option(help="Embedded data set of their backbone, as `metareward embed` writes it.")],
    seed: Annotated[int, typer.Option(min=0, help="Decides which differences are held out.")] = 0,
) -> None:
    """Compute how users of another checkpoint are carried to this one, and how much of their rewards survives.

    Both checkpoints keep their ids. A map from the same heads is replaced; maps from others stay.
    """
    from service.checkpoints import load_checkpoint

    linked = link_checkpoint(load_checkpoint(directory), old, data, seed)
    linked.save(directory)
    typer.echo(f"{directory}: linked; checkpoint_id {linked.checkpoint_id} as before")


def link_checkpoint(checkpoint: Checkpoint, old: Path, data: Path, seed: int = 0) -> Checkpoint:
    """The checkpoint with a map from the one in `old`, which is told of on stdout.

    Raises:
        ConfigurationError: The checkpoints and the data set do not fit.
    """
    import dataclasses

    from service.checkpoints import load_checkpoint
    from service.datasets.embedded import EmbeddedDataset
    from service.training.link import link as link_to

    made = link_to(checkpoint, load_checkpoint(old), EmbeddedDataset.open(data), seed=seed)
    typer.echo(
        f"{made.name} -> {checkpoint.name}: rewards survive with correlation {made.fidelity.mean:.3f} "
        f"(5 % of users below {made.fidelity.low:.3f}); mapped differences agree with measured ones to "
        f"{made.differences_fidelity:.3f}; fitted to {made.differences} differences, measured on {made.held_out} others"
    )
    others = tuple(each for each in checkpoint.maps if each.heads_id != made.heads_id)
    return dataclasses.replace(checkpoint, maps=(*others, made))


@app.command(
    "import",
    epilog="Example: metareward checkpoint import epoch_200.pt --backbone runs/prism --output runs/published",
)
def import_published(
    file: Annotated[Path, typer.Argument(help="State dictionary that the published MRM training code saved.")],
    backbone: Annotated[
        str,
        typer.Option(
            help="The backbone that the heads were trained on: an embedded data set's folder, or a name to load "
            "(`minilm`, a hub id, a path). The file does not tell: only its hidden size is checked."
        ),
    ],
    output: Annotated[Path, typer.Option(help="Checkpoint directory to write.")],
    inner_lr: Annotated[float, typer.Option(help="Adam's rate for new users; published: 0.001 for PRISM.")] = 1e-3,
    inner_steps: Annotated[int, typer.Option(min=0, help="Adam steps for new users.")] = 1,
    name: Annotated[str, typer.Option(help="Name of the checkpoint; left out, the output folder's.")] = "",
    force: Annotated[bool, typer.Option("--force", help="Overwrite the checkpoint in OUTPUT.")] = False,
) -> None:
    """Turn a published MRM state dictionary (.pt) into a checkpoint; no code in the file is run.

    The file holds layers.N.weight, out x in, N from 0, layers.N.bias where there are biases, and shared_weight, the K
    logits that all users start from. Layers, biases and the published scale of hidden states (0.01) are folded into
    heads and biases. Tensors that do not fit are refused by name.
    """
    import math

    from service.checkpoints import Checkpoint
    from service.checkpoints.checkpoint import MANIFEST_FILE
    from service.checkpoints.state_dict import PUBLISHED_SCALE, read_published
    from service.cli.train import check_output, name_or_folder
    from service.errors import CheckpointError, ConfigurationError, InvalidInput
    from service.mrm import SoftmaxStart

    if not (math.isfinite(inner_lr) and inner_lr > 0):
        raise InvalidInput.single("--inner-lr", f"must be a number above 0, got {inner_lr}")
    name = name_or_folder(name, output)
    check_output(output)
    if (output / MANIFEST_FILE).exists() and not force:
        raise ConfigurationError(f"--output {output} holds a checkpoint: choose another, or give --force to replace it")
    heads = read_published(file)
    identity, golden_GD, golden_id, dtype = _backbone_of(backbone)
    if heads.A_KD.shape[1] != identity.hidden_size:
        raise CheckpointError(
            f"{file}: layers.0.weight takes hidden states of {heads.A_KD.shape[1]} numbers, those of {identity.id} "
            f"have {identity.hidden_size}: give the --backbone that the heads were trained on"
        )
    checkpoint = Checkpoint(
        name=name,
        backbone=identity,
        A_KD=heads.A_KD,
        b_K=heads.b_K,
        start=SoftmaxStart(heads.logits_K, inner_lr, inner_steps),
        golden=_golden(heads.A_KD, heads.b_K, golden_GD, golden_id, dtype),
        training={"method": "mrm", "imported": file.name, "layers": heads.layers, "scale": PUBLISHED_SCALE},
    )
    checkpoint.save(output)
    typer.echo(
        f"checkpoint {checkpoint.checkpoint_id} in {output}: K = {checkpoint.heads} heads from {heads.layers} layer(s)"
    )


@app.command(
    "export-hf", epilog="Example: metareward checkpoint export-hf runs/skywork runs/skywork-hf --dtype bfloat16"
)
def export_to_hugging_face(
    directory: Annotated[Path, typer.Argument(metavar="CHECKPOINT", help="Checkpoint directory.")],
    output: Annotated[Path, typer.Argument(metavar="OUT", help="Directory to write; must not exist, or be empty.")],
    backbone: Annotated[
        str, typer.Option(help="The checkpoint's backbone, where it lies elsewhere than in training.")
    ] = "",
    dtype: Annotated[
        str, typer.Option(help="What to store the backbone in: float32, bfloat16, or auto: what it is stored in now.")
    ] = "auto",
) -> None:
    """Write a checkpoint as a Hugging Face sequence classifier with K labels, for vLLM or plain transformers.

    The labels are base rewards without biases; the REST layer adds those. Takes a Hugging Face id, a directory of
    safetensors or a .gguf file as backbone; not minilm, which is no causal decoder.
    """
    from service.checkpoints import load_checkpoint
    from service.errors import InvalidInput
    from service.training.export_hf import EXPORT_DTYPES, export_hf

    if dtype not in EXPORT_DTYPES:
        raise InvalidInput.single("--dtype", f"must be one of {', '.join(EXPORT_DTYPES)}")
    export = export_hf(load_checkpoint(directory), output, backbone=backbone, dtype=dtype)
    pad = "an id without a token" if export.pad.text is None else export.pad.text
    told = f"DTYPE={export.dtype} " if export.dtype in EXPORT_DTYPES else ""  # float16 is not ours: bfloat16 is assumed
    typer.echo(
        f"{output}: {export.architecture} with K = {export.heads} labels, {export.dtype}, {export.bytes / 1e9:.2f} GB "
        f"in {export.files} file(s); pad token {pad} ({export.pad.id})\n"
        f"heads_id {export.heads_id}\n\n"
        "Serve it with vLLM, on a private network (--api-key does not guard /classify):\n\n"
        f"  {export.serve_command}\n\n"
        "and give that to the REST layer:\n\n"
        f"  ENGINE_URL=http://127.0.0.1:8100 {told}metareward serve --checkpoint {directory}"
    )


def _backbone_of(name: str) -> tuple[BackboneIdentity, npt.NDArray[np.float32], str, str]:
    """Identity, golden texts' hidden states, their id and the dtype that they were computed in."""
    import numpy as np

    from service.backbone.golden import golden_texts_id, golden_token_ids
    from service.backbone.load import load_backbone
    from service.checkpoints import BackboneIdentity
    from service.datasets.embedded import EmbeddedDataset
    from service.datasets.manifest import MANIFEST_NAME

    if (Path(name) / MANIFEST_NAME).exists():
        dataset = EmbeddedDataset.open(name)
        info = dataset.backbone
        golden_GD, golden_id = dataset.golden_GD, dataset.manifest.input.golden_texts_id
        dtype = str(info.spec.get("dtype", "float32"))
        identity = BackboneIdentity(
            id=info.id, fingerprint=info.fingerprint, template_id=info.template_id, hidden_size=info.hidden_size
        )
        return identity, golden_GD, golden_id, dtype
    loaded = load_backbone(name)
    spec = loaded.spec
    golden = [loaded.forward([tokens]).cpu().numpy()[0] for tokens in golden_token_ids(loaded.renderer)]
    identity = BackboneIdentity(
        id=spec.id, fingerprint=spec.fingerprint, template_id=spec.template_id, hidden_size=spec.hidden_size
    )
    return identity, np.stack(golden), golden_texts_id(), spec.dtype


def _golden(
    A_KD: npt.NDArray[np.float32],
    b_K: npt.NDArray[np.float32],
    golden_GD: npt.NDArray[np.float32],
    texts_id: str,
    dtype: str,
) -> Golden | None:
    from service.checkpoints import Golden

    if not len(golden_GD):
        return None
    base_rewards_GK = golden_GD.astype(float) @ A_KD.T.astype(float) + b_K
    return Golden.model_validate({"texts_id": texts_id, "dtype": dtype, "base_rewards": base_rewards_GK.tolist()})
