"""BLEU of real sentences for every form of exported model, beside fairseq's.

    python -m benchmarks.export_bleu checkpoint_best.pt --data data-bin \\
        --sentencepiece-model spm.model --source valid.en --reference valid.de

The first lines (``--sentences``), beam 4. Writes export_bleu.json and export_bleu.md beside it.
"""

import argparse
import json
import logging
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import sacrebleu
import torch

from benchmarks.speed.machine import describe, measured_on
from resmlp_mt.command_line import command
from resmlp_mt.engine import model_folder
from resmlp_mt.engine.onnx_export import export_int8, export_onnx
from resmlp_mt.engine.options import SearchOptions
from resmlp_mt.engine.translator import Translator
from resmlp_mt.fairseq_plugin.conversion import (
    build_shortlist,
    load_trained,
    read_training_text,
)
from resmlp_mt.files import write_text
from resmlp_mt.machine import computes_in_bfloat16
from resmlp_mt.models import resmlp_mt  # noqa: F401  registers the architectures

HERE = Path(__file__).resolve().parent
BEAM = 4
REFERENCE = "fairseq-interactive"


def fairseq(args: argparse.Namespace, lines: list[str]) -> list[str]:
    """Translate with fairseq's generator."""
    command = [
        sys.executable, "-m", "fairseq_cli.interactive", args.data, "--user-dir", "resmlp_mt",
        "--cpu", "--path", args.checkpoint, "--beam", BEAM, "--buffer-size", len(lines),
        "--batch-size", 32, "--bpe", "sentencepiece",
        "--sentencepiece-model", args.sentencepiece_model,
    ]  # fmt: skip
    done = subprocess.run(
        [str(word) for word in command],
        input="\n".join(lines) + "\n",
        cwd=HERE.parent,
        stdout=subprocess.PIPE,
        encoding="utf-8",
        check=True,
    )
    return re.findall(r"^D-\d+\t\S+\t(.*)$", done.stdout, re.MULTILINE)


def exported(
    dtype: str, onnx: bool = False, shortlist: bool = False
) -> Callable[[argparse.Namespace, list[str]], list[str]]:
    """Translate with an exported folder."""

    def translate(args: argparse.Namespace, lines: list[str]) -> list[str]:
        loaded = load_trained(args.checkpoint, args.data, args.sentencepiece_model)
        if shortlist:
            loaded.shortlist = build_shortlist(read_training_text(args.data, loaded), loaded)
        graphs = export_int8 if dtype == "int8" else export_onnx
        with tempfile.TemporaryDirectory() as folder:
            model_folder.save(loaded, Path(folder) / "model", dtype, graphs if onnx else None)
            loaded = model_folder.load(Path(folder) / "model")
        translator = Translator(
            loaded, SearchOptions(beam=BEAM), batch_size=32, use_shortlist=shortlist
        )
        return [translations[0].text for translations in translator.translate(lines)]

    return translate


BACKENDS = {
    REFERENCE: fairseq,
    "safetensors, float32": exported("float32"),
    "safetensors, int8": exported("int8"),
    "safetensors, int8, shortlist": exported("int8", shortlist=True),
    "ONNX, float32": exported("float32", onnx=True),
    "ONNX, int8": exported("int8", onnx=True),
    "ONNX, int8, shortlist": exported("int8", onnx=True, shortlist=True),
}
if computes_in_bfloat16():
    BACKENDS["safetensors, bfloat16"] = exported("bfloat16")


@command
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--data", type=Path, required=True, help="binarised data")
    parser.add_argument("--sentencepiece-model", type=Path, required=True)
    parser.add_argument("--source", type=Path, required=True, help="raw text")
    parser.add_argument("--reference", type=Path, required=True, help="raw text")
    parser.add_argument("--sentences", type=int, default=200)
    args = parser.parse_args()
    logging.getLogger("fairseq").setLevel(logging.WARNING)
    source, reference = (
        path.read_text(encoding="utf-8").splitlines()[: args.sentences]
        for path in (args.source, args.reference)
    )
    bleu = sacrebleu.BLEU()
    rows: list[dict[str, object]] = []
    translations: dict[str, list[str]] = {}
    for name, translate in BACKENDS.items():
        translations[name] = translate(args, source)
        score = bleu.corpus_score(translations[name], [reference]).score
        same = sum(a == b for a, b in zip(translations[name], translations[REFERENCE], strict=True))
        rows.append({"export": name, "bleu": score, "same_as_fairseq": same})
    machine = describe(torch.get_num_threads())
    setting = (
        f"First {len(source)} sentences of {args.source.name}, beam {BEAM}; sacreBLEU "
        f"{bleu.get_signature()}. {measured_on(machine)}"
    )
    head = ["# BLEU of exported models", "", "Written by `benchmarks/export_bleu.py`.", ""]
    lines = [*head, "| export | BLEU | same as fairseq's |", "|-|-:|-:|"]
    lines += [
        f"| {row['export']} | {row['bleu']:.2f} | {row['same_as_fairseq']} of {len(source)} |"
        for row in rows
    ]
    if not computes_in_bfloat16():
        lines.append("| safetensors, bfloat16 | not measured: no support in this processor | |")
    text = "\n".join([*lines, "", setting, ""])
    report = {"setting": setting, "machine": machine, "rows": rows}
    write_text(HERE / "export_bleu.json", json.dumps(report, indent=1) + "\n")
    write_text(HERE / "export_bleu.md", text)
    print(text)


if __name__ == "__main__":
    main()
