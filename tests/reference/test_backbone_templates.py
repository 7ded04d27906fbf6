"""Chat rendering: BOS once, the date fixed, truncation from the start, errors without an echo."""

from __future__ import annotations

import random
import threading

import pytest
from models import smollm2_gguf

from service.backbone.prompt_memo import PromptMemo
from service.backbone.protocol import TextTooLong, UnrenderableText
from service.backbone.templates import ChatTemplateRenderer

BOS = "<|endoftext|>"
BARE = "{{ bos_token }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
SKYWORK_LIKE = (
    "{{ bos_token }}{% for m in messages %}"
    "<|im_start|>{{ m['role'] }}\n\n{{ m['content'] | trim }}<|im_end|>{% endfor %}"
)
DATED = (
    "\n{% if not date_string is defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}"
    "Today is {{ date_string }}, or {{ strftime_now('%A, %Y-%m-%d') }}. {{ messages[0]['content'] }}"
)
STRICT = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system: ' + messages[0]['content']) }}{% endif %}ok"
)
PROMPT = [{"role": "user", "content": "What is a tide?"}]


@pytest.fixture(scope="module")
def load(tmp_path_factory):
    from transformers import AutoTokenizer

    file = smollm2_gguf()
    saved = tmp_path_factory.mktemp("tokenizer")
    AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(saved)

    def load(template=None, **special):
        tokenizer = AutoTokenizer.from_pretrained(saved, **special)
        if template is not None:
            tokenizer.chat_template = template
        return tokenizer

    return load


def adds_bos(tokenizer):
    """A tokenizer that puts BOS before every text, as those of Llama 3 do."""
    from tokenizers.processors import TemplateProcessing

    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, tokenizer.bos_token_id)]
    )
    assert tokenizer("x").input_ids[0] == tokenizer.bos_token_id
    return tokenizer


def test_a_doubled_bos_is_dropped_as_the_skywork_model_card_does(load):
    tokenizer = adds_bos(load(SKYWORK_LIKE, bos_token=BOS))
    renderer = ChatTemplateRenderer(tokenizer, 4096, "test")
    text = tokenizer.apply_chat_template([*PROMPT, {"role": "assistant", "content": "Water."}], tokenize=False)
    assert text.startswith(BOS)
    card = tokenizer(text[len(BOS) :]).input_ids  # strips it from the text, and lets the tokenizer add its own
    assert list(renderer.tokenise(PROMPT, "Water.", truncate=False).token_ids) == card
    assert tokenizer(text).input_ids == [tokenizer.bos_token_id, *card]  # what goes wrong without


def test_a_text_that_brings_its_own_bos_does_not_double_it(load):
    tokenizer = load(BARE, bos_token=BOS)
    renderer = ChatTemplateRenderer(tokenizer, 4096, "test")
    plain = renderer.tokenise(PROMPT, "Water.", truncate=False)
    assert plain.token_ids[0] == tokenizer.bos_token_id
    brought = [{"role": "user", "content": BOS + BOS + "What is a tide?"}]
    assert renderer.tokenise(brought, "Water.", truncate=False) == plain


def test_a_rendered_text_that_has_bos_does_not_get_another(load):
    renderer = ChatTemplateRenderer(adds_bos(load(BARE, bos_token=BOS)), 4096, "test")
    plain = renderer.tokenise_text("What is a tide?", add_special_tokens=True)
    assert plain[:2].count(renderer.tokenise_text(BOS, add_special_tokens=False)[0]) == 1
    assert renderer.tokenise_text(f"{BOS}What is a tide?", add_special_tokens=True) == plain
    for special in (True, False):
        bare, doubled = (renderer.tokenise_text(BOS * n + "x", add_special_tokens=special) for n in (1, 3))
        assert doubled == bare
        assert bare[0] == plain[0] != bare[1]


def test_every_text_with_a_doubled_bos_is_noted_and_a_bos_further_on_is_kept(load):
    renderer = ChatTemplateRenderer(adds_bos(load(BARE, bos_token=BOS)), 4096, "test")
    noted = []
    renderer.doubled_bos.noted = lambda: noted.append(1)
    bos = renderer.doubled_bos.bos
    prompt, completion = [{"role": "user", "content": "Why?"}], f"{BOS}{BOS}Water."
    ids = list(renderer.tokenise(prompt, completion, truncate=False).token_ids)
    assert ids.count(bos) == 3, "those of a completion are its own"
    renderer.tokenise_text("x", add_special_tokens=True)
    renderer.tokenise_text(f"x{BOS}{BOS}", add_special_tokens=True)
    assert noted == []
    renderer.tokenise([{"role": "user", "content": f"{BOS}Why?"}], "Water.", truncate=False)
    renderer.tokenise_text(f"{BOS}x", add_special_tokens=True)
    assert noted == [1, 1]


def test_rewards_do_not_change_at_midnight(load):
    tokenizer = load(DATED)
    renderer = ChatTemplateRenderer(tokenizer, 4096, "test")
    ids = renderer.tokenise(PROMPT, "Water.", truncate=False).token_ids
    assert tokenizer.decode(ids) == "\nToday is 26 Jul 2024, or Friday, 2024-07-26. What is a tide?"


@pytest.mark.parametrize("limit", [4, 12, 30])
def test_truncation_keeps_bos_and_the_end(load, limit):
    tokenizer = load(SKYWORK_LIKE, bos_token=BOS)
    whole = ChatTemplateRenderer(tokenizer, 4096, "test").tokenise(PROMPT, "Water. " * 20, truncate=True)
    assert not whole.truncated
    renderer = ChatTemplateRenderer(tokenizer, limit, "test")
    short = renderer.tokenise(PROMPT, "Water. " * 20, truncate=True)
    assert short.truncated
    assert short.token_ids == (tokenizer.bos_token_id, *whole.token_ids[len(whole.token_ids) - limit + 1 :])
    with pytest.raises(TextTooLong) as refused:
        renderer.tokenise(PROMPT, "Water. " * 20, truncate=False)
    assert (refused.value.tokens, refused.value.limit) == (len(whole.token_ids), limit)
    assert "Water" not in str(refused.value)


def test_truncation_without_bos_keeps_the_end(load):
    tokenizer = load("{% for m in messages %}{{ m['content'] }}{% endfor %}", bos_token=BOS)
    whole = ChatTemplateRenderer(tokenizer, 4096, "test").tokenise(PROMPT, "Water. " * 5, truncate=True)
    short = ChatTemplateRenderer(tokenizer, 7, "test").tokenise(PROMPT, "Water. " * 5, truncate=True)
    assert short.token_ids == whole.token_ids[-7:]


def test_a_text_of_exactly_the_limit_is_whole(load):
    tokenizer = load()
    whole = ChatTemplateRenderer(tokenizer, 4096, "test").tokenise(PROMPT, "Water.", truncate=False)
    exact = ChatTemplateRenderer(tokenizer, len(whole.token_ids), "test")
    assert exact.tokenise(PROMPT, "Water.", truncate=False) == whole


def test_what_the_template_refuses_is_the_callers_error_and_is_not_echoed(load):
    renderer = ChatTemplateRenderer(load(STRICT), 4096, "test")
    with pytest.raises(UnrenderableText, match="refused by this model's chat template") as refused:
        renderer.tokenise([{"role": "system", "content": "secret"}, *PROMPT], "Water.", truncate=False)
    assert "secret" not in str(refused.value)
    with pytest.raises(UnrenderableText, match="not valid Unicode"):
        ChatTemplateRenderer(load(), 4096, "test").tokenise(PROMPT, "\udcff", truncate=False)


# As published templates treat an answer that says nothing: kept, trimmed, before an end that only the last turn has.
KEEPING = [
    None,
    SKYWORK_LIKE,
    BARE,
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}{% if loop.last %}<|im_end|>{% endif %}\n"
    "{% endfor %}",
]
# And left out, left without its header, refused.
LOSING = [
    "{% for m in messages %}{% if m['content'] %}<|im_start|>{{ m['content'] }}<|im_end|>{% endif %}{% endfor %}",
    "{% for m in messages %}{% if m['content'] | trim %}<|im_start|>{{ m['content'] }}{% endif %}\n{% endfor %}",
    "{% for m in messages %}{{ m['content'] or raise_exception('nothing is said') }}{% endfor %}",
]


@pytest.mark.parametrize("template", KEEPING)
@pytest.mark.parametrize("blank", ["", " ", "\n\t"])
def test_an_empty_answer_is_rendered_as_the_template_renders_any(load, template, blank):
    tokenizer = load(template, bos_token=BOS)
    renderer = ChatTemplateRenderer(tokenizer, 4096, "test")
    prompt = [{"role": "user", "content": "What does \ue000 stand for?"}]
    conversation = [*prompt, {"role": "assistant", "content": blank}]
    expected = tokenizer.apply_chat_template(conversation, tokenize=False)
    memo = PromptMemo()
    for completion in (blank, "Nothing.", blank):  # before and behind one that shows where the prompt ends
        ids = renderer.tokenise(prompt, completion, truncate=False, memo=memo).token_ids
        assert completion != blank or list(ids) == tokenizer(expected, add_special_tokens=False).input_ids
        assert ids == renderer.tokenise(prompt, completion, truncate=False).token_ids


@pytest.mark.parametrize("template", LOSING)
def test_an_empty_answer_that_the_template_drops_is_refused_and_others_are_not(load, template):
    renderer = ChatTemplateRenderer(load(template, bos_token=BOS), 4096, "test")
    assert renderer.tokenise(PROMPT, "Water.", truncate=False)
    with pytest.raises(UnrenderableText, match=r"is empty or blank, .* reward of your own"):
        renderer.tokenise(PROMPT, "", truncate=False)


def test_template_id_names_template_and_tokenizer_and_nothing_else(load):
    def identity(tokenizer, limit=4096):
        return ChatTemplateRenderer(tokenizer, limit, "test").template_id

    assert identity(load()) == identity(load(), limit=17)
    padded = load()
    padded.backend_tokenizer.enable_padding()
    padded.backend_tokenizer.enable_truncation(8)
    assert identity(padded) == identity(load())
    assert len({identity(load()), identity(load(BARE)), identity(load(BARE, bos_token=BOS))}) == 3


PIECES = [*"aZ 09.,'\n\t", "  ", "\r\n", " the", "water", "\u00e9", "e\u0301", "\u3042", "\U0001f30a", "\u00a0", BOS,
          "<|im_start|>", "<|im_end|>", "<|im_start|>assistant\n", "<|", "|>", "assistant", "user"]  # fmt: skip


@pytest.mark.parametrize("template", [None, SKYWORK_LIKE, BARE, SKYWORK_LIKE + "\n", BARE + "<|im_end|>"])
def test_a_prompt_that_is_tokenised_once_gives_the_same_ids(load, template):
    renderer = ChatTemplateRenderer(load(template, bos_token=BOS), 4096, "test")
    rng = random.Random(0)

    def text(most):
        return "".join(rng.choices(PIECES, k=rng.randint(0, most)))

    for _ in range(30):
        prompt = [{"role": "user", "content": text(12)}, {"role": "assistant", "content": text(4)}]
        prompt.append({"role": "user", "content": text(12)})
        completions = [text(8) for _ in range(6)] + ["", " ", "\n", prompt[-1]["content"]]
        memo = PromptMemo()
        for completion in completions:
            apart = renderer.tokenise(prompt, completion, truncate=False)
            assert renderer.tokenise(prompt, completion, truncate=False, memo=memo) == apart
        if template in (None, SKYWORK_LIKE):
            assert memo.cut > 0, "nothing was shared, so nothing was tested"


def test_a_text_is_cut_at_no_token_that_another_one_or_blanks_may_change(load):
    from tokenizers import AddedToken

    tokenizer = load(SKYWORK_LIKE, bos_token=BOS)
    assert "<|im_start|>" in ChatTemplateRenderer(tokenizer, 4096, "test")._seams._seams
    tokenizer.add_special_tokens(
        {
            "additional_special_tokens": [
                AddedToken("<blanks>", lstrip=True, special=True),
                AddedToken("<behind>", rstrip=True, special=True),
                AddedToken("end<|im", special=True),
                AddedToken("<|im_end|>.", special=True),
                AddedToken("[plain]", special=True),
                AddedToken("#x#", special=True),
            ]
        }
    )
    seams = ChatTemplateRenderer(tokenizer, 4096, "test")._seams._seams
    assert "[plain]" in seams
    assert {"<blanks>", "<behind>", "<|im_start|>", "<|im_end|>", "#x#"}.isdisjoint(seams)


def test_threads_may_share_a_renderer(load):
    renderer = ChatTemplateRenderer(load(), 64, "test")
    texts = [(PROMPT, "Water. " * count) for count in range(1, 30)]
    expected = [renderer.tokenise(*text, truncate=True) for text in texts]
    seen: list[bool] = []

    def tokenise():
        seen.extend([renderer.tokenise(*text, truncate=True) for text in texts] == expected for _ in range(5))

    threads = [threading.Thread(target=tokenise) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [True] * 30
