"""Decoders beside a plain transformers loop, on real weights and on the smallest models of each architecture.

The real weights are SmolLM2-135M (a Llama); the others are random two-layer models, in which every mistake of a mask, a
position or an index shows.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from models import random_llama, random_qwen3, smollm2_directory, smollm2_gguf
from safetensors.torch import load_file, save_file
from servers import free_port

from service.backbone.executors.choose import ExecutorOptions
from service.backbone.fingerprint import fingerprint_safetensors
from service.backbone.golden import GOLDEN_TEXTS
from service.backbone.load import load_backbone, load_renderer
from service.errors import BackboneError

HISTORY = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": "Hi! How can I help?"},
    {"role": "user", "content": "Name a colour."},
]
TEXTS = [
    ([{"role": "user", "content": "Yes or no?"}], "y"),
    ([{"role": "user", "content": "?"}], " "),
    (HISTORY, "Blue."),
    ([{"role": "user", "content": "日本語で、naïve café\u0301 と言って 🌅\u200d"}], "«ナイーブ» — Ωραία, مرحبا 👩‍👩‍👧"),
    ([{"role": "user", "content": "The text ends as its own turn ends."}], "So be it.<|im_end|>"),
    ([{"role": "user", "content": "count " * 40}], "one two three " * 20),
    (HISTORY, ""),
    (HISTORY, "\n \n"),
]


@pytest.fixture(scope="session")
def directories(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return {
        "llama": random_llama(folder / "llama"),
        "qwen3": random_qwen3(folder / "qwen3"),
        "smollm2": smollm2_directory(request.config.cache.mkdir("models")),
    }


@pytest.fixture(scope="module", params=["llama", "qwen3", "smollm2"])
def directory(request, directories):
    return directories[request.param]


@pytest.fixture(scope="module")
def backbone(directory):
    return load_backbone(str(directory), device="cpu", dtype="float32")


def assert_same_states(left_BD, right_BD):
    """Relative to a state's length: in SmolLM2-135M float32 itself is 1.4e-6 from float64 in transformers."""
    assert ((left_BD - right_BD).norm(dim=1) / right_BD.norm(dim=1)).max() < 5e-6


def token_ids(backbone, texts=TEXTS):
    return [backbone.renderer.tokenise(*text, truncate=False).token_ids for text in texts]


def plain_loop(directory, texts):
    """The model card's way, one text at a time, without anything of this project."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = AutoModelForSequenceClassification.from_pretrained(directory, dtype=torch.float32).eval()
    states = []
    for messages, completion in texts:
        conversation = [*messages, {"role": "assistant", "content": completion}]
        ids = tokenizer.apply_chat_template(conversation, return_tensors="pt", return_dict=True)["input_ids"]
        with torch.no_grad():
            states.append(model.model(ids).last_hidden_state[0, -1])
    return torch.stack(states)


def copied(directory, target):
    return shutil.copytree(directory, target)


def test_hidden_states_equal_a_plain_loop(backbone, directory):
    assert_same_states(backbone.forward(token_ids(backbone)), plain_loop(directory, TEXTS))


def test_batched_equals_alone_for_mixed_lengths(backbone):
    ids = token_ids(backbone)
    ids += [ids[0][:1], ids[2][:7]]
    alone = torch.cat([backbone.forward([text]) for text in ids])
    assert_same_states(backbone.forward(ids), alone)
    assert_same_states(backbone.forward(ids[::-1]), alone.flip(0))


def test_padding_to_the_longest_changes_nothing(directory, backbone, monkeypatch):
    ids = [text[:length] for text, length in zip(token_ids(backbone, TEXTS[:6]), (3, 40, 1, 17, 25, 60), strict=True)]
    alone = torch.cat([backbone.forward([text]) for text in ids])
    monkeypatch.setattr("service.backbone.executors.transformer._MAX_PADDING", 1.0)
    padded = load_backbone(str(directory), device="cpu", dtype="float32", options=ExecutorOptions(executor="padded"))
    assert (padded.executor.name, padded.shares_prefixes) == ("padded", False)
    assert_same_states(padded.forward(ids), alone)


@pytest.mark.parametrize("make", [random_llama, random_qwen3])
def test_bfloat16_within_its_tolerance(make, tmp_path):
    """Relative to the hidden state's length. Measured with these weights: 0.014; SmolLM2-135M: 0.030 and 0.013."""
    folder = str(make(tmp_path / "gentle", initializer_range=0.1))
    exact = load_backbone(folder, device="cpu", dtype="float32")
    half = load_backbone(folder, device="cpu", dtype="bfloat16")
    ids = token_ids(exact)
    batched = half.forward(ids)
    alone = torch.cat([half.forward([text]) for text in ids])
    expected = exact.forward(ids)
    assert batched.dtype == torch.float32
    lengths = expected.norm(dim=1)
    assert ((batched - expected).norm(dim=1) / lengths).max() < 0.03
    assert ((batched - alone).norm(dim=1) / lengths).max() < 0.03
    assert half.spec.fingerprint == exact.spec.fingerprint
    assert half.spec.dtype == "bfloat16"


def test_a_text_that_ends_in_the_pad_id_is_read_at_its_true_last_token(directories, tmp_path):
    """The classification head's own pooling steps back over pad ids: another token, another reward."""
    from transformers import AutoModelForSequenceClassification

    folder = copied(directories["llama"], tmp_path / "model")
    template = (folder / "chat_template.jinja").read_text()
    ends_with_newline = "'<|im_end|>' + '\n'}}"
    assert ends_with_newline in template
    (folder / "chat_template.jinja").write_text(template.replace(ends_with_newline, "'<|im_end|>'}}"))
    backbone = load_backbone(str(folder), device="cpu", dtype="float32")
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    ids = token_ids(backbone)
    assert all(text[-1] == model.config.pad_token_id for text in ids)
    assert_same_states(backbone.forward(ids), plain_loop(folder, TEXTS))
    with torch.no_grad():
        head = model(torch.tensor([ids[0]])).logits[0, 0]
        ours = model.score(backbone.forward(ids[:1]))[0, 0]
    assert (head - ours).abs() > 0.01


def test_gguf_reads_as_the_directory_made_of_it(directories):
    file = load_backbone(str(smollm2_gguf()), device="cpu", dtype="float32", max_tokens=512)
    folder = load_backbone(str(directories["smollm2"]), device="cpu", dtype="float32")
    ids = token_ids(file, GOLDEN_TEXTS[:2])
    assert ids == token_ids(folder, GOLDEN_TEXTS[:2])
    assert_same_states(file.forward(ids), folder.forward(ids))
    assert (file.spec.max_tokens, file.spec.hidden_size, file.spec.model_type) == (512, 576, "llama")
    json.dumps(file.spec.as_json())


def test_fingerprint_is_of_the_model_and_not_of_its_place(directories, tmp_path):
    original = load_backbone(str(directories["llama"]), device="cpu", dtype="float32")
    moved = copied(directories["llama"], tmp_path / "elsewhere")
    config = json.loads((moved / "config.json").read_text())
    (moved / "config.json").write_text(json.dumps({**config, "transformers_version": "9", "num_labels": 8}))
    assert fingerprint(moved) == original.spec.fingerprint

    weights = load_file(moved / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][5, 7] += 1e-3
    save_file(weights, moved / "model.safetensors", metadata={"format": "pt"})
    changed_weight = fingerprint(moved)
    (moved / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 1e-3}))
    changed_config = fingerprint(moved)
    template = moved / "chat_template.jinja"
    template.write_text(template.read_text() + "{# another #}")
    changed_template = fingerprint(moved)
    assert len({original.spec.fingerprint, changed_weight, changed_config, changed_template}) == 4


def test_fingerprint_does_not_depend_on_how_tensors_are_split_into_files(directories, tmp_path):
    from transformers import AutoModelForSequenceClassification

    sharded = copied(directories["qwen3"], tmp_path / "sharded")
    (sharded / "model.safetensors").unlink()
    model = AutoModelForSequenceClassification.from_pretrained(directories["qwen3"], dtype=torch.float32)
    model.save_pretrained(sharded, max_shard_size="200KB")
    assert len(list(sharded.glob("*.safetensors"))) > 1
    assert fingerprint(sharded) == fingerprint(directories["qwen3"])


def fingerprint(folder):
    return load_backbone(str(folder), device="cpu", dtype="float32").spec.fingerprint


def test_errors_name_what_to_mend(directories, tmp_path):
    llama = directories["llama"]

    bare = copied(llama, tmp_path / "bare")
    (bare / "chat_template.jinja").unlink()
    with pytest.raises(BackboneError, match="has no chat template"):
        load_renderer(str(bare))

    lacking = copied(llama, tmp_path / "lacking")
    weights = load_file(lacking / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, lacking / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BackboneError, match=r"lacks weights .*norm\.weight"):
        load_backbone(str(lacking), device="cpu")

    pickled = copied(llama, tmp_path / "pickled")
    torch.save(load_file(pickled / "model.safetensors"), pickled / "pytorch_model.bin")
    (pickled / "model.safetensors").unlink()
    with pytest.raises(BackboneError, match=r"safetensors"):
        load_backbone(str(pickled), device="cpu")

    damaged = copied(llama, tmp_path / "damaged")
    (damaged / "model.safetensors").write_bytes(b"not a tensor")
    with pytest.raises(BackboneError, match="cannot be loaded"):
        load_backbone(str(damaged), device="cpu")

    for name in (str(tmp_path / "nowhere"), "./nowhere", "nowhere.gguf"):
        with pytest.raises(BackboneError, match=r"no such directory or \.gguf file"):
            load_backbone(name, device="cpu")
    for arguments, said in (
        ({"dtype": "float16"}, "set it to auto, float32, bfloat16 or float8"),
        ({"dtype": "float8", "device": "cpu"}, "set DTYPE to bfloat16"),
        ({"device": "tpu"}, "set it to auto, cpu, cuda"),
        ({"device": "cpu:x"}, "set it to auto, cpu, cuda"),
        ({"device": "cpu:3"}, "set device to cpu"),
        ({"device": "cuda:99"}, "set device to"),
        ({"max_tokens": 2}, "at least 3 tokens"),
    ):
        with pytest.raises(BackboneError, match=said):
            load_backbone("minilm", **arguments)


def test_a_cuda_device_beyond_the_last_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(BackboneError, match="the last CUDA device here is cuda:1"):
        load_backbone("minilm", device="cuda:2")


TENSOR = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}


@pytest.mark.parametrize(
    "header",
    [
        b"[]",
        b'{"a": 1}',
        b"{}{",
        b"\xff",
        b"[" * 100_000,
        json.dumps({"a": {**TENSOR, "data_offsets": [0]}}).encode(),
        json.dumps({"a": {**TENSOR, "data_offsets": ["0", "4"]}}).encode(),
        json.dumps({"a": {**TENSOR, "shape": 1}}).encode(),
        json.dumps({"a": {"dtype": "F32", "shape": [1]}}).encode(),
        json.dumps({"a": {**TENSOR, "data_offsets": [0, 99]}}).encode(),
        json.dumps({"a": {**TENSOR, "data_offsets": [4, 0]}}).encode(),
        json.dumps({"a": {**TENSOR, "data_offsets": [-8, 4]}}).encode(),
    ],
)
def test_a_malformed_header_of_weights_is_named(tmp_path, header):
    (tmp_path / "config.json").write_text("{}")
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    with pytest.raises(BackboneError, match=r"model\.safetensors is not"):
        fingerprint_safetensors(tmp_path / "config.json", [weights], "rendering")


@pytest.mark.parametrize("offline", ["0", "1"])
def test_without_the_hub_a_hub_id_ends_in_one_error_soon(tmp_path, offline):
    code = (
        "import logging; logging.basicConfig(level=logging.INFO)\n"
        "from service.backbone.load import load_renderer\n"
        "from service.errors import BackboneError\n"
        "try: load_renderer('somebody/some-model')\n"
        "except BackboneError as error: print(error)\n"
    )
    environment = {**os.environ, "HF_ENDPOINT": f"http://127.0.0.1:{free_port()}", "HF_HOME": str(tmp_path)}
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**environment, "HF_HUB_OFFLINE": offline},
        cwd=Path(__file__).resolve().parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    assert time.monotonic() - started < 15.0  # most of it to import; the client's own retries take 25 s
    assert "somebody/some-model" in done.stdout
    assert "the hub does not answer" in done.stdout
    assert (done.stdout.count("\n"), done.stderr) == (1, "")


def test_an_encoder_is_refused(directories, tmp_path):
    from transformers import BertConfig, BertModel

    folder = copied(directories["llama"], tmp_path / "encoder")
    (folder / "model.safetensors").unlink()
    (folder / "config.json").unlink()
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=49_152, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, initializer_range=0.5
    )
    BertModel(config).save_pretrained(folder)
    with pytest.raises(BackboneError, match="not a causal decoder"):
        load_backbone(str(folder), device="cpu")
