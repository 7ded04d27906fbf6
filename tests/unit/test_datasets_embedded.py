from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from service.datasets.embedded import BackboneInfo, DatasetColumns, EmbeddedDataset, EmbeddedDatasetWriter
from service.datasets.manifest import SourceInfo
from service.datasets.pairs import QUERY, SUPPORT, TRAIN, PairTable, RatingTable
from service.datasets.writer import write_embedded_dataset
from service.errors import ConfigurationError

D = 5
N = 23
BACKBONE = BackboneInfo.from_spec(
    {"id": "toy", "fingerprint": "f0", "template_id": "t0", "hidden_size": D, "pooling": "mean"}
)
PAIRS = PairTable.of(
    user=[0, 0, 1, 1, 1],
    part=[TRAIN, TRAIN, SUPPORT, SUPPORT, QUERY],
    chosen=[0, 1, 2, 22, 4],
    rejected=[5, 6, 7, 8, 9],
    strength=[1.0, 2.0, 0.5, 1.0, 1.0],
    conversation=[0, 1, -1, 2, 3],
)
RATINGS = RatingTable(np.array([0, 1], np.int32), np.array([3, 22], np.int32), np.array([-9.5, 4.0], np.float32))


def embeddings() -> np.ndarray:
    return np.random.default_rng(3).normal(size=(N, D)).astype(np.float32)


def columns(**changes: object) -> DatasetColumns:
    parts = {
        "text_prompt_N": np.arange(N, dtype=np.int32) // 2,
        "text_key_N": np.arange(N * 32, dtype=np.uint32).astype(np.uint8).reshape(N, 32),
        "users": ["ann", "bob/🌅"],
        "splits": {"default": PAIRS},
        "ratings": RATINGS,
    }
    return DatasetColumns(**(parts | changes))


def writer(path: Path, data: DatasetColumns | None = None, **changes: object) -> EmbeddedDatasetWriter:
    parts = {
        "backbone": BACKBONE,
        "columns": data or columns(),
        "source": SourceInfo(format="jsonl", name="rows.jsonl", options={"seed": 0}),
        "created_by": "test",
        "golden_texts_id": "g0",
        "shard_texts": 4,
    }
    return EmbeddedDatasetWriter(path, **(parts | changes))


def write_all(path: Path) -> None:
    h_ND = embeddings()
    with writer(path) as out:
        for number in out.pending():
            rows = out.shards()[number]
            out.write_shard(number, h_ND[rows.start : rows.stop], np.arange(len(rows)) == 1)
        out.finish(h_ND[:2] + 1)


def test_what_was_written_is_read(tmp_path: Path) -> None:
    write_all(tmp_path / "d")
    data = EmbeddedDataset.open(tmp_path / "d")
    assert (data.texts, data.hidden_size, data.users) == (N, D, ["ann", "bob/🌅"])
    assert data.backbone == BACKBONE
    assert data.split_names == ["default"]
    for name, column in data.split("default").columns().items():
        np.testing.assert_array_equal(column, PAIRS.columns()[name])
        assert column.dtype == PAIRS.columns()[name].dtype
    ratings = data.ratings()
    assert ratings is not None
    np.testing.assert_array_equal(ratings.rating_R, RATINGS.rating_R)
    np.testing.assert_array_equal(data.text_prompt_N, columns().text_prompt_N)
    np.testing.assert_array_equal(data.text_keys(), columns().text_key_N)
    np.testing.assert_array_equal(data.golden_GD, embeddings()[:2] + 1)
    assert data.manifest.truncated_texts == data.text_truncated().sum() == 6
    assert sorted(file.name for file in (tmp_path / "d").iterdir() if file.suffix == ".partial") == []
    assert not (tmp_path / "d" / "plan.json").exists()


def test_gather_crosses_shards_in_any_order_with_repeats(tmp_path: Path) -> None:
    write_all(tmp_path / "d")
    data = EmbeddedDataset.open(tmp_path / "d")
    rows = np.random.default_rng(0).integers(0, N, 200)
    h_BD = data.gather(rows)
    assert h_BD.dtype == np.float32
    np.testing.assert_array_equal(h_BD, embeddings()[rows])
    assert data.gather([]).shape == (0, D)
    for bad in ([N], [-1]):
        with pytest.raises(IndexError, match="must lie in"):
            data.gather(bad)


def test_parts_of_a_pair_table() -> None:
    assert (len(PAIRS.seen()), len(PAIRS.support()), len(PAIRS.query())) == (2, 2, 1)
    assert PAIRS.support().chosen_P.tolist() == [2, 22]
    assert {user: rows.tolist() for user, rows in PAIRS.by_user().items()} == {0: [0, 1], 1: [2, 3, 4]}
    assert PAIRS.texts().tolist() == [0, 1, 2, 4, 5, 6, 7, 8, 9, 22]
    with pytest.raises(ValueError, match="one length"):
        PairTable.of([0, 1], [0], [0, 1], [1, 0])


def test_an_unfinished_data_set_is_not_opened(tmp_path: Path) -> None:
    with writer(tmp_path / "d") as out:
        out.write_shard(0, embeddings()[:4])
        with pytest.raises(ConfigurationError, match="5 shard"):
            out.finish(embeddings()[:1])
    with pytest.raises(ConfigurationError, match="unfinished"):
        EmbeddedDataset.open(tmp_path / "d")
    with pytest.raises(ConfigurationError, match="metareward embed"):
        EmbeddedDataset.open(tmp_path / "nothing")


def test_a_second_run_goes_on_where_the_first_stopped(tmp_path: Path) -> None:
    with writer(tmp_path / "d") as out:
        out.write_shard(0, embeddings()[:4])
        out.write_shard(2, embeddings()[8:12])
    (tmp_path / "d" / "embeddings-00001.npy.partial").write_bytes(b"half a shard")
    with writer(tmp_path / "d") as out:
        assert out.pending() == [1, 3, 4, 5]
    assert not (tmp_path / "d" / "embeddings-00001.npy.partial").exists()
    write_all(tmp_path / "d")
    np.testing.assert_array_equal(EmbeddedDataset.open(tmp_path / "d").gather(range(N)), embeddings())
    with writer(tmp_path / "d") as out:
        assert out.finished
        assert out.pending() == []


@pytest.mark.parametrize("finished", [False, True])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backbone": BackboneInfo.from_spec(dict(BACKBONE.spec) | {"fingerprint": "f1"})}, "another backbone"),
        ({"data": columns(users=["ann", "eve"])}, "other input data"),
        ({"data": columns(splits={"default": PAIRS.take(np.arange(4))})}, "other input data"),
        ({"golden_texts_id": "g1"}, "other input data"),
    ],
)
def test_a_run_with_other_input_or_backbone_is_refused(
    tmp_path: Path, finished: bool, changes: dict[str, object], message: str
) -> None:
    if finished:
        write_all(tmp_path / "d")
    else:
        writer(tmp_path / "d").close()
    with pytest.raises(ConfigurationError, match=message):
        writer(tmp_path / "d", **changes)
    with writer(tmp_path / "d") as out:
        assert out.finished == finished


def test_two_writers_never_share_a_directory(tmp_path: Path) -> None:
    with writer(tmp_path / "d"), pytest.raises(ConfigurationError, match="another process"):
        writer(tmp_path / "d")
    writer(tmp_path / "d").close()


def test_a_directory_with_other_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "letters.txt").write_text("mine")
    with pytest.raises(ConfigurationError, match="not empty"):
        writer(tmp_path)
    assert (tmp_path / "letters.txt").read_text() == "mine"


def test_numbers_that_are_not_finite_are_never_stored(tmp_path: Path) -> None:
    bad = embeddings()[:4]
    bad[2, 1] = np.nan
    with writer(tmp_path / "d") as out:
        with pytest.raises(ConfigurationError, match="not finite"):
            out.write_shard(0, bad)
        with pytest.raises(ConfigurationError, match=r"must be \[4, 5\]"):
            out.write_shard(0, bad[:3])
        assert 0 in out.pending()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda raw: raw | {"colour": "red"}, "colour"),
        (lambda raw: raw | {"texts": "23"}, "texts"),
        (lambda raw: {name: value for name, value in raw.items() if name != "splits"}, "splits"),
        (lambda raw: raw | {"format_version": 9}, "format_version is 9"),
        (lambda raw: raw | {"hidden_size": 6}, "hidden_size"),
        (lambda raw: raw | {"backbone": {"id": "toy"}}, "backbone.fingerprint"),
        (lambda raw: raw | {"users": 3}, "users.json must list 3"),
        (lambda raw: raw | {"prompts": 2}, "names prompts that do not exist"),
    ],
)
def test_the_manifest_is_read_strictly(tmp_path: Path, change: object, message: str) -> None:
    write_all(tmp_path / "d")
    file = tmp_path / "d" / "dataset.json"
    file.write_text(json.dumps(change(json.loads(file.read_text()))))  # type: ignore[operator]
    with pytest.raises(ConfigurationError, match=message):
        EmbeddedDataset.open(tmp_path / "d")


def test_damaged_columns_are_named(tmp_path: Path) -> None:
    write_all(tmp_path / "d")
    shard = tmp_path / "d" / "embeddings-00002.npy"
    shard.write_bytes(shard.read_bytes()[:-8])
    with pytest.raises(ConfigurationError, match=r"embeddings-00002\.npy"):
        EmbeddedDataset.open(tmp_path / "d").gather([9])
    np.savez(tmp_path / "d" / "splits" / "default.npz", user=np.zeros(5, np.int32))
    with pytest.raises(ConfigurationError, match=r"default\.npz must hold"):
        EmbeddedDataset.open(tmp_path / "d").split("default")
    split = tmp_path / "d" / "splits" / "default.npz"
    for kept in (split.read_bytes()[:-30], b""):
        split.write_bytes(kept)
        with pytest.raises(ConfigurationError, match=r"default\.npz cannot be read"):
            EmbeddedDataset.open(tmp_path / "d").split("default")
    with pytest.raises(ConfigurationError, match="no split 'other'; it has default"):
        EmbeddedDataset.open(tmp_path / "d").split("other")


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (PairTable.of([2], [TRAIN], [0], [1]), "user must lie in"),
        (PairTable.of([0], [3], [0], [1]), "part must lie in"),
        (PairTable.of([0], [TRAIN], [0], [N]), "rejected must lie in"),
        (PairTable.of([0], [TRAIN], [1], [1]), "must differ"),
        (PairTable.of([0], [TRAIN], [0], [1], [np.inf]), "strength"),
        (PairTable.of([0, 0], [TRAIN, QUERY], [0, 1], [1, 2]), "both seen"),
    ],
)
def test_pairs_that_point_nowhere_are_refused(tmp_path: Path, table: PairTable, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        writer(tmp_path / "d", columns(splits={"default": table}))


def test_written_in_one_go(tmp_path: Path) -> None:
    write_embedded_dataset(
        tmp_path / "d",
        backbone=BACKBONE,
        h_ND=embeddings(),
        text_prompt_N=np.zeros(N),
        users=["ann", "bob"],
        splits={"default": PAIRS},
        golden_GD=np.zeros((1, D)),
        shard_texts=10,
    )
    data = EmbeddedDataset.open(tmp_path / "d")
    np.testing.assert_array_equal(data.gather(range(N)), embeddings())
    assert data.ratings() is None
