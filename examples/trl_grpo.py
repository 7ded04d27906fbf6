"""Train a policy with TRL's GRPO on eight people's own rewards. Run it beside `make serve`.

    pip install trl ./sdk
    python examples/trl_grpo.py                                      # a tiny random policy, made on the spot: a minute
    python examples/trl_grpo.py --model Qwen/Qwen3-0.6B --steps 200  # any chat model, by hub id or path

Eight people who like warmth, lists and examples, or do not, tell the server a dozen choices each. Then a policy that
is told for whom it writes is trained on what each of them would like. METAREWARD_URL and METAREWARD_API_KEY name
another server and a key of the role `adapt`.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from statistics import fmean

import torch
from datasets import Dataset
from metareward_client import Client, ConnectionFailed, Pair
from metareward_client.trl import reward_function
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import GRPOConfig, GRPOTrainer

TOLD = {
    "How do I keep basil alive indoors?": ["Give it six hours of light.", "Water it when dry.", "Pinch off flowers."],
    "What makes bread rise?": ["Yeast eats sugar.", "It gives off gas.", "The dough holds the bubbles."],
    "How can I sleep better?": ["Get up at one time.", "Keep the room dark.", "Skip late coffee."],
    "Why do cats purr?": ["Many purr when content.", "Some calm themselves.", "Kittens call their mother."],
}
ASKED = ["How do I repot a cactus?", "Why is the sky blue?", "How do I clean a pan?", "What is interest?"]
# A person's name says what they like: warmth or not, a list or prose, an example or none.
PEOPLE = {
    "-".join(names): tuple(name in ("warm", "list", "example") for name in names)
    for names in itertools.product(("warm", "sober"), ("list", "prose"), ("example", "bare"))
}


def answer(facts: list[str], warm: bool, as_list: bool, example: bool) -> str:
    """The same facts in one of eight manners."""
    parts = ["What a lovely question, I am so glad you ask!"] if warm else []
    parts += ["Here are the steps:", *(f"- {fact}" for fact in facts)] if as_list else [" ".join(facts)]
    parts += ["For example, a neighbour of mine does it just like this."] if example else []
    return ("\n" if as_list else " ").join(parts)


def choices(taste: tuple[bool, ...]) -> list[Pair]:
    """What a person of this taste says: of two answers that differ in one manner they choose theirs."""
    pairs = []
    for (prompt, facts), manner in itertools.product(TOLD.items(), range(len(taste))):
        other = [liked != (index == manner) for index, liked in enumerate(taste)]
        pairs.append(Pair(prompt=prompt, chosen=answer(facts, *taste), rejected=answer(facts, *other)))
    return pairs


def tiny_policy() -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """A random model whose words are those of the answers: it knows nothing, and needs no download."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    texts = [answer(facts, *taste) for facts in TOLD.values() for taste in PEOPLE.values()]
    words = Tokenizer(models.BPE())
    words.pre_tokenizer, words.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    special = ["<|end|>", "<|pad|>", "<|user|>", "<|assistant|>", "<|system|>"]
    words.train_from_iterator([*texts, *TOLD, *ASKED], trainers.BpeTrainer(special_tokens=special))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words)
    tokenizer.add_special_tokens({"eos_token": "<|end|>", "pad_token": "<|pad|>"})
    tokenizer.chat_template = (
        "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    size = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, **size)
    config.eos_token_id, config.bos_token_id = tokenizer.eos_token_id, None
    return LlamaForCausalLM(config), tokenizer


def main() -> None:
    """Adapt the people, then train."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="hub id or path of a chat model; a tiny random one without it")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--output", help="folder of the trained policy; nothing is kept without it")
    options = parser.parse_args()

    with Client() as server:
        try:
            server.ready(deadline=10)
        except ConnectionFailed as error:
            raise SystemExit(f"{error}\nStart the server first, with `make serve`.") from None
        for user, taste in PEOPLE.items():
            server.adapt(user, pairs=choices(taste))

    # `prompt` is what the policy reads and says for whom it writes; the reward model needs to read the question only.
    rows = [
        {
            "prompt": [{"role": "system", "content": f"You write for {user}."}, {"role": "user", "content": question}],
            "question": question,
            "user_id": user,
        }
        for question, user in itertools.product(ASKED, PEOPLE)
    ]
    gpu = torch.cuda.is_available()
    policy, tokenizer = (options.model, None) if options.model else tiny_policy()
    with tempfile.TemporaryDirectory() as scratch:
        trainer = GRPOTrainer(
            model=policy,
            processing_class=tokenizer,
            reward_funcs=reward_function(prompt_column="question"),
            train_dataset=Dataset.from_list(rows),
            args=GRPOConfig(
                output_dir=options.output or scratch,
                max_steps=options.steps,
                per_device_train_batch_size=32,
                num_generations=8,
                max_completion_length=24 if options.model is None else 256,
                learning_rate=1e-2 if options.model is None else 1e-6,
                logging_steps=1,
                save_strategy="no",
                report_to="none",
                bf16=gpu,
                use_cpu=not gpu,
            ),
        )
        trainer.train()
        if options.output:
            trainer.save_model()

    if trainer.is_world_process_zero():
        means = [log["rewards/personal_reward/mean"] for log in trainer.state.log_history if "loss" in log]
        print(f"{trainer.accelerator.num_processes} process(es), {trainer.state.global_step} steps")
        first, last = fmean(means[:5]), fmean(means[-5:])
        print(f"mean personal reward: {first:+.2f} in the first steps, {last:+.2f} in the last")


if __name__ == "__main__":
    main()
