"""Deliberate faults, one at a time, and the tests that must notice them."""

from typing import NamedTuple


class Fault(NamedTuple):
    """A text that stands once in a file, what replaces it, and the arguments of pytest."""

    room: str
    what: str
    file: str
    old: str
    new: str
    tests: str


ENGINE, MODEL, PLUGIN = "resmlp_mt/engine", "resmlp_mt/model", "resmlp_mt/fairseq_plugin"
PREPARATION = "resmlp_mt/preparation"

FAULTS = [
    Fault(
        "layers", "the affine map adds no beta", "resmlp_mt/layers.py",
        "torch.addcmul(beta, x, self.alpha)", "x * self.alpha",
        "tests/test_layers.py",
    ),
    Fault(
        "layers", "no activation between the two linear layers", "resmlp_mt/layers.py",
        "hidden = self.activation(self.fc1(x))", "hidden = self.fc1(x)",
        "tests/test_layers.py",
    ),
    Fault(
        "layers", "an affine map in front is merged without its shift", "resmlp_mt/layers.py",
        "shift = linear.weight @ affine.beta", "shift = linear.weight @ (0 * affine.beta)",
        "tests/test_mixing.py -k folding",
    ),
    Fault(
        "mixing", "the causal matrix has ones too many above its diagonal", "resmlp_mt/mixing.py",
        "matrix = matrix.tril()", "matrix = matrix.tril(1)",
        "tests/test_layers.py",
    ),
    Fault(
        "mixing", "the decay grows with the distance's sign", "resmlp_mt/mixing.py",
        "torch.arange(1 - length, length, device=weights.device).abs()",
        "torch.arange(1 - length, length, device=weights.device)",
        "tests/test_mixing.py -k matrix_is_made",
    ),
    Fault(
        "mixing", "rows of the Toeplitz matrix begin one distance late",
        "resmlp_mt/mixing_products.py",
        "return rows[:, :, length - 1 :]", "return rows[:, :, length - 2 : -1]",
        "tests/test_mixing.py -k matrix_is_made",
    ),
    Fault(
        "mixing", "the gate reads the mixed states", "resmlp_mt/mixing.py",
        "mixed = mixed * torch.sigmoid(self.gate_proj(x))",
        "mixed = mixed * torch.sigmoid(self.gate_proj(mixed))",
        "tests/test_mixing.py -k gate_times",
    ),
    Fault(
        "mixing", "with a layout, pads are not zeroed in front of A", "resmlp_mt/padding.py",
        "x.new_zeros(self.length * self.batch,", "x.new_ones(self.length * self.batch,",
        "tests/test_padding.py tests/test_mixing.py -k 'padding or neighbours'",
    ),
    Fault(
        "encoder", "embeddings are not scaled", f"{MODEL}/stack.py",
        "return embedded if scale == 1.0 else embedded * scale", "return embedded",
        "tests/test_encoder.py -k equations",
    ),
    Fault(
        "encoder", "the final affine map is left out", f"{MODEL}/encoder.py",
        "            x = self.final_affine(x)\n        return x\n",
        "            pass\n        return x\n",
        "tests/test_encoder.py -k equations",
    ),
    Fault(
        "encoder", "a sentence may be longer than the matrix", f"{MODEL}/stack.py",
        "    if length > longest:", "    if length > longest + 1:",
        "tests/test_encoder.py tests/test_decoder.py -k longer_than_the_matrix",
    ),
    Fault(
        "decoder", "attention looks at pads of the source", f"{MODEL}/attention.py",
        "return zeros.masked_fill(self.is_pad, -torch.inf)[:, None, None, :]",
        "return zeros[:, None, None, :]",
        "tests/test_decoder.py -k equations",
    ),
    Fault(
        "decoder", "keys and values change places", f"{MODEL}/attention.py",
        "for proj in (self.k_proj, self.v_proj)", "for proj in (self.v_proj, self.k_proj)",
        "tests/test_decoder.py -k equations",
    ),
    Fault(
        "decoder", "a step takes the row of the position before", f"{MODEL}/decoder.py",
        "rows = tables.matrices[:, :, position]", "rows = tables.matrices[:, :, position - 1]",
        "tests/test_cache.py",
    ),
    Fault(
        "cache", "hypotheses keep their own ancestors when the beam moves", f"{MODEL}/cache.py",
        "ancestors = self.ancestors.gather(1, index)\n", "ancestors = self.ancestors\n",
        "tests/test_beam_search.py",
    ),
    Fault(
        "cache", "copies of a cache write into one history", f"{MODEL}/cache.py",
        "if self.used != length or length", "if length",
        "tests/test_decoder.py -k 'copies or step_by_step'",
    ),
    Fault(
        "cache", "a sentence that takes another's place leaves its mask",
        f"{MODEL}/cache.py",
        "for first in (self.ancestors, mask):", "for first in (self.ancestors,):",
        "tests/test_cache.py tests/test_beam_search.py",
    ),
    Fault(
        "fold", "the offset is not scaled by the affine map after it",
        "resmlp_mt/materialised_mixing.py",
        "constant = folded.constant * post.alpha.view(mixing.heads, -1)",
        "constant = folded.constant * 1.0",
        "tests/test_mixing.py -k folding",
    ),
    Fault(
        "fold", "the bias of the values is lost", f"{ENGINE}/folding.py",
        "after_values.beta = values.bias", "pass",
        "tests/test_mixing.py -k folding",
    ),
    Fault(
        "fold", "a mixing with an output of its own is merged", "resmlp_mt/mixing.py",
        '            cls.merges_affines = False', '            cls.merges_affines = True',
        "tests/test_mixing.py -k cannot_be_merged",
    ),
    Fault(
        "search", "a length penalty of another exponent", f"{ENGINE}/beam_search.py",
        "options.norm(position + 1)", "options.norm(max(position, 1))",
        "tests/test_beam_search.py",
    ),
    Fault(
        "search", "ends beyond the beam are kept", f"{ENGINE}/beam_search.py",
        "ends = (is_eos & scores.isfinite())[:, :beam].nonzero()",
        "ends = (is_eos & scores.isfinite()).nonzero()",
        "tests/test_beam_search.py",
    ),
    Fault(
        "search", "the last chunk of a large vocabulary is not looked at",
        f"{ENGINE}/beam_search.py",
        "rest = logits[..., chunks * CHUNK :].amax(-1, keepdim=True)",
        "rest = logits[..., chunks * CHUNK :].amin(-1, keepdim=True)",
        "tests/test_beam_search.py -k large_vocabularies",
    ),
    Fault(
        "search", "an end may come before the shortest length", f"{ENGINE}/options.py",
        "        if position < self.min_len:", "        if position < self.min_len - 1:",
        "tests/test_beam_search.py",
    ),
    Fault(
        "search", "of a sentence that leaves, the limit stays", f"{ENGINE}/beam_search.py",
        "            self.limits[hole] = self.limits[row]\n", "",
        "tests/test_beam_search.py -k own_limit",
    ),
    Fault(
        "scores", "the references of BLEU are not tokenized", "resmlp_mt/scoring/measures.py",
        "self.references = [list(map(self._prepare, stream)) for stream in references]",
        "self.references = [list(stream) for stream in references]",
        "tests/test_score.py -k 'tokenized_bleu or three_tokenized'",
    ),
    Fault(
        "scores", "chrF++ without words", "resmlp_mt/scoring/measures.py",
        'fixed={"word_order": 2}', 'fixed={"word_order": 0}',
        "tests/test_score.py -k 'kinds_of_chrf'",
    ),
    Fault(
        "scores", "a border belongs to the bucket below", "resmlp_mt/scoring/measures.py",
        "if n >= low and (following is None or n < following)",
        "if n > low and (following is None or n <= following)",
        "tests/test_score.py -k length_buckets",
    ),
    Fault(
        "preparation", "pairs are compared by the longer side alone", f"{PREPARATION}/clean.py",
        "longer > options.max_ratio * shorter]", "longer > options.max_ratio * longer]",
        "tests/test_prepare_clean.py -k 'faults or definitions'",
    ),
    Fault(
        "preparation", "a held-out sentence is looked for on one side", f"{PREPARATION}/clean.py",
        "a in self.held_out or b in self.held_out", "a in self.held_out",
        "tests/test_prepare_clean.py -k held_out",
    ),
    Fault(
        "preparation", "of equal pairs in a batch all are new", f"{PREPARATION}/dedup.py",
        "new[first[inserted]] = True", "new[:] = True",
        "tests/test_prepare_clean.py -k hash_set",
    ),
    Fault(
        "preparation", "offsets of binary text wrap at 2^31 bytes", f"{PREPARATION}/binarize.py",
        "np.cumsum(block, dtype=np.int64)", "np.cumsum(block, dtype=np.int32)",
        "tests/test_prepare_binarize.py -k two_gib",
    ),
    Fault(
        "preparation", "a zip member may leave the folder", f"{PREPARATION}/archives.py",
        "if not (target / name).resolve().is_relative_to(target.resolve()):", "if False:",
        "tests/test_prepare_archives.py -k leaves_the_folder",
    ),
    Fault(
        "preparation", "a zip member may lie before the beginning", f"{PREPARATION}/archives.py",
        "if info.header_offset < 0:", "if False:",
        "tests/test_prepare_archives.py -k without_its_beginning",
    ),
    Fault(
        "preparation", "names in a zip are expected to be UTF-8", "resmlp_mt/unpacking.py",
        "    OverflowError,\n    ValueError,\n", "    OverflowError,\n",
        "tests/test_prepare_archives.py -k utf_8",
    ),
    Fault(
        "stored configuration", "calls in strings pass", f"{PLUGIN}/stored_config.py",
        "if private or not isinstance(node, HARMLESS):", "if private:",
        "tests/test_stored_config.py -k 'all_readers'",
    ),
    Fault(
        "stored configuration", "what the user overrides is not looked at",
        f"{PLUGIN}/stored_config.py",
        "for section, stored in _changed(cfg, overrides).items():",
        "for section, stored in _changed(cfg, {}).items():",
        "tests/test_stored_config.py -k overrides",
    ),
    Fault(
        "stored configuration", "a part may be named by anything", f"{PLUGIN}/stored_config.py",
        "if not isinstance(name, str | None):", "if False:",
        "tests/test_stored_config.py -k named_by_a_text",
    ),
    Fault(
        "errors", "a message has the line breaks of what it cites", "resmlp_mt/errors.py",
        "super().__init__(one_line(message))", "super().__init__(message)",
        "tests/test_stored_config.py -k is_one_line",
    ),
    Fault(
        "stored arrays", "arrays of objects may be named", "resmlp_mt/stored_arrays.py",
        'DTYPES |= {"f2", "f4", "f8", "b1"}', 'DTYPES |= {"f2", "f4", "f8", "O8", "O"}',
        "tests/test_stored_arrays.py -k 'anything_else or call_of_ndarray'",
    ),
    Fault(
        "stored arrays", "an array may have fewer bytes than its shape",
        "resmlp_mt/stored_arrays.py",
        "            or math.prod(shape) * dtype.itemsize != len(content)\n", "",
        "tests/test_stored_arrays.py -k anything_else",
    ),
    Fault(
        "digests", "digests of a folder are not compared", f"{ENGINE}/digests.py",
        "if listed.get(name) != sha256(path):", "if False:",
        "tests/test_digests.py -k 'what_fits'",
    ),
    Fault(
        "digests", "the digest of a checkpoint leaves out its configuration",
        f"{PLUGIN}/checkpoints.py",
        "json.dumps(configuration, sort_keys=True, default=str).encode()", 'b""',
        "tests/test_digests.py -k checkpoints_carry",
    ),
    Fault(
        "digests", "weights and graphs may be of another configuration",
        f"{ENGINE}/exported_config.py",
        "for name, value in differing:", "for name, value in differing[:0]:",
        "tests/test_digests.py -k together_with_its_digest",
    ),
    Fault(
        "sizes", "any number of positions is believed", f"{MODEL}/sizes.py",
        "most = max(2 * largest, LEAST_LIMIT)", "most = 10**30",
        "tests/test_digests.py -k sizes_are_compared",
    ),
    Fault(
        "saving", "files are written in place", "resmlp_mt/files.py",
        "        yield partial\n        synchronize(partial)",
        "        yield target\n        os.replace(target, partial)\n        synchronize(partial)",
        "tests/test_files.py",
    ),
    Fault(
        "saving", "the last checkpoint is copied over in place", f"{PLUGIN}/saving.py",
        '@remedy(PathManager, "copy")\n', "",
        "tests/test_saving.py -k 'killed_within or full_disk_while'",
    ),
    Fault(
        "saving", "a damaged last checkpoint is not looked at", f"{PLUGIN}/saving.py",
        "    if damage is None:\n        return None\n    for path",
        "    if damage is not None:\n        return None\n    for path",
        "tests/test_saving.py -k impossible_number",
    ),
    Fault(
        "finite weights", "infinity in weights passes", f"{ENGINE}/weights.py",
        "not bool(value.isfinite().all())", "bool(value.isnan().any())",
        "tests/test_every_line.py -k weights_that_are_not_finite",
    ),
    Fault(
        "search", "a sentence is done with its first finished hypothesis",
        f"{ENGINE}/beam_search.py",
        "if len(finished[sentence]) == options.beam or limit == position",
        "if finished[sentence] or limit == position",
        "tests/test_beam_search.py",
    ),
    Fault(
        "empty beam", "a line without translation is left out", f"{ENGINE}/translator.py",
        "            if not translations:\n", "            if False:\n",
        "tests/test_every_line.py -k 'named_and_left_empty'",
    ),
    Fault(
        "serving", "a body of unknown length is not bounded", "resmlp_mt/serving/requests.py",
        "if size > self._most:", "if False:",
        "tests/test_serving_api.py -k too_long_is_413",
    ),
    Fault(
        "bulk", "another input removes the parts of the first", "resmlp_mt/sharding/manifest.py",
        "if record.file not in files]", "if False]",
        "tests/test_bulk.py -k same_folder",
    ),
]  # fmt: skip
