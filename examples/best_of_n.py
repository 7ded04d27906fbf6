"""Best-of-n for simulated people: what does a person get from the answer that their own reward likes best?

SmolLM2-135M-Instruct wrote 16 answers to every prompt. People with known tastes, whom no checkpoint has seen, tell a
server 10 choices between answers to other prompts. Then everybody gets, of the 16 answers to each new prompt, the
first, the one that the population's reward likes best, and the one that their own reward likes best; what they truly
think of it is known.

Usage: .venv/bin/python examples/best_of_n.py                      all three studies, about ten minutes on two cores
       .venv/bin/python examples/best_of_n.py --studies demo       SmolLM2's answers, the demo checkpoint: three minutes
       .venv/bin/python examples/best_of_n.py --sample NEW.jsonl   with answers sampled anew: half an hour more

The studies: `demo`, the demo checkpoint on SmolLM2's answers; `trained`, a checkpoint trained here on other people's
choices between SmolLM2's answers to other prompts; `simulator`, the demo checkpoint on answers as it was trained on.
A server is started for each; `--url` asks one that runs (`demo` or `simulator`). docs/rlhf/best-of-n.md tells what came
out.
"""

from __future__ import annotations

import argparse
import json
import os
from contextlib import nullcontext
from pathlib import Path

from best_of_n_study import in_domain, picture, worlds
from best_of_n_study.people import draw_people
from best_of_n_study.server import serving
from best_of_n_study.study import Study, as_json, run, table
from metareward_client import Client

STUDIES = {
    "demo": "SmolLM2's answers, demo checkpoint",
    "trained": "SmolLM2's answers, checkpoint trained on them",
    "simulator": "the simulator's answers, demo checkpoint",
}
SEEN_SEED = 1_000
TIMEOUT_S = 600.0


def main() -> None:
    """Run the studies, print their tables, draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", nargs="+", choices=list(STUDIES), default=list(STUDIES))
    parser.add_argument("--people", type=int, default=120, help="People of each study (%(default)s).")
    parser.add_argument("--seed", type=int, default=0, help="Draws them (%(default)s).")
    parser.add_argument("--url", help="A server that runs; its users study-* are erased.")
    parser.add_argument("--sample", type=Path, help="Sample answers anew into this file, or take them from it.")
    parser.add_argument(
        "--folder", type=Path, default=Path("runs/best-of-n"), help="Where `trained` trains (%(default)s)."
    )
    parser.add_argument("--json", type=Path, help="Where to write every person's gains.")
    parser.add_argument("--plot", type=Path, help="Where to draw the picture, a PNG.")
    arguments = parser.parse_args()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    answers_file = arguments.sample or worlds.KEPT
    studies: list[Study] = []
    for name in arguments.studies:
        world = worlds.simulator() if name == "simulator" else worlds.smollm2(answers_file)
        people = draw_people(arguments.people, arguments.seed, world.told_about)
        checkpoint = None
        if name == "trained":
            answers = worlds.training_answers(answers_file)
            others = draw_people(in_domain.PEOPLE, SEEN_SEED + arguments.seed, answers)
            checkpoint = in_domain.train(others, answers, arguments.folder, "minilm")
        with (
            nullcontext(arguments.url) if arguments.url else serving(checkpoint) as url,
            Client(url, timeout=TIMEOUT_S) as client,
        ):
            studies.append(run(client, world, people, STUDIES[name]))
        print(table(studies[-1]), flush=True)
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps([as_json(study) for study in studies]) + "\n", encoding="utf-8")
    if arguments.plot:
        picture.draw(arguments.plot, studies)


if __name__ == "__main__":
    main()
