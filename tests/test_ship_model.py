"""The schedule of the model that comes with the project, against fairseq's own schedulers."""

from types import SimpleNamespace

import pytest
import torch
from fairseq.optim.adam import FairseqAdam, FairseqAdamConfig
from fairseq.optim.lr_scheduler.inverse_square_root_schedule import InverseSquareRootSchedule
from fairseq.optim.lr_scheduler.polynomial_decay_schedule import (
    PolynomialDecayLRSchedule,
    PolynomialDecayLRScheduleConfig,
)
from omegaconf import OmegaConf

from benchmarks.ship_model import cooldown

PEAK, WARMUP = 4e-3, 1000


@pytest.mark.parametrize(("start", "share"), [(1000, 0.25), (1857, 0.25), (6001, 0.1)])
def test_the_cooldown_begins_where_the_trunk_ends_and_comes_to_zero(
    start: int, share: float
) -> None:
    adam = OmegaConf.merge(OmegaConf.structured(FairseqAdamConfig), {"lr": [PEAK], "tpu": False})
    optimizer = FairseqAdam(adam, [torch.nn.Parameter(torch.zeros(1))])
    trunk = InverseSquareRootSchedule(
        SimpleNamespace(warmup_updates=WARMUP, warmup_init_lr=0.0, lr=[PEAK]), optimizer
    )
    end, rate = cooldown(PEAK, WARMUP, start, share)
    branch = PolynomialDecayLRSchedule(
        PolynomialDecayLRScheduleConfig(total_num_update=end, lr=[rate]), optimizer
    )
    before = trunk.step_update(start)
    assert end == pytest.approx(start * (1 + share), abs=1)
    assert branch.step_update(start) == pytest.approx(before)
    assert branch.step_update((start + end) // 2) == pytest.approx(before / 2, rel=1e-2)
    assert branch.step_update(end) == 0
