"""Texts that clients rendered, as token ids: the same as those of the messages, checked, and never too many."""

from __future__ import annotations

import pytest
import tokenizers
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.processors import TemplateProcessing

from service.backbone.protocol import TextTooLong, UnrenderableText
from service.backbone.templates import ChatTemplateRenderer
from service.backbone.tokenizer_files import FileTokenizer
from service.errors import InvalidInput
from service.operations.openrlhf import read_queries, users_of
from service.operations.rendered import checked_ids, rendered_text, tokenise_rendered
from service.operations.texts import RenderedText, Text, TextKeys

# A family that no table knows.
OWN = (
    "{{ bos_token }}{% for m in messages %}<<{{ m.role }}>> {{ m.content }} <<end>>{% endfor %}"
    "{% if add_generation_prompt %}<<assistant>> {% endif %}"
)
TRIMS = OWN.replace("m.content", "m.content | trim")
BARE = "{{ bos_token }}{% for m in messages %}{{ m.content }}\n{% endfor %}"
CHATML = "{{ bos_token }}{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
BOS, EOS = "[BOS]", "[EOS]"
USER = {"role": "user", "content": "Why is the sky blue?"}


def renderer(template: str = OWN, max_tokens: int = 200) -> ChatTemplateRenderer:
    """One token a byte, and BOS before every text, as Llama 3's tokenizer does."""
    alphabet = sorted(ByteLevel.alphabet())
    tokenizer = tokenizers.Tokenizer(BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.add_special_tokens([BOS, EOS])
    bos = tokenizer.token_to_id(BOS)
    tokenizer.post_processor = TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, bos)])
    return ChatTemplateRenderer(
        FileTokenizer(tokenizer, template, {"bos_token": BOS, "eos_token": EOS}, bos, None), max_tokens, "bytes"
    )


@pytest.mark.parametrize("template", [OWN, TRIMS])
@pytest.mark.parametrize("answer", ["Scattering.", "two\n\nlines ", ""])
@pytest.mark.parametrize("end", ["", " <<end>>", EOS, f" <<end>>{EOS}\n", f"{EOS}{EOS}"])
def test_a_text_in_the_backbones_own_unknown_template_is_scored_as_its_messages_are(template, answer, end):
    own = renderer(template)
    expected = own.tokenise([USER], answer, truncate=False).token_ids
    prompt = f"{BOS}<<user>> {USER['content']} <<end>><<assistant>> "
    (read,) = read_queries([f"{prompt}{answer}{end}"], [prompt], own)
    assert read.recognised
    assert isinstance(read.text, RenderedText)
    assert tokenise_rendered(own, read.text, truncate=False).token_ids == expected


def test_a_template_that_shows_no_seam_is_recognised_in_no_text():
    prompt = f"{BOS}Why?\n"
    (read,) = read_queries([f"{prompt}Because.{EOS}"], [prompt], renderer(BARE))
    assert not read.recognised
    assert read.text == Text([{"role": "user", "content": f"{BOS}Why?"}], f"Because.{EOS}", "query[0]")


@pytest.mark.parametrize(
    "query",
    [
        "Why, <b>Ada</b> ,\n is it so? Because.",  # decoding has put blanks of its own
        "<s> Why, <b>Ada</b>, is it so? Because.",
        f"{'asked ' * 20}Why, <b>Ada</b>, is it so? Because."[40:],  # too long, cut by the policy
    ],
)
def test_where_a_prompt_ends_is_found_though_the_query_begins_otherwise(query):
    prompt = f"{'asked ' * 20 if 'asked' in query else ''}Why, <b>Ada</b>, is it so?"
    (read,) = read_queries([query], [prompt], renderer())
    assert read.text == Text([{"role": "user", "content": prompt}], " Because.", "query[0]")


@pytest.mark.parametrize(
    ("query", "prompt"),
    [("Q: why? A: because", None), ("Q: why? A: because", "Q: who? A:"), ("because", ""), ("", None), ("Why", "Why?")],
)
def test_what_cannot_be_parted_is_refused_by_its_place(query, prompt):
    with pytest.raises(InvalidInput, match=r"query\[1\]: .*prompts\[1\]; send both"):
        read_queries(["Why? Because.", query], ["Why?", prompt], renderer())


def test_only_a_backbone_without_a_template_reads_chats_that_came_as_text():
    text = "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\nBecause.<|im_end|>\n"
    own = renderer(CHATML)
    assert rendered_text(text, "input[0]", own, add_special_tokens=True) == RenderedText(text, "input[0]", True)
    own.has_chat_template = False
    read = rendered_text(text, "input[0]", own, add_special_tokens=True)
    assert read == Text([{"role": "user", "content": "Why?"}], "Because.", "input[0]")
    plain = RenderedText("Why?\n\nBecause.", "input[0]", True)
    assert rendered_text("Why?\n\nBecause.", "input[0]", own, add_special_tokens=True) == plain


def test_ids_and_texts_keep_one_bos_and_their_end_when_they_are_shortened():
    own = renderer(max_tokens=5)
    bos = own.doubled_bos.bos
    for content, special in (("abcdefg", True), (f"{BOS}abcdefg", True), (f"{BOS}abcdefg", False)):
        text = RenderedText(content, "input[0]", special)
        with pytest.raises(TextTooLong, match="has 8 tokens"):
            tokenise_rendered(own, text, truncate=False)
        short = tokenise_rendered(own, text, truncate=True)
        assert short.truncated
        assert short.token_ids == (bos, *own.tokenise_text("defg", add_special_tokens=False))
    short = tokenise_rendered(own, RenderedText((bos, bos, *range(10)), "input[0]"), truncate=True)
    assert short.token_ids == (bos, 6, 7, 8, 9)
    short = tokenise_rendered(own, RenderedText(tuple(range(10)), "input[0]"), truncate=True)
    assert short.token_ids == (5, 6, 7, 8, 9), "nothing is put before a text that had nothing there"
    with pytest.raises(UnrenderableText, match="no tokens"):
        tokenise_rendered(own, RenderedText("", "input[0]"), truncate=True)


def test_a_text_that_came_with_a_bos_or_without_has_the_ids_of_its_messages():
    own = renderer()
    expected = own.tokenise([USER], "Scattering.", truncate=False).token_ids
    without = f"<<user>> {USER['content']} <<end>><<assistant>> Scattering. <<end>>"
    # verl takes BOS off, for the server's tokenizer puts one there; others leave it.
    for text in (
        RenderedText(without, "", True),
        RenderedText(BOS + without, "", True),
        RenderedText(BOS + without, ""),
    ):
        assert tokenise_rendered(own, text, truncate=False).token_ids == expected


def test_ids_lie_within_the_tokenizers_vocabulary_and_what_was_added_to_it():
    own = renderer()
    assert own.vocab_size == 258
    assert checked_ids([[0, 257]], "input", vocab_size=own.vocab_size) == [[0, 257]]
    for bad in ([258], [-1], [True], [1.0], [], "text", None, [[1]]):
        with pytest.raises(InvalidInput, match=r"input\[1\]: "):
            checked_ids([[1], bad], "input", vocab_size=own.vocab_size)


def test_no_two_texts_have_one_key():
    keys = TextKeys(b"secret", "template")
    rendered = [
        RenderedText("ab", ""),
        RenderedText("ab", "", True),
        RenderedText("abc", ""),
        RenderedText((97, 98), ""),
        RenderedText((97,), ""),
        RenderedText("a\0\0\0", ""),
    ]
    found = [keys.rendered(scope, text) for scope in ("", "acme") for text in rendered]
    found += [keys.text(keys.prompt("", [{"role": "user", "content": "a"}]), text) for text in ("b", "ab")]
    assert len(set(found)) == len(found)
    assert keys.rendered("", RenderedText("ab", "input[0]")) == keys.rendered("", RenderedText("ab", "query[5]"))


def test_labels_name_users_or_nobody():
    labels = ["ada", "", None, "  ", ' {"user_id": "bob"}', {"user_id": "eve"}, "{}", {"user_id": None}, {"answer": 3}]
    users = ["ada", None, None, None, "bob", "eve", None, None, None]
    assert users_of(labels, str.isalpha) == users


@pytest.mark.parametrize("label", ["7 apples", "{no json", '{"user_id": 7}', 7, 7.5, True, ["ada"], {"user_id": "a b"}])
def test_labels_that_name_no_user_are_refused_by_their_places(label):
    with pytest.raises(InvalidInput, match=r"^labels\[1\]: names no user") as refused:
        users_of(["ada", label], str.isalpha)
    assert len(refused.value.issues) == 1
