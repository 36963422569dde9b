"""The model as fairseq sees it, and remedies for fairseq's defects.

* The model: ``model``, ``encoder``, ``decoder``, ``config``, ``vectors``, ``pruning``; its
  criterions: ``criterion``, ``rdrop``.
* Checkpoints: ``checkpoints``, ``stored_config``, ``stored_options``, ``ranking``,
  ``conversion``.
* Remedies wrap functions of fairseq (``wrapping``), and ``fairseq_fixes`` applies them. They are
  for text (``binarised``, ``languages``, ``many_languages``, ``dictionaries``, ``text_input``),
  translating (``generation_fixes``, ``bleu``), training (``training_fixes``, ``several_processes``,
  ``stop_signals``, ``training_end``, ``continue_command``), checkpoints (``loading``,
  ``hub``, ``saving``, ``resuming``), and options and messages
  (``option_checks``, ``ignored_options``, ``evaluated_options``, ``console``, ``hydra_jobs``).
"""
