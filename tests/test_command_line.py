"""What a user expects of every command before it does anything: --help, --version, one name."""

import errno
import io
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
import tomllib
import venv
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

import resmlp_mt
from conftest import PIP, ROOT
from resmlp_mt import bulk, export, prepare, serve, translate
from resmlp_mt.command_line import Parser, command, did_you_mean
from resmlp_mt.engine import pretrained
from resmlp_mt.errors import UserError
from resmlp_mt.extras import EXTRAS, installation
from resmlp_mt.files import replacing
from resmlp_mt.signals import ending_signals
from resmlp_mt.unpacking import open_input
from terminals import Terminal

VISION = [
    f"vision.{name}" for name in ("train", "evaluate", "predict", "knn", "export", "timm_models")
]
MODULES = [
    *(
        "prepare",
        "translate",
        "score",
        "export",
        "average",
        "visualize",
        "serve",
        "bulk",
        "benchmark",
    ),
    *VISION,
]
SCRIPTS = ["grammar.py", "demo.py"]
WITHOUT_SCRIPT = {"benchmark", "vision.timm_models"}  # of a checkout; also a module to import
HEAVY = {"scipy", "pandas", *EXTRAS} - {"langcodes"}  # checks codes on the command line

# Asks a command for --version and --help in one process, and looks at the parser that answers.
PROGRAM = """
import argparse, contextlib, io, runpy, sys

def ask(word):
    sys.argv = [NAME, word]
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        try:
            RUN()
        except SystemExit as end:
            assert not end.code, end.code
        else:
            raise AssertionError("did not exit")
    return said.getvalue()

parsers = []
answer = argparse._HelpAction.__call__
def see(action, parser, *arguments):
    parsers.append(parser)
    answer(action, parser, *arguments)
argparse._HelpAction.__call__ = see

assert ask("--version") == f"resmlp_mt {VERSION}\\n"
print(ask("--help"))
loaded = HEAVY & sys.modules.keys()
assert not loaded, loaded
(parser,) = parsers
formatter = parser._get_formatter()
for action in parser._actions:
    told = formatter._get_help_string(action)
    # options that are sacreBLEU's and speak for themselves tell their default alone
    assert told or action.nargs == 0, (action.option_strings, "says nothing")
    if action.nargs != 0 and action.default not in (None, argparse.SUPPRESS, [], {}):
        assert "default" in told, (action.option_strings, action.default)
    assert action.type not in (int, float), (action.option_strings, "has no limits")
    kind = getattr(action.type, "__name__", "")
    # 1e39 is infinite in 32 bits
    floats = ("inf", "-inf", "nan", "1e999", "1e39", "-1e39")
    for text in {"float": floats, "int": (str(10**20), str(-(10**20)), str(10**400))}.get(kind, ()):
        try:
            action.type(text)
        except argparse.ArgumentTypeError:
            continue
        raise AssertionError((action.option_strings, text))
    for name, *others in (["--output", "-o", "--out"], ["--input", "-i"]):
        names = action.option_strings
        assert names == [name, *others] or not {name, *others} & {*names}, names
"""


@pytest.mark.parametrize("name", [*MODULES, *SCRIPTS])
def test_help_and_version_answer_at_once_and_tell_all(name: str) -> None:
    script = ROOT / "data_scripts" / name
    run = f"runpy.run_module('resmlp_mt.{name}', run_name='__main__', alter_sys=True)"
    if name in SCRIPTS:
        run = f"runpy.run_path({str(script)!r}, run_name='__main__')"
    values = f"NAME, VERSION, HEAVY = {name!r}, {resmlp_mt.__version__!r}, {HEAVY!r}\n"
    program = f"{values}def RUN(): {run}\n{PROGRAM}"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    expected = name if name in SCRIPTS else f"python -m resmlp_mt.{name}"
    assert f"usage: {expected} [-h] [--version]" in done.stdout
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("name", "package", "extra"),
    [
        ("export", "fairseq", "train"),
        ("visualize", "matplotlib", "plots"),
        ("serve", "fastapi", "serve"),
        ("bulk", "ray", "bulk"),
        ("vision.export", "onnx", "onnx-export"),
        *((name, "timm", "vision") for name in VISION),
        ("prepare", "yaml", "data"),
        ("prepare", "tqdm", "data"),
        ("benchmark", "matplotlib", "plots"),
    ],
)
def test_help_names_the_extra_that_is_missing(name: str, package: str, extra: str) -> None:
    said = said_without(package, name, "--help")
    assert f"pip install '.[{extra}]'" in said
    assert ("README.md, Install" in said) == (extra == "train")


@pytest.mark.parametrize(
    ("words", "package", "extra"),
    [
        (["export", "missing.pt", "--output", "x"], "fairseq", "train"),
        (["visualize", "missing.pt", "--output", "x"], "matplotlib", "plots"),
        (["serve", "missing"], "fastapi", "serve"),
        (["bulk", "--input", "missing", "--output", "x"], "ray", "bulk"),
        (["benchmark", "--quick"], "fairseq", "train"),
        *(([name, "missing"], "timm", "vision") for name in VISION),
    ],
)
def test_a_wrong_path_does_not_hide_a_missing_extra(
    words: list[str], package: str, extra: str
) -> None:
    assert EXTRAS[package] == extra
    said = said_without(package, *words)
    assert f"{package} is missing: run {installation(package)}" in said


@pytest.mark.parametrize(
    ("package", "dtype"), [("onnxscript", "float32"), ("onnx", "int8"), ("onnxruntime", "int8")]
)
def test_a_package_for_graphs_is_missed_before_the_work(package: str, dtype: str) -> None:
    words = f"missing.pt --output x --format onnx --dtype {dtype}".split()
    said = said_without(package, "export", *words)
    assert f"--format onnx needs {package}: run {installation(package)}" in said


def said_without(package: str, name: str, *words: str) -> str:
    """What a command prints where a package is not installed."""
    run = f"runpy.run_module('resmlp_mt.{name}', run_name='__main__', alter_sys=True)"
    program = (
        "import importlib.util, runpy, sys\n"
        "find = importlib.util.find_spec\n"
        f"importlib.util.find_spec = lambda name: None if name == {package!r} else find(name)\n"
        f"sys.modules[{package!r}] = None\n"
        f"sys.argv = {['x', *words]}\n{run}"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    said = " ".join((done.stdout + done.stderr).split())
    assert "Traceback" not in said
    return said


def test_every_command_of_the_package_is_looked_at() -> None:
    package = Path(resmlp_mt.__file__).parent
    found = {
        ".".join(path.relative_to(package).with_suffix("").parts)
        for path in package.rglob("*.py")
        if 'if __name__ == "__main__"' in path.read_text() and path.name != "__main__.py"
    }
    assert found == set(MODULES)


def test_commands_and_scripts_are_the_same() -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert scripts == {
        f"resmlp-{name.replace('.', '-')}": f"resmlp_mt.{name}:main"
        for name in MODULES
        if name not in WITHOUT_SCRIPT
    }


def test_every_package_that_is_needed_has_an_extra() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    groups = {"": project["dependencies"], **project["optional-dependencies"]}
    modules: dict[str, set[str]] = {}
    for module, distributions in packages_distributions().items():
        for name in distributions:
            modules.setdefault(re.sub(r"[-_.]+", "-", name).lower(), set()).add(module)
    for extra in groups.keys() - {"all", "dev"}:
        for requirement in groups[extra]:
            name = re.split(r"[\[<>=; ]", requirement)[0].replace("_", "-").lower()
            found = [EXTRAS[m] for m in modules.get(name, ()) if m in EXTRAS]
            # where several extras have it, the table names one of them
            having = {
                e for e, all_ in groups.items() if any(r.startswith(requirement) for r in all_)
            }
            assert name not in modules or set(found) & having, requirement


@pytest.mark.slow
def test_the_scripts_of_a_wheel_answer(wheel: Path, tmp_path: Path) -> None:
    """In an environment of its own, which borrows the packages of this one."""
    venv.create(tmp_path / "venv", with_pip=False)
    folder = tmp_path / "venv" / ("Scripts" if os.name == "nt" else "bin")
    python = str(folder / "python")
    own = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    install = [*PIP, "--python", python, "install", "--no-deps", wheel]
    subprocess.run(install, cwd=tmp_path, env=own, check=True)
    ask = [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    site = Path(subprocess.check_output(ask, text=True).strip())
    (site / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    scripts = sorted(path for path in folder.iterdir() if path.name.startswith("resmlp-"))
    assert len(scripts) == len(MODULES) - len(WITHOUT_SCRIPT)
    elsewhere = {"cwd": tmp_path, "env": own, "capture_output": True, "text": True}
    for script in scripts:
        done = subprocess.run([script, "--version"], **elsewhere)
        assert (done.returncode, done.stdout) == (0, f"resmlp_mt {resmlp_mt.__version__}\n")
        done = subprocess.run([script, "--help"], **elsewhere)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith(f"usage: {script.name} [-h] [--version]")
    corpus = [folder / "resmlp-prepare", "demo", "--output", "demo", "--vocab-size", "500"]
    done = subprocess.run([*corpus, "--jobs", "2"], **elsewhere)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "demo/bin/train.en-de.de.idx").exists()
    found = subprocess.run([python, "-m", "resmlp_mt"], **elsewhere).stdout.strip()
    assert Path(found) == site / "resmlp_mt"
    assert (site / "resmlp_mt/configs/vision/resmlp_s12.yaml").exists()
    assert (site / "resmlp_mt/serving/page/index.html").exists()


def test_an_editable_install_is_found_beside_the_clone(tmp_path: Path) -> None:
    """Where the README's commands are typed: the current folder has a folder resmlp_mt."""
    clone = tmp_path / "resmlp_mt"
    ignored = shutil.ignore_patterns("__pycache__", "pretrained")
    shutil.copytree(ROOT / "resmlp_mt", clone / "resmlp_mt", ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE", "setup.py"):
        shutil.copy(ROOT / name, clone)
    venv.create(tmp_path / "venv", with_pip=False)
    python = tmp_path / "venv" / ("Scripts" if os.name == "nt" else "bin") / "python"
    own = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    options = ["--ignore-installed", "--no-deps", "--no-build-isolation", "--editable"]
    subprocess.run(
        [*PIP, "--python", python, "install", *options, clone],
        cwd=tmp_path, env={**own, "PYTHONPATH": sysconfig.get_path("purelib")}, check=True,
    )  # fmt: skip
    for module, said in (("resmlp_mt", str(clone / "resmlp_mt")), ("resmlp_mt.score", "resmlp_mt")):
        words = [python, "-m", module] + ["--version"] * ("." in module)
        done = subprocess.run(words, cwd=tmp_path, env=own, capture_output=True, text=True)
        assert done.stdout.startswith(said), done.stderr


def test_the_plugins_folder_keeps_the_name_of_a_link(tmp_path: Path) -> None:
    """fairseq would take the folder after it for a second plugin of the same name."""
    (tmp_path / "link").symlink_to(ROOT)
    done = subprocess.run(
        [sys.executable, "-m", "resmlp_mt"],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(tmp_path / "link")},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.stdout == f"{tmp_path}/link/resmlp_mt\n", done.stderr


def test_a_name_is_suggested_once() -> None:
    assert did_you_mean("abcd", ["abce", "abce"]) == " (did you mean abce?)"
    assert not did_you_mean("abcd", ["xyz"])


def test_a_closed_error_stream_does_not_stop_a_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)

    @command
    def main() -> bool:
        print("a message", file=sys.stderr)
        return sys.stderr.isatty()

    assert main() is False


def test_a_full_disk_behind_standard_output_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    say = command(lambda: print("scores"))
    ask = command(lambda: (print("help"), sys.exit(0)))
    for run in (say, ask):
        for unbuffered in (False, True):
            with open("/dev/full", "wb", buffering=0) as raw:
                full = io.TextIOWrapper(
                    raw if unbuffered else io.BufferedWriter(raw), write_through=unbuffered
                )
                monkeypatch.setattr(sys, "stdout", full)
                with pytest.raises(
                    UserError, match=r"^standard output cannot be written: No space left"
                ):
                    run()
    reading, writing = os.pipe()
    os.close(reading)
    before = signal.signal(
        signal.SIGPIPE, signal.SIG_IGN
    )  # as in a new process; commands change it
    with open(writing, "w", encoding="utf-8") as closed:
        monkeypatch.setattr(sys, "stdout", closed)
        with pytest.raises(SystemExit) as ended:
            say()
    signal.signal(signal.SIGPIPE, before)
    assert ended.value.code == 128 + signal.SIGPIPE


@pytest.mark.parametrize("buffering", [(), ("-u",)], ids=str)
@pytest.mark.parametrize(
    ("after", "status"),
    [
        ("print('a message', file=sys.stderr)", 128 + signal.SIGPIPE),
        ("logging.warning('a message')", 0),
        ("raise UserError('a mistake')", 1),
    ],
)
def test_a_lost_reader_of_messages_changes_no_result(
    after: str, status: int, buffering: tuple[str, ...]
) -> None:
    program = (
        "import logging, sys\n"
        "from resmlp_mt.command_line import command\n"
        "from resmlp_mt.errors import UserError\n"
        f"@command\ndef main():\n    print('scores')\n    {after}\nmain()"
    )
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, *buffering, "-c", program],
        stdout=subprocess.PIPE, stderr=writing, cwd=ROOT,
    )  # fmt: skip
    os.close(writing)
    assert (done.returncode, done.stdout) == (status, b"scores\n")


def test_a_file_that_may_not_grow_is_named(tmp_path: Path) -> None:
    program = "from resmlp_mt.command_line import command; command(lambda: print('x' * 9999))()"
    limited = 'ulimit -f 1; exec "$0" -c "$1" > "$2"'
    done = subprocess.run(
        ["bash", "-c", limited, sys.executable, program, tmp_path / "output"],
        stderr=subprocess.PIPE, encoding="utf-8", check=False, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.startswith("standard output cannot be written: File too large")


def test_a_pipe_that_does_not_wait_loses_no_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """The program that started the command may have made it so."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    lines = 5000  # more than a pipe holds
    with open(reading) as reader, ThreadPoolExecutor(1) as pool:
        found = pool.submit(lambda: (time.sleep(0.1), reader.read())[1])
        with open(writing, "w") as stream:
            monkeypatch.setattr(sys, "stdout", stream)
            command(lambda: print("\n".join(["x" * 50] * lines)))()
        assert found.result().count("\n") == lines


def test_a_folder_that_was_removed_is_told(tmp_path: Path) -> None:
    os.chdir(tmp_path)
    tmp_path.rmdir()
    with pytest.raises(UserError, match=r"^the current folder was removed: change to another\.$"):
        command(os.getcwd)()
    with pytest.raises(UserError, match="folder was removed"):
        command(Parser("resmlp_mt.score", "").parse_args)([])  # before anything is loaded
    with pytest.raises(UserError, match="folder was removed"):
        pretrained.located()


def test_a_machine_without_temporary_folders_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: [str(tmp_path / "none")])
    with pytest.raises(UserError, match=r"^No usable temporary .*: set TMPDIR to a folder"):
        command(tempfile.gettempdir)()


def test_a_full_disk_elsewhere_is_not_blamed_on_standard_output() -> None:
    @command
    def fill() -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(OSError, match="No space left"):
        fill()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_signals_leave_no_temporary_file(number: signal.Signals, tmp_path: Path) -> None:
    """SIGHUP is that of a closed terminal."""
    before = signal.getsignal(number)

    @command
    def write() -> None:
        with replacing(tmp_path / "output") as partial:
            assert partial.exists()
            os.kill(os.getpid(), number)

    with pytest.raises(SystemExit) as ended:
        write()
    assert ended.value.code == 128 + number
    assert not list(tmp_path.iterdir())
    assert signal.getsignal(number) is before


def test_a_closed_terminal_does_not_change_the_status() -> None:
    """Although what a command has not shown yet, on both streams, cannot be written."""
    program = """
import sys, time
from resmlp_mt.command_line import command
@command
def main():
    print("ready")
    print("the rest", end="")
    try:
        while True:  # a signal just before a long sleep would be handled after it
            time.sleep(0.1)
    finally:
        print("an error", file=sys.stderr)
"""
    with Terminal(program) as terminal:
        terminal.read_until(lambda shown: "ready" in shown)
        assert terminal.status_after_closing() == 129


def test_nohup_and_scripts_choose_the_signals_that_end_a_command() -> None:
    numbers = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
    for ignored in numbers:
        for number in numbers:
            signal.signal(number, signal.SIG_IGN if number == ignored else signal.SIG_DFL)
        assert ending_signals() == [number for number in numbers if number != ignored]


def test_nohup_goes_on_without_its_terminal() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)

    @command
    def run() -> str:
        os.kill(os.getpid(), signal.SIGHUP)
        return "done"

    assert run() == "done"


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("--path", "--path is an option of another program: give .* alone, as MODEL"),
        ("--beam-size", "--beam-size is an option of another program: use --beam"),
        ("--beamsize", r"unrecognized arguments: --beamsize; did you mean --beam\?$"),
        ("--max_new_tokens=9", "--max-new-tokens is an option of another program: use --max-len-b"),
        ("--src_lang", "--src-lang is an option of another program: the model knows it"),
        ("-output", "-output has one hyphen: did you mean --output\\?$"),
        ("-tgt", "-tgt has one hyphen: did you mean --tgt\\?$"),
        ("--print-a", "--print-alignment is an option of another program: "),
        ("--num-beams", "--num-beams is an option of another program: use --beam"),
        ("--to", "--to is an option of another program: the model knows it, leave it out"),
        ("--cuda", "--cuda is an option of another program: use --device cuda"),
        ("--nbests", r"unrecognized arguments: --nbests; did you mean --nbest\?$"),
        ("--max-sentences=8", "--max-sentences is an option of another program: use --batch-size"),
        ("--num-workers", "--num-workers is an option of another program: text is read as it is"),
        ("--fancy", "unrecognized arguments: --fancy$"),  # nothing is similar
    ],
)
def test_options_of_others_are_answered(
    option: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        translate.parse_args([option, "x"])
    assert re.search(said, capsys.readouterr().err.strip())


@pytest.mark.parametrize(
    ("parse", "words", "said"),
    [
        (bulk.parse_args, "-i a --results-path b", "of another program: use --output"),
        (serve.parse_args, "--ssl", "of LibreTranslate: put a proxy with TLS in front"),
        (serve.parse_args, "--load-only en,de", "of LibreTranslate: give the folders of the mod"),
        (prepare.parse_args, "--source-lang en", "of fairseq-preprocess: use --src"),
        (prepare.parse_args, "--destdir a", "of fairseq-preprocess: use --output"),
        (export.parse_args, "a.pt --quantization int8", "of a converter: use --dtype"),
        (export.parse_args, "--model_path a.pt", "of a converter: give the checkpoint alone, as C"),
        (prepare.parse_args, "demo --outptu a", r"required: .*--outptu; did you mean --output\?"),
        (export.parse_args, "a.pt --ouptut=a --dtype int8", r"--ouptut=a; did you mean --output\?"),
        (
            bulk.parse_args,
            "--input a -- --outptu",
            r"required: --output/-o/--out$",
        ),
    ],
)
def test_every_command_answers_options_that_it_lacks(
    parse: Callable[[list[str]], object], words: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parse(words.split())
    assert re.search(said, capsys.readouterr().err.strip())


def test_programs_give_words_paths_and_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    args = translate.parse_args(["en-de", "--input", Path("a.en"), "--beam", 3, "--lenpen", 0.5])
    assert (args.input, args.beam, args.lenpen) == ("a.en", 3, 0.5)
    with pytest.raises(TypeError, match=r"a list of words, but got a str: write \['en-de', '-i'"):
        translate.parse_args("en-de -i 'my file'")
    with pytest.raises(TypeError, match="NoneType"):
        translate.parse_args([None])  # type: ignore[list-item]
    with pytest.raises(SystemExit):
        translate.parse_args(["--output", "a\0b"])
    assert "error: no argument may have a NUL in it" in capsys.readouterr().err


def test_text_in_the_wrong_place_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = tmp_path / "my text.en"
    text.write_text("Hello.\n")
    with pytest.raises(SystemExit):
        translate.parse_args(["en-de", str(text)])
    said = capsys.readouterr().err.strip()
    assert said.endswith(f"unrecognized arguments: '{text}'; did you mean --input '{text}'?")
    with pytest.raises(UserError, match="; text comes from standard input or from --input FILE"):
        translate.main(["Hello world"])
    monkeypatch.setattr(pretrained, "FOLDER", tmp_path)
    with pytest.raises(UserError, match=r"^no MODEL is given(?!.*standard input)"):
        translate.main(["--input", str(text)])


def test_the_home_is_found_where_shells_leave_its_sign(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else ``export --output=~/MODEL`` would make a folder named ~."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.en").write_text("one\n")
    assert translate.parse_args(["--output=~/a.de"]).output == tmp_path / "a.de"
    assert export.parse_args(["c.pt", "--output=~/MODEL"]).output == tmp_path / "MODEL"
    assert bulk.parse_args(["--input", "~/a.en", "-o~"]).input == [tmp_path / "a.en"]
    with open_input("~/a.en") as stream:
        assert stream.read() == b"one\n"


@pytest.mark.parametrize("text", ["-1e-3", "-2.5E+1", "-.5", "-3.", "-1"])
def test_negative_numbers_are_values(text: str) -> None:
    assert translate.parse_args(["--unkpen", text]).unkpen == float(text)


def test_empty_paths_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    for words in ([""], ["--output", ""]):
        with pytest.raises(SystemExit):
            translate.parse_args(words)
        assert "invalid path value: ''" in capsys.readouterr().err
    with pytest.raises(UserError, match="a path is empty: is a variable of the shell not set"):
        open_input("")


def test_options_may_have_underscores(capsys: pytest.CaptureFixture[str]) -> None:
    assert translate.parse_args(["--batch_size=7", "--max_len_b", "9"]).max_len_b == 9
    assert translate.parse_args(["-ia_file", "--"]).input == "a_file"
    args = bulk.parse_args(["-i", "a_b", "-o", "c_d", "--shard_size", "5"])
    assert (args.input, args.output, args.shard_size) == ([Path("a_b")], Path("c_d"), 5)
    with pytest.raises(SystemExit):
        bulk.parse_args(["-i", "a", "-o", "b", "--num_beams", "5"])
    assert "--num-beams is an option of another program: use --beam" in capsys.readouterr().err


def test_options_of_others_leave_abbreviations_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert translate.parse_args(["--print"]).print_scores  # although --print-alignment is refused
    for word, told in (
        ("--j", "unrecognized arguments: --j"),
        ("--json", "--json is an option of"),
        ("-sen", "-s is an option of another program"),
    ):
        with pytest.raises(SystemExit):
            translate.parse_args([word])
        assert told in capsys.readouterr().err


def test_the_lock_has_the_packages_of_every_extra() -> None:
    """What ``uv sync`` reads: ``uv lock`` brings it up to date."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    groups = {"": project["dependencies"], **project["optional-dependencies"]}
    wanted = {
        (extra, canonicalize_name(each.name), SpecifierSet(str(each.specifier)))
        for extra, requirements in groups.items()
        for each in map(Requirement, requirements)
        if each.name != project["name"]
    }
    packages = tomllib.loads((ROOT / "uv.lock").read_text(encoding="utf-8"))["package"]
    (own,) = (each for each in packages if each["name"] == canonicalize_name(project["name"]))
    locked = {
        (
            (re.findall(r"extra == '(.*?)'", each.get("marker", "")) or [""])[0],
            each["name"],
            SpecifierSet(each.get("specifier", "")),
        )
        for each in own["metadata"]["requires-dist"]
        if each["name"] != own["name"]
    }
    assert locked == wanted
    assert own["metadata"]["provides-extras"] == list(project["optional-dependencies"])
