"""The output of ``fairseq-generate``: its S-, T-, H- and D- lines in corpus order."""

import re
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from resmlp_mt.errors import UserError
from resmlp_mt.scoring.cleaning import remove_subwords
from resmlp_mt.scoring.lines import Sentences, read_lines

# If a progress bar went to the same file, it precedes the next line.
LINE = re.compile(r"(?:\r[^\t]*\])?([STHD])-(\d{1,12})\t(.*)", re.DOTALL)
_LOADED = re.compile(r"fairseq\.data\.data_utils\W+loaded ([\d,]+) examples from: (.+)")
_SUBSET = re.compile(r"'gen_subset': '([^']+)'|Generate (\S+) with beam=")
# The folder of one process of --num-shards, in the path of its file.
_SHARD = re.compile(r"shard-\d+-of-\d+(?=/[^/]*$)")


@dataclass(frozen=True)
class GenerateOutput:
    """The output of one run, in corpus order.

    Attributes:
        hypotheses: the best hypothesis of each sentence: D- lines, or H- lines without D- lines.
        targets: T- lines, None if the data had no target side.
        sources: S- lines, None if there are none.
        is_detokenized: whether fairseq's ``--tokenizer`` has already detokenized the D- lines.
        is_run_together: whether ``--remove-bpe`` and ``--bpe`` both removed the subwords, so that
            no spaces are left between words.
    """

    hypotheses: Sentences
    targets: Sentences | None
    sources: Sentences | None
    is_detokenized: bool = False
    is_run_together: bool = False


def read_generate_output(path: str) -> GenerateOutput:
    """Read and check a file.

    Raises:
        UserError: if sentences are missing (fairseq can drop the last batch), a sentence occurs
            twice, or a line is damaged. Several hypotheses of one sentence are an n-best list, but
            without S- and T- lines, which occur once in a run, they could be two runs.
    """
    single: dict[str, dict[int, str]] = {"S": {}, "T": {}}
    best: dict[str, dict[int, tuple[float, str]]] = {"H": {}, "D": {}}
    repeated = ""
    loaded: dict[str, int] = {}  # the sentences of each binarised file
    subset: str | None = None
    for number, line in enumerate(read_lines(path), start=1):
        if found := _LOADED.search(line):
            loaded[Path(found[2]).name] = int(found[1].replace(",", ""))
        match = LINE.match(line)
        if match is None:
            if found := _SUBSET.search(line):
                subset = found[1] or found[2]
            continue
        kind, sentence_id, rest = match[1], int(match[2]), match[3]
        if kind in single:
            if sentence_id in single[kind]:
                raise UserError(
                    f"{path}, line {number}: {kind}-{sentence_id} occurs a second time, so the "
                    f"file holds more than one run: give each run a file of its own"
                )
            single[kind][sentence_id] = rest
            continue
        score, text = _scored(rest, f"{path}, line {number}")
        # fairseq writes the best hypothesis first, but the lines may have been sorted.
        known = best[kind].get(sentence_id)
        if known is not None and not repeated:
            repeated = f"{path}, line {number}: {kind}-{sentence_id}"
        if known is None or score > known[0]:
            best[kind][sentence_id] = (score, text)

    hypotheses = best["D"] or best["H"]
    if not hypotheses:
        raise UserError(
            f"{path} holds no D- or H- lines: give the output of fairseq-generate, run without "
            f"--quiet"
        )
    if repeated and not single["S"] and not single["T"]:
        raise UserError(
            f"{repeated} occurs a second time, and without S- or T- lines an n-best list cannot be "
            f"told from two runs: give the whole output of one run"
        )
    ids = [*hypotheses, *best["H"], *single["S"], *single["T"]]
    begin = "" if subset is None else f"{subset}."
    sizes = [size for name, size in loaded.items() if name.startswith(begin)]
    count = max([*sizes, max(ids) + 1])

    remedy = (
        f"they are in the files of other processes: give all, cat {_SHARD.sub('shard-*', path)}"
        if _SHARD.search(path)
        else "fairseq drops a last batch whose size does not fit: generate again with "
        "--required-batch-size-multiple 1 and without skipping long sentences, or join the outputs "
        "of all processes of --num-shards"
    )

    def in_order(kind: str, texts: dict[int, str]) -> Sentences | None:
        if not texts:
            return None
        if len(texts) < count:
            missing = islice((str(i) for i in range(count) if i not in texts), 5)
            raise UserError(
                f"{path}: {count - len(texts)} of {count} sentences have no {kind}- line (the "
                f"first ids: {', '.join(missing)}); {remedy}"
            )
        return Sentences([texts[i] for i in range(count)], f"{path} ({kind}- lines)", "sentence")

    texts = {kind: {i: text for i, (_, text) in best[kind].items()} for kind in best}
    raw, decoded = in_order("H", texts["H"]), in_order("D", texts["D"])
    chosen = decoded or raw
    assert chosen is not None  # hypotheses is not empty
    pairs = list(zip(raw.lines, decoded.lines, strict=True)) if raw and decoded else []
    only_subwords = any(
        any(mark in h for h, _ in pairs) and all(d == remove_subwords(h, symbol) for h, d in pairs)
        for symbol, mark in (("sentencepiece", "\u2581"), ("subword_nmt", "@@"))
    )
    return GenerateOutput(
        hypotheses=chosen,
        targets=in_order("T", single["T"]),
        sources=in_order("S", single["S"]),
        is_detokenized=any(h != d for h, d in pairs) and not only_subwords,
        is_run_together=any(re.search(r"\w \w", h) for h, _ in pairs)
        and all(d == h.replace(" ", "") and "\u2581" not in h for h, d in pairs),
    )


def _scored(rest: str, place: str) -> tuple[float, str]:
    """Split "score, tab, text"."""
    score, tab, text = rest.partition("\t")
    try:
        if tab:
            return float(score), text
    except ValueError:
        pass
    raise UserError(f"{place} is damaged: expected id, score and text with tabs in between")
