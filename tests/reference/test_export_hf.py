"""Exported checkpoints as stock transformers reads them: alone, padded, and behind the REST layer."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from models import random_llama, random_qwen3
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from benchmarks.random_checkpoint import checkpoint_on
from benchmarks.server import ServerProcess
from service.backbone.golden import GOLDEN_TEXTS
from service.backbone.load import load_backbone, load_renderer
from service.checkpoints import load_checkpoint
from service.cli.checkpoint import app
from service.errors import BackboneError, CheckpointError, ConfigurationError
from service.settings import DEMO_CHECKPOINT
from service.training.export_hf import export_hf

ROOT = Path(__file__).resolve().parents[2]
HEADS = 5
TEXTS = [
    *GOLDEN_TEXTS,
    ([{"role": "user", "content": "?"}], " "),
    ([{"role": "user", "content": "Which token ends a turn?"}], "It is <|im_end|>"),
    ([{"role": "user", "content": "Which token pads?"}], "One of these: <|im_end|><|endoftext|><|endoftext|>"),
    ([{"role": "user", "content": "And the others?"}], "<repo_name><file_sep><|im_start|>\n"),
]
MODELS = {"llama": random_llama, "qwen3": random_qwen3}


@pytest.fixture(scope="module")
def backbones(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    directories = {name: make(folder / name) for name, make in MODELS.items()}
    return {name: load_backbone(str(where), device="cpu", dtype="float32") for name, where in directories.items()}


@pytest.fixture(scope="module", params=["llama", "qwen3"])
def backbone(request, backbones):
    return backbones[request.param]


@pytest.fixture(scope="module")
def checkpoint(backbone):
    return checkpoint_on(backbone, heads=HEADS)


@pytest.fixture(scope="module")
def exported(checkpoint, tmp_path_factory):
    return export_hf(checkpoint, tmp_path_factory.mktemp("export") / "out").directory


def token_ids(backbone):
    return [backbone.renderer.tokenise(*text, truncate=False).token_ids for text in TEXTS]


def without_biases(checkpoint, backbone):
    return backbone.forward(token_ids(backbone)).double().numpy() @ checkpoint.A_KD.T.astype(float)


def stock(directory):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(directory).eval()
    return model, AutoTokenizer.from_pretrained(directory)


def rendered(tokenizer):
    """The texts by transformers' own rendering."""
    conversations = [[*messages, {"role": "assistant", "content": answer}] for messages, answer in TEXTS]
    return [tokenizer.apply_chat_template(conversation, tokenize=False) for conversation in conversations]


def test_transformers_gives_a_h_alone_and_padded_on_either_side(checkpoint, backbone, exported):
    expected_BK = without_biases(checkpoint, backbone)
    assert np.ptp(expected_BK) > 0.1, "the texts are told apart"
    model, tokenizer = stock(exported)
    assert model.dtype == torch.float32
    texts = rendered(tokenizer)
    with torch.no_grad():
        for text, expected_K in zip(texts, expected_BK, strict=True):
            ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")
            np.testing.assert_allclose(model(**ids).logits[0].numpy(), expected_K, rtol=0, atol=1e-5)
        for side in ("right", "left"):
            tokenizer.padding_side = side
            batch = tokenizer(texts, padding=True, add_special_tokens=False, return_tensors="pt")
            assert (batch["attention_mask"] == 0).any()
            np.testing.assert_allclose(model(**batch).logits.numpy(), expected_BK, rtol=0, atol=1e-5)


def test_the_tokenizer_and_the_template_make_the_same_ids_here_and_in_transformers(backbone, exported):
    _, tokenizer = stock(exported)
    expected = token_ids(backbone)
    assert [tuple(ids) for ids in tokenizer(rendered(tokenizer), add_special_tokens=False)["input_ids"]] == expected
    copied = load_renderer(str(exported))
    assert [copied.tokenise(*text, truncate=False).token_ids for text in TEXTS] == expected


def test_no_text_ends_in_the_pad_token_nor_is_it_of_the_ending(backbone, exported):
    model, tokenizer = stock(exported)
    pad = model.config.pad_token_id
    assert tokenizer.pad_token_id == pad
    special = [str(token) for token in tokenizer.added_tokens_decoder.values()]
    assert len(special) > 10
    prompt = [{"role": "user", "content": "?"}]
    for token in special:
        for answer in (token, f"Yes.{token}", f"{token}\n"):
            ids = backbone.renderer.tokenise(prompt, answer, truncate=True).token_ids
            assert pad not in ids[-2:], f"{token} leads to a text whose end is padding"


def test_the_strict_files_are_there_and_the_backbone_is_unchanged(checkpoint, backbone, exported):
    config = json.loads((exported / "config.json").read_text())
    assert config["num_labels"] == len(config["id2label"]) == HEADS
    assert config["id2label"]["4"] == "base_reward_4"
    tensors = load_file(exported / "model.safetensors")
    np.testing.assert_array_equal(tensors.pop("score.weight").numpy(), checkpoint.A_KD)
    source = load_file(Path(backbone.spec.id) / "model.safetensors")
    assert set(tensors) == {name for name in source if name.startswith("model.")}
    assert all(torch.equal(tensors[name], source[name]) for name in tensors)
    card = (exported / "README.md").read_text()
    assert "without the biases" in card
    assert checkpoint.heads_id in card
    assert (exported / "model.safetensors").stat().st_mode & 0o044 == 0o044, "a server may run as another user"


def test_a_language_model_in_shards_is_exported_in_shards_and_in_another_dtype(backbones, tmp_path):
    from transformers import AutoModelForCausalLM

    source = Path(backbones["llama"].spec.id)
    language = tmp_path / "language"
    AutoModelForCausalLM.from_pretrained(source).save_pretrained(language, max_shard_size="8MB")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (language / name).write_bytes((source / name).read_bytes())
    backbone = load_backbone(str(language), device="cpu", dtype="float32")
    checkpoint = checkpoint_on(backbone, heads=HEADS)
    export = export_hf(checkpoint, tmp_path / "out", dtype="bfloat16", shard_bytes=4_000_000)
    index = json.loads((export.directory / "model.safetensors.index.json").read_text())
    assert export.files == len(set(index["weight_map"].values())) > 1
    assert (index["metadata"]["total_size"], "lm_head.weight" in index["weight_map"]) == (export.bytes, False)
    model, _ = stock(export.directory)
    assert model.dtype == torch.bfloat16
    with safe_open(export.directory / index["weight_map"]["score.weight"], framework="np") as tensors:
        np.testing.assert_array_equal(tensors.get_tensor("score.weight"), checkpoint.A_KD)
    with torch.no_grad():
        logits = [model(torch.tensor([ids])).logits[0].float().numpy() for ids in token_ids(backbone)]
    expected = without_biases(checkpoint, backbone)
    assert np.abs(np.array(logits) - expected).max() < 0.05 * np.ptp(expected)


def with_template(source, directory, change):
    """The model of `source` with another chat template."""
    directory.mkdir()
    for file in source.iterdir():
        (directory / file.name).symlink_to(file)
    template = directory / "chat_template.jinja"
    changed = change(template.read_text())
    template.unlink()
    template.write_text(changed)
    return load_backbone(str(directory), device="cpu", dtype="float32")


def test_a_date_in_the_template_is_the_same_for_everybody(backbones, tmp_path):
    source = Path(backbones["llama"].spec.id)
    backbone = with_template(source, tmp_path / "dated", lambda text: '{{ strftime_now("%d %b %Y") }}' + text)
    export = export_hf(checkpoint_on(backbone, heads=HEADS), tmp_path / "out")
    _, tokenizer = stock(export.directory)
    texts = rendered(tokenizer)
    assert all(text.startswith("26 Jul 2024") for text in texts)
    assert [tuple(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts] == token_ids(backbone)


def test_a_template_without_an_ending_gets_an_id_without_a_token_or_is_refused(backbones, tmp_path):
    def without_ending(_):
        return "{% for message in messages %}{{ message['content'] }}{% endfor %}"

    full = with_template(Path(backbones["llama"].spec.id), tmp_path / "full", without_ending)
    with pytest.raises(BackboneError, match="pad token"):
        export_hf(checkpoint_on(full, heads=HEADS), tmp_path / "out")
    assert not (tmp_path / "out").exists()

    more_ids = random_llama(tmp_path / "more-ids", vocab_size=49_160)
    roomy = with_template(more_ids, tmp_path / "roomy", without_ending)
    export = export_hf(checkpoint_on(roomy, heads=HEADS), tmp_path / "out")
    assert (export.pad.id, export.pad.text) == (49_152, None)
    assert stock(export.directory)[0].config.pad_token_id == 49_152


def test_what_cannot_be_exported_is_refused_and_leaves_nothing(backbones, tmp_path):
    backbone = backbones["llama"]
    checkpoint = checkpoint_on(backbone, heads=HEADS)
    out = tmp_path / "out"

    with pytest.raises(BackboneError, match="minilm cannot be exported"):
        export_hf(load_checkpoint(DEMO_CHECKPOINT), out)
    with pytest.raises(CheckpointError, match="--backbone"):
        export_hf(checkpoint, out, backbone=backbones["qwen3"].spec.id)
    with pytest.raises(BackboneError, match="no such directory"):
        export_hf(checkpoint, out, backbone=str(tmp_path / "nowhere"))

    more = tmp_path / "more"
    more.mkdir()
    for file in Path(backbone.spec.id).iterdir():
        (more / file.name).symlink_to(file)
    tensors = load_file(more / "model.safetensors")
    (more / "model.safetensors").unlink()
    save_file({**tensors, "model.adapter.weight": torch.ones(2, 2)}, more / "model.safetensors")
    adapted = checkpoint_on(load_backbone(str(more), device="cpu", dtype="float32"), heads=HEADS)
    with pytest.raises(BackboneError, match=r"model\.adapter\.weight"):
        export_hf(adapted, out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["more"]

    out.mkdir()
    (out / "mine.txt").write_text("keep")
    with pytest.raises(ConfigurationError, match="not empty"):
        export_hf(checkpoint, out)
    assert [path.name for path in out.iterdir()] == ["mine.txt"]


def test_the_command_says_how_to_serve_what_it_wrote(backbones, tmp_path):
    checkpoint = checkpoint_on(backbones["llama"], heads=HEADS)
    checkpoint.save(tmp_path / "checkpoint")
    (tmp_path / "out").mkdir()
    arguments = ["export-hf", str(tmp_path / "checkpoint"), str(tmp_path / "out")]
    refused = CliRunner().invoke(app, [*arguments, "--dtype", "int4"])
    assert "--dtype" in str(refused.exception)
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    said = done.output.split()
    assert said[said.index("--served-model-name") + 1] == checkpoint.heads_id
    assert "--runner pooling --dtype float32 --max-model-len 2048" in done.output
    assert f"K = {HEADS} labels" in done.output


def test_plain_transformers_serve_the_export_behind_the_rest_layer(backbones, tmp_path):
    backbone = backbones["qwen3"]
    checkpoint = checkpoint_on(backbone, heads=HEADS)
    checkpoint.save(tmp_path / "checkpoint")
    export = export_hf(checkpoint, tmp_path / "out")
    with subprocess.Popen(
        [sys.executable, ROOT / "examples/transformers_worker.py", export.directory, export.heads_id, "--port", "0"],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    ) as worker:
        try:
            assert worker.stdout is not None
            url = worker.stdout.readline().split()[-1]
            settings = {"CHECKPOINT": str(tmp_path / "checkpoint"), "ENGINE_URL": url}
            with ServerProcess(tmp_path / "data", **settings) as server, server.client() as client:
                assert client.get("/ready").json() == {"ready": True, "degraded": []}
                completions = [answer for _, answer in TEXTS[-4:] if answer.strip()]
                request = {"user_id": "ada", "prompt": "Why?", "completions": completions}
                answer = client.post("/score", json=request).raise_for_status().json()
        finally:
            worker.kill()
    prompt = [{"role": "user", "content": "Why?"}]
    ids = [backbone.renderer.tokenise(prompt, completion, truncate=False).token_ids for completion in completions]
    base_BK = backbone.forward(ids).double().numpy() @ checkpoint.A_KD.T.astype(float) + checkpoint.b_K
    np.testing.assert_allclose(answer["rewards"], base_BK @ checkpoint.start.mean_K, rtol=0, atol=1e-4)
