"""The model card of models/en-de, in the form of the Hugging Face hub, from what was measured.

    python -m benchmarks.model_card [FOLDER]

Reads ship_model.json, which benchmarks/ship_model.py writes, and writes README.md into FOLDER.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from benchmarks.readme import command_line
from resmlp_mt.command_line import command
from resmlp_mt.engine.pretrained import DEFAULT, FOLDER
from resmlp_mt.files import write_text

HERE = Path(__file__).resolve().parent
Json = dict[str, Any]

CARD = """\
---
{head}
---

# English-German for short everyday sentences

{name}, {parameters} million parameters, {size} MB in int8. It comes with `resmlp_mt`, which uses
it where no model is named:

    echo "Where is the station?" | python -m resmlp_mt.translate

## Data

{train} pairs of [Tatoeba](https://tatoeba.org), as
[manythings.org/anki](https://www.manythings.org/anki/)
selected them in May 2018, under [CC BY 2.0](https://creativecommons.org/licenses/by/2.0/). The
sentences are by the contributors of tatoeba.org; this model is published under the same licence.
Scores are on {test} held-out pairs. The training text has none of their sentences, in either
language, and they were not used to choose a checkpoint. Subwords: sentencepiece, {vocabulary}
pieces for both languages.

## Training

{updates} updates in {minutes} processor minutes with one {machine}, by `benchmarks/ship_model.py`:

    {options}

The learning rate falls with the inverse square root of the updates, and linearly to 0 over the
last {cooldown} of them.

## Scores

{beams}

Signatures: BLEU `{bleu}`, chrF `{chrf}`.

BLEU by the length of the source in words, beam {beam}:

{lengths}

Beside fairseq's Transformer, before rounding to int8 (`fairseq-generate`, beam {beam}):

{runs}

## What it is not for

* **Text other than short everyday sentences.** Long, technical or literary text and news are far
  from what it was trained on; the table by length shows where it begins to fail. Divide text into
  sentences first (`translate --split-sentences` and the server do this).
* **Other directions.** It translates from English to German only, sentence by sentence, and does
  not see the sentence before.
* **Cases where an error does harm**: medicine, law, safety, anything that nobody reads again. A
  wrong translation reads as fluently as a right one, and a low score is only a hint.

It also has these weaknesses:

* German has *du*, *Sie* and *ihr* for *you*, and the choice between them is arbitrary. So is the
  gender of professions.
* Numbers, rare names and words that are not in Tatoeba may be changed. Tom and Mary are by far the
  most frequent names.
* Volunteers wrote the training text, so it has their errors and views.
"""


def card(result: Json) -> str:
    """The card, from what ship_model.json holds when a model has been exported."""
    config, shipped = result["config"], result["shipped"]
    declared = config["models"][config["shipped"]["model"]]
    run = next(r for r in result["runs"] if config["shipped"].items() <= r.items())
    scores = shipped["beams"][str(config["beam"])]
    metrics = {"bleu": "BLEU", "chrf": "chrF"}
    head = ModelCardData(
        language=["en", "de"],
        license="cc-by-2.0",
        library_name="resmlp_mt",
        pipeline_tag="translation",
        tags=["translation", "resmlp", "fairseq"],
        datasets=["tatoeba"],
        metrics=list(metrics),
        model_name=f"resmlp_mt {DEFAULT}",
        eval_results=[
            EvalResult(
                task_type="translation",
                dataset_type="tatoeba",
                dataset_name="Tatoeba English-German, held-out sentences",
                dataset_config=DEFAULT,
                dataset_split="validation",
                metric_type=metric,
                metric_name=name,
                metric_value=round(scores[metric]["score"], 2),
            )
            for metric, name in metrics.items()
        ],
    )
    lengths = scores["by_length"]
    rates = ["--lr", str(declared["lr"]), "--warmup-updates", str(config["warmup_updates"])]
    return CARD.format(
        head=head.to_yaml(),
        name=declared["name"],
        parameters=f"{run['parameters'] / 1e6:.1f}",
        size=f"{shipped['bytes'] / 1e6:.1f}",
        train=f"{result['pairs']['train']:,}",
        test=f"{result['pairs']['test']:,}",
        vocabulary=f"{config['sets'][result['set']]['vocabulary']:,}",
        updates=f"{run['updates']:,}",
        minutes=f"{run['seconds'] / 60:.1f}",
        machine=run["machine"],
        options=command_line([*run["options"], *rates]),
        cooldown=f"{config['cooldown'] / (1 + config['cooldown']):.0%}",
        bleu=scores["bleu"]["signature"],
        chrf=scores["chrf"]["signature"],
        beam=config["beam"],
        beams=_table(
            ["`translate` with", "BLEU", "chrF"],
            [[f"--beam {beam}", *_scores(found)] for beam, found in shipped["beams"].items()],
        ),
        lengths=_table(
            ["words", *(part["bucket"] for part in lengths)],
            [
                ["sentences", *(f"{part['sentences']:,}" for part in lengths)],
                ["BLEU", *(f"{part['score']:.2f}" for part in lengths)],
            ],
        ),
        runs=_table(
            ["model", "parameters", "processor minutes", "updates", "BLEU", "chrF"],
            [
                [
                    config["models"][found["model"]]["name"],
                    f"{found['parameters'] / 1e6:.2f} M",
                    f"{found['seconds'] / 60:.1f}",
                    f"{found['updates']:,}",
                    *_scores(found),
                ]
                for found in result["runs"]
                if "bleu" in found
            ],
        ),
    )


def _scores(found: Json) -> list[str]:
    return [f"{found[metric]['score']:.2f}" for metric in ("bleu", "chrf")]


def _table(head: list[str], rows: list[list[str]]) -> str:
    ruler = ["-", *["-:"] * (len(head) - 1)]
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, ruler, *rows])


@command
def main() -> None:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, default=FOLDER / DEFAULT, metavar="FOLDER")
    args = parser.parse_args()
    result = json.loads((HERE / "ship_model.json").read_text(encoding="utf-8"))
    write_text(args.folder / "README.md", card(result))


if __name__ == "__main__":
    main()
