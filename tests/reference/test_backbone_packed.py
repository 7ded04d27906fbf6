"""Packed batches with shared prefixes beside each text alone, in every form that runs on this machine.

Differences are of rewards under 8 random heads of norm 1, whose rewards differ between texts by about 1. What runs on
CUDA only (varlen, paged, compiled parts, float8 at speed) is checked there at every load, against the same probes, by
`choose_executor`; its page tables are checked in tests/unit/test_layout.py.
"""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from models import random_llama, random_qwen3, smollm2_directory

from service.backbone.executors import choose, linears
from service.backbone.executors.attention import (
    FlexAttention,
    KeyValues,
    MaskedAttention,
    PathAttention,
    VarlenAttention,
)
from service.backbone.executors.choose import ExecutorOptions
from service.backbone.executors.decoder import PackedDecoder, unsupported
from service.backbone.executors.layout import Piece, Run
from service.backbone.executors.linears import Float8Linear, Linear, PrepackedLinear, linear_for
from service.backbone.load import load_backbone
from service.errors import BackboneError

CACHE = 1 << 28


def _transformer(directory, dtype=torch.float32):
    from transformers import AutoModel

    return AutoModel.from_pretrained(directory, dtype=dtype, attn_implementation="sdpa").eval()


def _alone(model, texts):
    """Plain transformers, a text at a time."""
    with torch.inference_mode():
        return torch.stack(
            [model(input_ids=torch.tensor([text]), use_cache=False).last_hidden_state[0, -1].float() for text in texts]
        )


def _heads(hidden_size):
    """[8, D] random heads of norm 1."""
    heads_KD = torch.randn(8, hidden_size, generator=torch.Generator().manual_seed(0))
    return heads_KD / heads_KD.norm(dim=1, keepdim=True)


def _mix(generator, texts, longest, vocabulary):
    """Completions of a few prompts, prompts that go on, texts alone, texts twice, texts inside others."""

    def run(tokens):
        return [int(token) for token in generator.integers(0, vocabulary, tokens)]

    prompts = [run(int(generator.integers(1, longest // 2))) for _ in range(3)]
    prompts.append(prompts[0] + run(int(generator.integers(1, longest // 4))))
    mixed = []
    for _ in range(texts):
        prompt = prompts[generator.integers(0, 4)] if generator.random() < 0.8 else []
        mixed.append(prompt + run(int(generator.integers(1, longest // 4))))
    mixed[: texts // 8] = [mixed[-1][: 1 + len(mixed[-1]) // 2]] * (texts // 8)
    return mixed


@pytest.fixture(scope="module")
def directories(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("packed")
    return {
        "llama": random_llama(folder / "llama"),
        "qwen3": random_qwen3(folder / "qwen3"),
        "smollm2": smollm2_directory(request.config.cache.mkdir("models")),
    }


@pytest.mark.parametrize("name", ["llama", "qwen3"])
@pytest.mark.parametrize("attention", [PathAttention(), MaskedAttention(), FlexAttention()], ids=lambda a: a.name)
def test_any_mix_equals_each_text_alone(directories, name, attention):
    model = _transformer(directories[name])
    heads_KD = _heads(model.config.hidden_size)
    generator = np.random.default_rng(3)
    slow = attention.name == "flex"  # without a compiler it computes every hidden pair
    batches = [_mix(generator, texts, longest, 49_152) for texts, longest in ((1, 40), (9, 300), (64, 120))]
    batches += [] if slow else [_mix(generator, 12, 2000, 49_152), [[5]]]
    expected = [_alone(model, texts) for texts in batches]
    executor = PackedDecoder(model, Linear, attention, choose.PrefixCache(CACHE))
    for _ in range(2):  # the second time prefixes of the first are at hand
        for texts, alone_BD in zip(batches, expected, strict=True):
            difference_BK = (executor.forward(texts) - alone_BD) @ heads_KD.T
            assert difference_BK.abs().max() < 1e-5
    assert executor.cache.stats.tokens_reused > 0


def test_real_weights_equal_each_text_alone(directories):
    model = _transformer(directories["smollm2"])
    backbone = load_backbone(str(directories["smollm2"]), device="cpu", dtype="float32")
    assert (backbone.executor.name, backbone.executor.attention.name) == ("packed", "path")
    heads_KD = _heads(backbone.spec.hidden_size)
    texts = _mix(np.random.default_rng(5), 12, 120, 49_152)
    transformers_BD = _alone(model, texts)
    alone_BD = torch.cat([backbone.forward([text]) for text in texts])
    backbone.release_memory()
    for _ in range(2):
        packed_BD = backbone.forward(texts)
        assert ((packed_BD - alone_BD) @ heads_KD.T).abs().max() < 1e-5
        relative_B = (packed_BD - transformers_BD).norm(dim=1) / transformers_BD.norm(dim=1)
        assert relative_B.max() < 5e-6  # transformers' own float32 is 1.4e-6 from float64


def test_bfloat16_packed_is_close_to_bfloat16_alone(directories):
    """In units of a hidden state's length, as the page of backbone facts has it; measured: 0.009 to 0.016."""
    backbone = load_backbone(str(directories["smollm2"]), device="cpu", dtype="bfloat16")
    texts = _mix(np.random.default_rng(6), 8, 80, 49_152)
    alone_BD = torch.cat([backbone.forward([text]) for text in texts])
    backbone.release_memory()
    packed_BD = backbone.forward(texts)
    assert ((packed_BD - alone_BD).norm(dim=1) / alone_BD.norm(dim=1)).max() < 0.02


def test_a_kept_prefix_is_used_by_its_scope_alone(directories):
    """Keys and values that were tampered with change the scope that they are of, and no other."""
    backbone = load_backbone(str(directories["llama"]), device="cpu", options=ExecutorOptions(prefix_cache_bytes=CACHE))
    generator = np.random.default_rng(7)
    prompt = [int(token) for token in generator.integers(0, 49_152, 64)]
    texts = [[*prompt, token] for token in (1, 2)]
    expected_BD = backbone.forward(texts, [b"ann", b"ann"])
    cache = backbone.executor.cache
    assert cache.stats.entries == 1
    with torch.inference_mode():
        for entry in cache._entries.values():
            for _, value in entry.payload:
                value += 1.0
    assert torch.equal(backbone.forward(texts, [b"bob", b"bob"]), expected_BD)
    assert torch.equal(backbone.forward(texts), expected_BD)
    tampered_BD = backbone.forward(texts, [b"ann", b"bob"])
    assert not torch.allclose(tampered_BD[0], expected_BD[0], atol=1e-3)
    torch.testing.assert_close(tampered_BD[1], expected_BD[1], atol=1e-5, rtol=1e-5)
    backbone.release_memory()
    torch.testing.assert_close(backbone.forward(texts, [b"ann", b"ann"]), expected_BD, atol=1e-5, rtol=1e-5)


def test_a_batch_keeps_no_more_than_the_cache_holds(directories):
    """Each turn of a conversation is a prefix of the next: kept whole, all together are many times the batch."""
    generator = np.random.default_rng(10)
    conversation = [int(token) for token in generator.integers(0, 49_152, 640)]
    executor = PackedDecoder(_transformer(directories["llama"]), Linear, PathAttention(), choose.PrefixCache(CACHE))
    executor.forward([conversation[:64], [*conversation[:64], 1]])
    token_bytes = executor.cache.stats.nbytes // 64
    gathered = []

    class _Counts(choose.PrefixCache):
        def put(self, key, scope, tokens, payload, nbytes):
            gathered.append(tokens)
            super().put(key, scope, tokens, payload, nbytes)

    executor.cache = _Counts(1000 * token_bytes)
    executor.forward([conversation[:turn] for turn in range(32, 641, 32)])
    assert gathered == [384, 608]  # the last, and the last that fits beside it
    assert executor.cache.stats.evicted == 0


class _Leaks(PathAttention):
    """Lets each query look at every key of its run: the usual mistake."""

    name = "leaks"

    def prepare(self, runs, prefix_tokens, rows, device):
        attend = super().prepare(runs, prefix_tokens, rows, device)

        def leaking(query, held, scale):
            return attend(query.flip(0), held, scale)

        return leaking


class _Fails(PathAttention):
    name = "fails"

    def prepare(self, runs, prefix_tokens, rows, device):
        raise RuntimeError("no such kernel")


@pytest.mark.parametrize("attention", [_Leaks, _Fails])
def test_a_form_that_is_wrong_on_this_device_is_not_used(directories, attention, monkeypatch, caplog):
    monkeypatch.setattr(choose, "_candidates", lambda name, cuda: [attention()])
    with caplog.at_level(logging.INFO):
        backbone = load_backbone(str(directories["qwen3"]), device="cpu")
    assert backbone.executor.name == "masked"
    assert f"attention {attention.name}" in caplog.text
    texts = _mix(np.random.default_rng(8), 9, 100, 49_152)
    alone_BD = _alone(_transformer(directories["qwen3"]), texts)
    torch.testing.assert_close(backbone.forward(texts), alone_BD, atol=1e-5, rtol=1e-5)
    with pytest.raises(BackboneError, match="EXECUTOR=auto"):
        load_backbone(str(directories["qwen3"]), device="cpu", options=ExecutorOptions(executor="packed"))


def test_of_several_right_forms_the_fastest_is_taken(directories, monkeypatch):
    seconds = {"masked": 0.2, "path": 0.1, "flex": 0.3}
    monkeypatch.setattr(choose, "_candidates", lambda name, cuda: [MaskedAttention(), PathAttention(), FlexAttention()])
    monkeypatch.setattr(choose, "_seconds", lambda decoder, device: seconds[decoder.attention.name])
    assert load_backbone(str(directories["llama"]), device="cpu").executor.attention.name == "path"


def test_without_a_compiler_the_packed_executor_runs_uncompiled(directories, monkeypatch, caplog):
    """torch.compile on CUDA needs Triton, which needs a C compiler: slim images have none."""

    def no_compiler(function, **options):
        def fails(*arguments):
            raise RuntimeError("Failed to find C compiler")

        return fails

    monkeypatch.setattr(torch, "compile", no_compiler)
    monkeypatch.setattr(choose, "_candidates", lambda name, cuda: [PathAttention()])
    model = _transformer(directories["llama"])
    texts = _mix(np.random.default_rng(11), 9, 100, 49_152)
    alone_BD = _alone(model, texts)
    executor = choose._packed(model, "cuda", "float32", ExecutorOptions(), texts, alone_BD)  # its CUDA path, on a CPU
    torch.testing.assert_close(executor.forward(texts), alone_BD, atol=1e-5, rtol=1e-5)
    assert "without torch.compile" in caplog.text


def test_other_architectures_run_as_transformers_runs_them(directories, tmp_path, monkeypatch):
    """GPT-NeoX is packed under a mask; a Mistral whose layers see a window only is padded."""
    import shutil

    from transformers import AutoTokenizer, GPTNeoXConfig, GPTNeoXModel, MistralConfig, MistralModel

    small = {
        "vocab_size": 49_152,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "initializer_range": 0.5,
    }
    torch.manual_seed(0)
    for name, model, executor in (
        ("neox", GPTNeoXModel(GPTNeoXConfig(**small)), "masked"),
        ("window", MistralModel(MistralConfig(**small, num_key_value_heads=2, sliding_window=8)), "padded"),
    ):
        folder = tmp_path / name
        model.save_pretrained(folder)
        AutoTokenizer.from_pretrained(directories["llama"]).save_pretrained(folder)
        shutil.copy(directories["llama"] / "chat_template.jinja", folder)
        backbone = load_backbone(str(folder), device="cpu", dtype="float32")
        assert backbone.executor.name == executor
        texts = _mix(np.random.default_rng(9), 9, 100, 49_152)
        torch.testing.assert_close(backbone.forward(texts), _alone(_transformer(folder), texts), atol=1e-5, rtol=1e-5)
        with pytest.raises(BackboneError, match="EXECUTOR=packed does not run this model, because"):
            load_backbone(str(folder), device="cpu", options=ExecutorOptions(executor="packed"))


def test_quantised_weights_are_left_to_transformers(directories):
    model = _transformer(directories["llama"])
    assert unsupported(model) is None
    product = model.layers[1].mlp.up_proj
    model.layers[1].mlp.up_proj = type("Linear8bit", (torch.nn.Linear,), {})(product.in_features, product.out_features)
    assert unsupported(model) == "its weights are quantised"


def test_products_that_a_cpu_lacks_are_not_used(monkeypatch):
    """oneDNN's bfloat16 raises on a CPU without AVX-512."""

    class _NoBfloat16(PrepackedLinear):
        def __init__(self, weight_OI, bias_O):
            if weight_OI.dtype == torch.bfloat16:
                raise RuntimeError("bf16 path needs the cpu support")
            super().__init__(weight_OI, bias_O)

    monkeypatch.setattr(linears, "PrepackedLinear", _NoBfloat16)
    assert linear_for("cpu", "bfloat16") is Linear
    assert linear_for("cpu", "float32") is _NoBfloat16


def test_products_equal_the_frameworks_own():
    generator = torch.Generator().manual_seed(0)
    weight, bias = torch.randn(48, 32, generator=generator), torch.randn(48, generator=generator)
    x, other = torch.randn(33, 32, generator=generator), torch.randn(33, 48, generator=generator)
    plain, packed, small = Linear(weight, bias), PrepackedLinear(weight, bias), Float8Linear(weight, bias)
    assert linear_for("cpu", "float32") is PrepackedLinear
    assert linear_for("cuda:0", "float8") is Float8Linear
    for form in ("__call__", "silu", "times", "plus"):
        arguments = (x, other) if form in ("times", "plus") else (x,)
        exact = getattr(plain, form)(*arguments)
        torch.testing.assert_close(getattr(packed, form)(*arguments), exact, atol=1e-5, rtol=1e-5)
        rough = getattr(small, form)(*(tensor.bfloat16() for tensor in arguments)).float()
        assert (rough - exact).norm() / exact.norm() < 0.06  # three bits of mantissa


def test_what_is_kept_shows_in_the_metrics_of_a_worker(directories, tmp_path):
    from benchmarks.random_checkpoint import checkpoint_on
    from service.observability.metrics import WorkerMetrics
    from service.runtime.engine import open_worker
    from service.settings import Settings

    checkpoint = checkpoint_on(load_backbone(str(directories["llama"]), device="cpu"))
    metrics = WorkerMetrics()
    opened = open_worker(Settings(prefix_cache_mb=1, device="cpu"), checkpoint, metrics)
    try:
        value = metrics.registry.get_sample_value
        prompt = list(range(100, 164))
        for ending in range(3):
            opened.worker.base_rewards([[*prompt, ending]], timeout_s=60)
        assert 0 < value("metareward_prefix_cache_bytes") <= 1 << 20
        assert value("metareward_prefix_cache_reused_tokens") >= 64
    finally:
        opened.worker.stop(drain=False, timeout_s=10)


def _documented_varlen(
    query,
    key,
    value,
    cu_seq_q,
    cu_seq_k,
    max_q,
    max_k,
    *,
    scale,
    window_size,
    enable_gqa,
    seqused_k=None,
    block_table=None,
):
    """What torch documents of its CUDA kernel, a query at a time."""
    assert window_size == (-1, 0)
    assert enable_gqa == (query.shape[1] != key.shape[-2])
    group = query.shape[1] // key.shape[-2]
    out = torch.empty_like(query)
    for index, (start, stop) in enumerate(zip(cu_seq_q[:-1].tolist(), cu_seq_q[1:].tolist(), strict=True)):
        if block_table is None:
            rows = slice(int(cu_seq_k[index]), int(cu_seq_k[index + 1]))
            own_key, own_value = key[rows], value[rows]
        else:
            used = int(seqused_k[index])
            own_key, own_value = (pool[block_table[index].long()].flatten(0, 1)[:used] for pool in (key, value))
        own_key, own_value = (part.repeat_interleave(group, dim=1) for part in (own_key, own_value))
        assert stop - start <= max_q
        assert len(own_key) <= max_k
        for at in range(start, stop):
            seen = len(own_key) - (stop - 1 - at)
            weights_HS = (torch.einsum("hd,shd->hs", query[at], own_key[:seen]) * scale).softmax(dim=-1)
            out[at] = torch.einsum("hs,shd->hd", weights_HS, own_value[:seen])
    return out


@pytest.mark.parametrize("page", [None, 16])
def test_varlen_is_asked_for_what_the_mask_says(directories, page, monkeypatch):
    """The kernel runs on CUDA only; here a plain loop stands in its place, under kept prefixes too."""
    model = _transformer(directories["qwen3"])
    texts = _mix(np.random.default_rng(10), 9, 90, 49_152)
    alone_BD = _alone(model, texts)
    executor = PackedDecoder(model, Linear, VarlenAttention(page), choose.PrefixCache(CACHE))
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", _documented_varlen)
    for _ in range(2):
        assert ((executor.forward(texts) - alone_BD) @ _heads(alone_BD.shape[1]).T).abs().max() < 1e-5
    assert executor.cache.stats.tokens_reused > 0


@pytest.mark.parametrize("page", [None, 16])
def test_this_torch_takes_the_call_of_varlen(page):
    """Shapes and arguments only: its kernel needs CUDA."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    runs = [Run(0, 40, (Piece(-1, 0, 40),)), Run(40, 48, (Piece(0, 0, 32), Piece(-1, 40, 48)))]
    attend = VarlenAttention(page).prepare(runs, [32], 48, torch.device("cpu"))
    with FakeTensorMode(allow_non_fake_inputs=True):
        query, key = torch.empty(48, 4, 64), torch.empty(48, 2, 64)
        prefix = torch.empty(32, 2, 64)
        assert attend(query, KeyValues([(prefix, prefix)], (key, key)), 0.125).shape == (48, 256)
