"""A mistake of a user ends a command with one sentence, and nothing else."""

import asyncio
import code
import errno
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from resmlp_mt.command_line import CommandError, command
from resmlp_mt.engine.batches import Workers
from resmlp_mt.errors import UserError, refused
from resmlp_mt.serve import main as serve


def wrong() -> None:
    raise UserError("--beam must be at least 1,\nbut is 0.")


def test_a_prompt_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    prompt = code.InteractiveConsole({"wrong": wrong, "Workers": Workers})
    for line in ("wrong()", "Workers(0)", "print('still here')"):
        prompt.push(line)
    shown = capsys.readouterr()
    assert shown.out == "still here\n"
    assert shown.err.count("UserError: ") == 2


def test_a_block_refuses_some_errors() -> None:
    """Not those of other kinds or of memory, nor a UserError, which is a ValueError."""

    def raised(error: Exception) -> Exception:
        try:
            with refused(lambda found: f"x: {found}.", ValueError, OSError):
                raise error
        except Exception as caught:
            return caught

    assert repr(raised(ValueError("no"))) == repr(UserError("x: no."))
    for error in (KeyError("no"), OSError(errno.ENOMEM, "no"), UserError("told")):
        assert raised(error) is error


def test_an_event_loop_goes_on() -> None:
    """A task that raised SystemExit would end it, whoever waits for the task."""

    async def asked() -> str:
        async def task() -> None:
            wrong()

        (error,) = await asyncio.gather(asyncio.create_task(task()), return_exceptions=True)
        await asyncio.sleep(0)
        return str(error)

    assert asyncio.run(asked()) == r"--beam must be at least 1,\nbut is 0."


def test_a_command_ends_with_the_sentence() -> None:
    program = (
        "import sys\n"
        "from resmlp_mt.command_line import command\n"
        "from resmlp_mt.errors import UserError\n"
        "@command\n"
        "def main():\n"
        "    print('before')\n"
        "    raise UserError('no such file.')\n"
        "main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[1],
    )
    assert (done.returncode, done.stdout, done.stderr) == (1, "before\n", "no such file.\n")


@pytest.mark.parametrize("name", ["x" * 300, "none/file", "file/below"])
def test_a_file_that_the_system_refuses_is_named(name: str, tmp_path: Path) -> None:
    """Wherever a command touches it first."""
    (tmp_path / "file").touch()
    path = tmp_path / name
    with pytest.raises(UserError, match=rf"^{path} cannot be used: (File name too|No such|Not a)"):
        command(path.read_text)()


def test_too_little_memory_is_told_in_a_sentence() -> None:
    with pytest.raises(UserError, match=r"^there is not enough memory: Unable to allocate .*\.$"):
        command(lambda: np.empty(2**50))()
    with pytest.raises(UserError, match=r"^there is not enough memory: .*can't allocate memory"):
        command(lambda: torch.empty(2**50))()
    with pytest.raises(RuntimeError, match="a bug"):
        command(lambda: exec("raise RuntimeError('a bug')"))()


def test_a_program_may_catch_it_from_a_command() -> None:
    for main in (command(wrong), command(command(wrong))):
        with pytest.raises(CommandError) as caught:
            main()
        assert isinstance(caught.value, UserError)
        assert caught.value.code == str(caught.value) == r"--beam must be at least 1,\nbut is 0."
        assert isinstance(caught.value.__cause__, UserError)
    with pytest.raises(SystemExit, match="none is neither a checkpoint nor a folder"):
        serve(["none", "--port", "0"])
