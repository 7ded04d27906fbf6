"""Best-of-n for simulated people: what does a person get from the answer that their own reward likes best?

SmolLM2-135M-Instruct wrote 16 answers to every prompt. People with known tastes, whom no checkpoint has seen, tell a
server 10 choices between answers to other prompts. Then everybody gets, of the 16 answers to each new prompt, the
first, the one that the population's reward likes best, and the one that their own reward likes best; what they truly
think of it is known.

Usage: .venv/bin/python examples/best_of_n.py                      all of it, a quarter of an hour, longer on busy cores
       .venv/bin/python examples/best_of_n.py --studies demo       SmolLM2's answers, the demo checkpoint: three minutes
       .venv/bin/python examples/best_of_n.py --sample NEW.jsonl   with answers sampled anew: a quarter of an hour more

The studies: `demo`, the demo checkpoint on SmolLM2's answers; `onboarding`, the same, but people choose between answers
as the checkpoint was trained on; `again`, that with other people and other prompts; `all`, with other people again and
all these prompts; `trained`, a checkpoint trained here on other people's choices, some of them between SmolLM2's
answers; `simulator`, the demo checkpoint where all answers are as it was trained on. A server is started for each;
`--url` asks one that runs (not for `trained`). docs/rlhf/best-of-n.md tells what came out.
"""

from __future__ import annotations

import argparse
import json
import os
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

from best_of_n_study import in_domain, picture, worlds
from best_of_n_study.people import draw_people
from best_of_n_study.server import serving
from best_of_n_study.study import as_json, run, table
from metareward_client import Client

STUDIES = {
    "demo": "SmolLM2's answers, demo checkpoint",
    "onboarding": "SmolLM2's answers, demo checkpoint, pairs of simulated answers",
    "again": "the same once more: other people, other prompts",
    "all": "the same with all 48 prompts, other people again",
    "trained": "SmolLM2's answers, checkpoint trained on them",
    "simulator": "the simulator's answers, demo checkpoint",
}
OTHERS = {"onboarding": 0, "again": 1, "all": 2}
"""Studies with pairs of simulated answers: what is added to the seed of their people."""

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
        "--folder",
        type=Path,
        default=Path("runs/best-of-n"),
        help="Where `trained` trains, and everybody's gains are kept (%(default)s).",
    )
    parser.add_argument("--plot", type=Path, help="Where to draw all studies in FOLDER/gains.json, a PNG.")
    arguments = parser.parse_args()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    answers_file = arguments.sample or worlds.KEPT
    gains_file = arguments.folder / "gains.json"
    for name in arguments.studies:
        world = worlds.simulator() if name == "simulator" else worlds.smollm2(answers_file)
        if name in OTHERS:
            world = replace(world, told_about=worlds.simulator().told_about)
        if name in {"again", "all"}:
            others_judged = worlds.other_answers(answers_file)
            world = replace(world, judged=others_judged if name == "again" else {**world.judged, **others_judged})
        people = draw_people(arguments.people, arguments.seed + OTHERS.get(name, 0), world.told_about)
        checkpoint = None
        if name == "trained":
            answers = worlds.training_answers(answers_file)
            others = draw_people(in_domain.PEOPLE, SEEN_SEED + arguments.seed, answers)
            checkpoint = in_domain.train(others, answers, arguments.folder, "minilm")
        with (
            nullcontext(arguments.url) if arguments.url else serving(checkpoint) as url,
            Client(url, timeout=TIMEOUT_S) as client,
        ):
            study = run(client, world, people, STUDIES[name])
        print(table(study), flush=True)
        found = json.loads(gains_file.read_text(encoding="utf-8")) if gains_file.exists() else {}
        found[study.name] = as_json(study)
        gains_file.parent.mkdir(parents=True, exist_ok=True)
        ordered = {title: found[title] for title in STUDIES.values() if title in found}
        gains_file.write_text(json.dumps(ordered) + "\n", encoding="utf-8")
    if arguments.plot:
        picture.draw(arguments.plot, ordered)


if __name__ == "__main__":
    main()
