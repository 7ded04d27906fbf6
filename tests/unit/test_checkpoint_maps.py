"""Maps beside a checkpoint: what linking computes, and how strictly it is read."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import typer
from people import make_people
from typer.testing import CliRunner

from service.checkpoints import BackboneIdentity, Checkpoint, load_checkpoint, read_manifest
from service.cli.checkpoint import app as checkpoint_app
from service.datasets.embedded import EmbeddedDataset
from service.errors import CheckpointError, ConfigurationError
from service.mrm import GaussianStart, SoftmaxStart
from service.mrm.carry import linear_maps
from service.training.link import link

PEOPLE = make_people(seen=4, unseen=2, pairs=5, texts=600, prompts=60)

app = typer.Typer(pretty_exceptions_enable=False)
app.add_typer(checkpoint_app, name="checkpoint")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> EmbeddedDataset:
    return PEOPLE.write(tmp_path_factory.mktemp("data"))


def heads(dataset: EmbeddedDataset, A_KD: np.ndarray, name: str, softmax: bool = False) -> Checkpoint:
    backbone, K = dataset.backbone, len(A_KD)
    start = SoftmaxStart(np.zeros(K), 0.1, 3) if softmax else GaussianStart(np.zeros(K), np.eye(K), 1.5)
    return Checkpoint(
        name=name,
        backbone=BackboneIdentity(
            id=backbone.id,
            fingerprint=backbone.fingerprint,
            template_id=backbone.template_id,
            hidden_size=backbone.hidden_size,
        ),
        A_KD=A_KD.astype(np.float32),
        b_K=np.zeros(K, np.float32),
        start=start,
    )


@pytest.fixture
def old(dataset: EmbeddedDataset) -> Checkpoint:
    return heads(dataset, np.random.default_rng(0).normal(size=(3, dataset.hidden_size)), "old")


def test_the_fidelity_is_one_within_a_span_and_low_outside_of_it(dataset: EmbeddedDataset, old: Checkpoint) -> None:
    rng = np.random.default_rng(1)
    turned = heads(dataset, rng.normal(size=(3, 3)) @ old.A_KD, "turned")
    more = heads(dataset, np.vstack([turned.A_KD, rng.normal(size=(2, dataset.hidden_size))]), "more")
    same, wider, narrower = link(turned, old, dataset), link(more, old, dataset), link(old, more, dataset)
    assert same.fidelity.low > 0.999
    assert same.differences_fidelity > 0.999
    assert wider.fidelity.low > 0.999 > 0.95 > wider.differences_fidelity
    assert narrower.differences_fidelity > 0.999 > 0.95 > narrower.fidelity.mean
    np.testing.assert_allclose(same.maps.diffs_KK @ old.A_KD, turned.A_KD, atol=1e-3)
    alone = heads(dataset, rng.normal(size=(1, dataset.hidden_size)), "alone")
    assert link(alone, old, dataset).fidelity.mean < narrower.fidelity.mean
    assert (same.heads_id, same.checkpoint_id, same.name) == (old.heads_id, old.checkpoint_id, "old")


def test_held_out_differences_are_of_other_prompts(
    dataset: EmbeddedDataset, old: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    gathered = []
    gather = EmbeddedDataset.gather
    monkeypatch.setattr(EmbeddedDataset, "gather", lambda self, rows: gathered.append(rows) or gather(self, rows))
    made = link(heads(dataset, -old.A_KD[:2], "new"), old, dataset)
    *fitted, chosen, other = (dataset.text_prompt_N[np.asarray(rows)] for rows in gathered)
    np.testing.assert_array_equal(chosen, other)
    assert len(chosen) == made.held_out
    assert not set(chosen.tolist()) & set(np.concatenate(fitted).tolist())


def test_linking_changes_no_id_and_comes_back_as_it_was(
    dataset: EmbeddedDataset, old: Checkpoint, tmp_path: Path
) -> None:
    for softmax in (False, True):
        new = heads(dataset, old.A_KD[:2] + 1, "new", softmax)
        old.save(tmp_path / "old")
        new.save(tmp_path / "new")
        assert read_manifest(tmp_path / "new").format_version == 2
        command = ["checkpoint", "link", tmp_path / "new", "--from", tmp_path / "old", "--data", dataset.path]
        for _ in range(2):  # again: the map is replaced
            result = CliRunner().invoke(app, [str(part) for part in command], catch_exceptions=False)
            assert result.exit_code == 0, result.output
            assert "rewards survive with correlation" in result.output
        found = load_checkpoint(tmp_path / "new")
        assert (found.checkpoint_id, found.heads_id) == (new.checkpoint_id, new.heads_id)
        assert read_manifest(tmp_path / "new").format_version == 3
        (read,) = found.maps
        made = link(new, old, dataset)
        np.testing.assert_array_equal(read.maps.weights_KK, made.maps.weights_KK)
        np.testing.assert_array_equal(read.maps.diffs_KK, made.maps.diffs_KK)
        np.testing.assert_array_equal(read.start.mean_K, old.start.mean_K)
        assert read.start.temperature == 1.5
        assert (read.fidelity, read.differences, read.data) == (made.fidelity, made.differences, made.data)
    backwards = link(old, found, dataset)
    dataclasses.replace(old, maps=(backwards,)).save(tmp_path / "old")
    (read,) = load_checkpoint(tmp_path / "old").maps
    assert isinstance(read.start, SoftmaxStart)
    assert (read.start.inner_lr, read.start.inner_steps) == (0.1, 3)


def test_maps_are_those_of_the_second_moment(dataset: EmbeddedDataset, old: Checkpoint) -> None:
    new = heads(dataset, np.random.default_rng(5).normal(size=(4, dataset.hidden_size)), "new")
    h_ND, prompt_N = dataset.gather(np.arange(dataset.texts)).astype(float), dataset.text_prompt_N
    C = np.zeros((dataset.hidden_size,) * 2)
    for prompt in np.unique(prompt_N):
        centred = h_ND[prompt_N == prompt] - h_ND[prompt_N == prompt].mean(axis=0)
        C += centred.T @ centred
    all_of_it = linear_maps(new.A_KD, old.A_KD, C)
    sampled = link(new, old, dataset).maps
    scale = np.abs(all_of_it.diffs_KK).max()
    np.testing.assert_allclose(sampled.diffs_KK, all_of_it.diffs_KK, atol=0.25 * scale)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: path.unlink(), "cannot be read"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1] + b"x"), "SHA-256 differs"),
    ],
)
def test_a_map_that_was_altered_refuses_the_checkpoint(
    dataset: EmbeddedDataset, old: Checkpoint, tmp_path: Path, spoil: object, message: str
) -> None:
    new = heads(dataset, -old.A_KD[:2], "new")
    made = link(new, old, dataset)
    dataclasses.replace(new, maps=(made,)).save(tmp_path)
    spoil(tmp_path / made.file)  # type: ignore[operator]
    with pytest.raises(CheckpointError, match=message) as refused:
        load_checkpoint(tmp_path)
    assert made.file in str(refused.value)


def test_a_map_of_another_shape_refuses_the_checkpoint(
    dataset: EmbeddedDataset, old: Checkpoint, tmp_path: Path
) -> None:
    new, wide = heads(dataset, -old.A_KD[:2], "new"), heads(dataset, -old.A_KD, "wide")
    made = link(wide, old, dataset)
    dataclasses.replace(new, maps=(made,)).save(tmp_path)
    with pytest.raises(CheckpointError, match=r"do not lead from K = 3 to K = 2"):
        load_checkpoint(tmp_path)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    manifest["maps"][0]["file"] = "../elsewhere"
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match=r"maps\.0\.file"):
        load_checkpoint(tmp_path)


def test_what_cannot_be_linked_is_refused(dataset: EmbeddedDataset, old: Checkpoint, tmp_path: Path) -> None:
    new = heads(dataset, -old.A_KD[:2], "new")
    other = dataclasses.replace(old, backbone=old.backbone.model_copy(update={"fingerprint": "another"}))
    with pytest.raises(ConfigurationError, match="only hidden states of one backbone"):
        link(new, other, dataset)
    with pytest.raises(ConfigurationError, match="only hidden states of one backbone"):
        link(other, new, dataset)
    with pytest.raises(ConfigurationError, match="the same heads"):
        link(old, old, dataset)
    alone = dataclasses.replace(PEOPLE, prompt_N=np.arange(len(PEOPLE.prompt_N), dtype=np.int32))
    with pytest.raises(ConfigurationError, match="embed more texts to each prompt"):
        link(new, old, alone.write(tmp_path / "alone"))
