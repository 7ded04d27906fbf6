from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from threadpoolctl import threadpool_info

from service.training.steps import Steps, digest_of
from service.training.threads import one_blas_thread


def test_a_step_runs_once_and_is_read_back(tmp_path: Path) -> None:
    runs, said = [], []

    def compute() -> dict[str, np.ndarray]:
        runs.append(1)
        return {"a": np.arange(3.0), "b": np.eye(2, dtype=np.float32)}

    for _ in range(2):
        arrays = Steps(tmp_path, "0" * 64, said.append).run("one", compute)
        np.testing.assert_array_equal(arrays["a"], [0.0, 1.0, 2.0])
        assert arrays["b"].dtype == np.float32
    assert (len(runs), said) == (1, ["one", "one"])
    Steps(tmp_path, "1" * 64).run("one", compute)
    assert len(runs) == 2


@pytest.mark.parametrize("kept", [0, 10, 0.5])
def test_a_damaged_result_is_computed_again(tmp_path: Path, kept: float) -> None:
    def compute() -> dict[str, np.ndarray]:
        return {"a": np.arange(1000.0)}

    Steps(tmp_path, "0" * 64).run("one", compute)
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    file.write_bytes(whole[: int(kept if kept > 1 else kept * len(whole))])
    np.testing.assert_array_equal(Steps(tmp_path, "0" * 64).run("one", compute)["a"], np.arange(1000.0))
    assert file.read_bytes() == whole
    middle = len(whole) // 2
    file.write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
    np.testing.assert_array_equal(Steps(tmp_path, "0" * 64).run("one", compute)["a"], np.arange(1000.0))


def test_several_steps_keep_their_order() -> None:
    said: list[str] = []
    jobs = {str(number): lambda number=number: {"x": np.array(number)} for number in range(7)}
    results = Steps(None, "0" * 64, said.append).run_all(jobs)
    assert [int(arrays["x"]) for arrays in results] == list(range(7))
    assert said == list(jobs)


def test_a_step_that_fails_fails_the_fit(tmp_path: Path) -> None:
    def fail() -> dict[str, np.ndarray]:
        raise ValueError("no")

    steps = Steps(tmp_path, "0" * 64)
    with pytest.raises(ValueError, match="no"):
        steps.run_all({"good": lambda: {"x": np.ones(1)}, "bad": fail})
    assert [path.name for path in tmp_path.iterdir() if "bad" in path.name] == []


def test_the_digest_sees_options_values_shapes_and_types() -> None:
    x = np.arange(6.0)
    different = {
        digest_of({"seed": 0}, x),
        digest_of({"seed": 1}, x),
        digest_of({"seed": 0}, x.reshape(2, 3)),
        digest_of({"seed": 0}, x.astype(np.float32)),
        digest_of({"seed": 0}, x + 1),
    }
    assert len(different) == 5
    assert digest_of({"seed": 0}, x) in different


def test_blas_has_one_thread_inside_and_its_own_number_after() -> None:
    def threads() -> list[int]:
        return [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]

    before = threads()
    with one_blas_thread():
        assert set(threads()) == {1}
    assert threads() == before
