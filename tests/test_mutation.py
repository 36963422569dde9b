"""The list of deliberate faults fits the code; ``python -m tests.mutation`` tries them."""

import re

import pytest

from conftest import ROOT
from mutation.faults import FAULTS, Fault


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.what)
def test_a_fault_can_be_made(fault: Fault) -> None:
    text = (ROOT / fault.file).read_text(encoding="utf-8")
    assert text.count(fault.old) == 1
    assert fault.new != fault.old
    files = re.findall(r"tests/\w+\.py", fault.tests)
    assert files
    assert all((ROOT / name).exists() for name in files)


def test_there_are_enough() -> None:
    assert len(FAULTS) >= 40
    assert len({(fault.file, fault.old, fault.new) for fault in FAULTS}) == len(FAULTS)
