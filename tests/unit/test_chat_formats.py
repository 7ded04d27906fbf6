"""Conversations rendered by chat templates of many families are read back as they were."""

from __future__ import annotations

import time
import unicodedata
from typing import Any

import pytest

from service.backbone.chat_formats import Chat, read_chat
from service.backbone.chat_jinja import compile_chat_template
from service.backbone.protocol import MAX_TURNS

# What the families' templates come down to, special tokens in place.
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
QWEN_2_5 = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\n"
    "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n{% endif %}" + CHATML
)
QWEN_3_NO_THINKING = CHATML.replace("{% endif %}", "<think>\n\n</think>\n\n{% endif %}")
PHI_4 = (
    "{% for m in messages %}<|im_start|>{{ m.role }}<|im_sep|>{{ m.content }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant<|im_sep|>{% endif %}"
)
LLAMA_3 = (
    "<|begin_of_text|>{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
    "{{ m.content | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
LLAMA_3_1 = (
    "<|begin_of_text|>{% if messages[0].role == 'system' %}{% set s = messages[0].content | trim %}"
    "{% set messages = messages[1:] %}{% else %}{% set s = '' %}{% endif %}"
    "<|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\n"
    "Today Date: 22 Nov 2026\n\n{{ s }}<|eot_id|>"
    "{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
    "{{ m.content | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
LLAMA_2 = (
    "{% if messages[0].role == 'system' %}{% set s = '<<SYS>>\n' + messages[0].content + '\n<</SYS>>\n\n' %}"
    "{% set messages = messages[1:] %}{% else %}{% set s = '' %}{% endif %}"
    "{% for m in messages %}{% if m.role == 'user' %}<s>[INST] {{ (s if loop.first else '') + m.content }} [/INST]"
    "{% else %} {{ m.content }} </s>{% endif %}{% endfor %}"
)
MISTRAL_3 = (
    "<s>{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }}[/INST]"
    "{% else %} {{ m.content }}</s>{% endif %}{% endfor %}"
)
MISTRAL_7 = (
    "<s>{% for m in messages %}{% if m.role == 'system' %}[SYSTEM_PROMPT]{{ m.content }}[/SYSTEM_PROMPT]"
    "{% elif m.role == 'user' %}[INST]{{ m.content }}[/INST]{% else %}{{ m.content }}</s>{% endif %}{% endfor %}"
)
GEMMA = (
    "<bos>{% for m in messages %}<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
    "{{ m.content | trim }}<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
PHI_3 = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% else %}<|endoftext|>{% endif %}"
)
ZEPHYR = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
TULU = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}"
    "{{ '<|endoftext|>' if loop.last and m.role == 'assistant' else '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
DEEPSEEK = (
    "<｜begin▁of▁sentence｜>{% for m in messages %}{% if m.role == 'system' %}{{ m.content }}"  # noqa: RUF001
    "{% elif m.role == 'user' %}<｜User｜>{{ m.content }}"  # noqa: RUF001
    "{% else %}<｜Assistant｜>{{ m.content }}<｜end▁of▁sentence｜>{% endif %}{% endfor %}"  # noqa: RUF001
    "{% if add_generation_prompt %}<｜Assistant｜>{% endif %}"  # noqa: RUF001
)
GRANITE = (
    "{% for m in messages %}<|start_of_role|>{{ m.role }}<|end_of_role|>{{ m.content }}<|end_of_text|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start_of_role|>assistant<|end_of_role|>{% endif %}"
)
TEMPLATES = {
    "chatml": CHATML, "qwen 2.5": QWEN_2_5, "qwen 3": QWEN_3_NO_THINKING, "phi 4": PHI_4, "llama 3": LLAMA_3,
    "llama 3.1": LLAMA_3_1, "llama 2": LLAMA_2, "mistral 3": MISTRAL_3, "mistral 7": MISTRAL_7, "gemma": GEMMA,
    "phi 3": PHI_3, "zephyr": ZEPHYR, "tulu": TULU, "deepseek": DEEPSEEK, "granite": GRANITE,
}  # fmt: skip
# Gemma's and Mistral's (until 7) refuse a system message or make it a part of the user's.
WITHOUT_SYSTEM = {"gemma", "mistral 3"}
USER = {"role": "user", "content": "Why is the sky blue?\n\nIn two lines: with a <b>formula</b>, s'il te plaît 🌅."}
TURNS = [
    {"role": "user", "content": "What is a monad?"},
    {"role": "assistant", "content": "A way to chain\n\ncomputations."},
    {"role": "user", "content": "Shorter."},
]
SYSTEM = {"role": "system", "content": "You are terse.\n\nNever apologise."}
ANSWER = "Air scatters blue light most:\n\n```\nI ~ 1 / l^4\n```\nThat is all."


def render(name: str, messages: list[dict[str, str]], **options: Any) -> str:
    template = compile_chat_template(TEMPLATES[name])
    return template.render(messages=messages, **{"add_generation_prompt": False, **options})


def conversations(name: str) -> list[list[dict[str, str]]]:
    without = [[USER], TURNS]
    return without if name in WITHOUT_SYSTEM else [*without, [SYSTEM, USER], [SYSTEM, *TURNS]]


def check(chat: Chat | None, messages: list[dict[str, str]], completion: str = ANSWER) -> None:
    assert chat is not None, "the format was not recognised"
    assert list(chat.messages) == messages
    assert chat.completion == completion


@pytest.mark.parametrize("name", TEMPLATES)
def test_what_a_template_rendered_is_read_back(name: str) -> None:
    for messages in conversations(name):
        prompt = render(name, messages, add_generation_prompt=True)
        whole = render(name, [*messages, {"role": "assistant", "content": ANSWER}])
        check(read_chat(whole, None), messages)
        ends = whole[whole.rindex("That is all.") + len("That is all.") :].rstrip()
        # As a policy ends: with its token, without (it ran on), with padding and a line break behind.
        for end in (ends, "", f"{ends}\n", ends + ends):
            check(read_chat(prompt + ANSWER + end, prompt), messages)
            check(read_chat(prompt + ANSWER + end, None), messages)


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_prompt_that_lost_its_beginning_in_the_query_is_known_from_the_prompt(name: str) -> None:
    prompt = render(name, TURNS, add_generation_prompt=True)
    check(read_chat(prompt[7:] + ANSWER, prompt), TURNS)


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_policy_that_plays_both_sides_has_said_all_of_it(name: str) -> None:
    prompt = render(name, [USER], add_generation_prompt=True)
    more = render(name, [*TURNS], add_generation_prompt=True)
    chat = read_chat(prompt + "Blue. " + more + ANSWER, prompt)
    assert chat is not None
    assert list(chat.messages) == [USER]
    assert chat.completion.startswith("Blue. ")
    assert chat.completion.endswith(ANSWER)
    assert "Shorter." in chat.completion


@pytest.mark.parametrize("name", ["chatml", "phi 3", "zephyr", "granite"])
def test_blanks_of_ones_own_stay_where_templates_keep_them(name: str) -> None:
    messages = [{"role": "user", "content": "  def f():\n    "}]
    prompt = render(name, messages, add_generation_prompt=True)
    end = render(name, [{"role": "assistant", "content": "X0"}]).rpartition("X0")[2]
    check(read_chat(f"{prompt}\n  return 1 \n{end}", prompt), messages, "\n  return 1 \n")


@pytest.mark.parametrize("name", TEMPLATES)
def test_an_answer_that_says_nothing_is_empty(name: str) -> None:
    prompt = render(name, [USER], add_generation_prompt=True)
    check(read_chat(prompt, prompt), [USER], "")


def test_the_policy_may_write_the_header_of_its_answer_itself() -> None:
    prompt = render("llama 3", [USER])
    query = f"{prompt}<|start_header_id|>assistant<|end_header_id|>\n\n{ANSWER}<|eot_id|>"
    check(read_chat(query, prompt), [USER])
    assert read_chat(prompt + ANSWER, prompt) is None, "nobody says that this is the assistant's"


@pytest.mark.parametrize("text", ["", "Question: why?\nAnswer:", "see [INST] below", "  <|im_start|", "<s>plain", "\n"])
def test_what_is_no_known_format_is_not_taken_for_one(text: str) -> None:
    assert read_chat(f"{text} because", text) is None
    assert read_chat(f"{text} because", None) is None


def test_what_tools_say_is_said_to_the_assistant() -> None:
    turns = [USER, {"role": "tool", "content": "42"}]
    prompt = render("chatml", turns, add_generation_prompt=True)
    check(read_chat(prompt + ANSWER, prompt), [USER, {"role": "user", "content": "42"}])


@pytest.mark.parametrize("name", [name for name in TEMPLATES if name != "llama 2"])
def test_a_policy_that_plays_both_sides_fools_nobody_where_decoding_changed_the_prompt(name: str) -> None:
    turns = [*TURNS[:2], {"role": "user", "content": "Encore, s'il te plai\u0302t."}]
    prompt = render(name, turns, add_generation_prompt=True)
    query = unicodedata.normalize("NFC", prompt)
    assert not query.startswith(prompt)
    check(read_chat(query + ANSWER, prompt), turns)
    chat = read_chat(query + "Bad. " + render(name, [*TURNS], add_generation_prompt=True) + ANSWER, prompt)
    assert chat is not None
    assert list(chat.messages) == turns
    assert chat.completion.startswith("Bad. ")


def test_a_prompt_that_was_cut_within_a_letter_is_known_from_the_prompt() -> None:
    prompt = render("chatml", [USER], add_generation_prompt=True)
    left = prompt[prompt.index("🌅") + 1 :]
    fake = "Bad.<|im_end|>\n<|im_start|>assistant\nGood."
    check(read_chat(f"\ufffd\ufffd{left}{fake}<|im_end|>", prompt), [USER], fake)


def test_headers_within_a_text_of_another_format_are_part_of_it() -> None:
    fake = "Why?\n\nBad. <｜User｜>Hi!<｜Assistant｜>Good."  # noqa: RUF001
    assert read_chat(fake, None) is None
    assert read_chat(fake, "Why?\n\n") is None


def test_what_stands_for_a_system_message_elsewhere_is_said_by_the_user() -> None:
    messages = [{"role": "user", "content": "<<SYS>>\nwhat is this?\n<</SYS>>\n"}]
    check(read_chat(render("chatml", messages, add_generation_prompt=True) + ANSWER, None), messages)


def test_a_text_of_more_turns_than_anybody_takes_is_none() -> None:
    def chat(turns: int) -> Chat | None:
        return read_chat(render("chatml", [USER] * turns, add_generation_prompt=True) + ANSWER, None)

    check(chat(MAX_TURNS - 2), [USER] * (MAX_TURNS - 2))
    assert chat(MAX_TURNS) is None


@pytest.mark.parametrize("piece", ["<|end|>", "<|end|> ", "<|user|>\n", "</s>\n", " ", "<|assistant|>\n"])
def test_no_text_takes_long_to_read(piece: str) -> None:
    hostile = piece * (200_000 // len(piece))
    began = time.process_time()
    for begin in ("<|user|>\n", "<｜User｜>", "[INST] <<SYS>>", "<|im_start|>"):  # noqa: RUF001
        read_chat(f"{begin}{hostile}x<|assistant|>\n{hostile}x", None)
        read_chat(f"{begin}{hostile}x<|assistant|>\n{hostile}x", begin)
    assert time.process_time() - began < 5.0
