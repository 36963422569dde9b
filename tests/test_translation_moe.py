"""fairseq's mixture of experts (examples/translation_moe) with our models."""

from pathlib import Path

from conftest import Corpus, fairseq, train

OPTIONS = ("--task", "translation_moe", "--method", "hMoElp", "--mean-pool-gating-network")


def test_experts_train_and_translate(corpus: Corpus, tmp_path: Path) -> None:
    plugin = tmp_path / "with_experts"
    plugin.mkdir()
    (plugin / "__init__.py").write_text(
        "import resmlp_mt.models\n"
        "from fairseq.examples.translation_moe import translation_moe_src\n"
    )
    options = ("--user-dir", plugin, *OPTIONS)
    train(corpus, tmp_path, *options)
    checkpoint = tmp_path / "checkpoint_last.pt"
    for expert in (0, 2):
        output = fairseq(
            "generate", corpus.data, "--path", checkpoint, "--cpu", "--gen-expert", expert, *options
        ).stdout
        assert output.count("\nH-") == 13
    output = fairseq(
        "generate", corpus.data, "--path", checkpoint, "--cpu", "--user-dir", "resmlp_mt", expect=1
    ).stdout
    assert "its task 'translation_moe' is unknown; give the --user-dir of the code" in output
