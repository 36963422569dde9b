"""Distillation from a teacher, as in DeiT (Touvron et al. 2021, arXiv:2012.12877, section 4).

With student logits Z_s, teacher logits Z_t, labels y, weight alpha and temperature tau:

    soft:  (1 - alpha) L(Z_s, y) + alpha tau^2 KL(softmax(Z_t / tau) || softmax(Z_s / tau))
    hard:  (1 - alpha) L(Z_s, y) + alpha CE(Z_s, argmax Z_t)

L is the loss of the training, on mixed and smoothed labels. The teacher sees the same augmented
images. KL is the mean over images, as in the paper's equation 2 (the authors' code also divides it
by the number of classes). ResMLP has no distillation token: one classifier learns both.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from resmlp_mt.errors import UserError
from resmlp_mt.vision.class_map import check_order, check_same
from resmlp_mt.vision.factory import build_model, check_name, load_model
from resmlp_mt.vision.libraries import timm
from resmlp_mt.vision.options import model_name
from resmlp_mt.vision.transforms import check_data_config
from resmlp_mt.vision.weights import ClassifierError, load_weights

ELSEWHERE = "weights from elsewhere go to --teacher-weights FILE, with --teacher NAME"
SAME = "give a teacher with the same names in the same order"


Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(images, logits, labels) -> scalar; labels are (batch,), or (batch, classes) if mixed"""


class Teacher(nn.Module):
    """A frozen model that takes images normalised for the student.

    Args:
        model: images (batch, 3, height, width) -> logits (batch, classes).
        student: (mean, std) that the images are normalised with.
        teacher: (mean, std) that ``model`` was trained with.
    """

    scale: Tensor
    shift: Tensor

    def __init__(
        self,
        model: nn.Module,
        student: tuple[Sequence[float], Sequence[float]],
        teacher: tuple[Sequence[float], Sequence[float]],
    ) -> None:
        super().__init__()
        self.model = model.eval().requires_grad_(False)
        (mean, std), (own_mean, own_std) = (
            [torch.tensor(values).view(1, -1, 1, 1) for values in pair]
            for pair in (student, teacher)
        )
        self.register_buffer("scale", std / own_std)
        self.register_buffer("shift", (mean - own_mean) / own_std)

    def train(self, mode: bool = True) -> "Teacher":
        """Does nothing: a teacher stays in evaluation mode."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model(images * self.scale + self.shift)
        return logits


def load_teacher(
    name: str,
    weights: str | None,
    classes: Sequence[str],
    data_config: dict[str, Any],
    by_letter: bool = True,
) -> Teacher:
    """The teacher that ``--teacher`` names.

    Args:
        name: a checkpoint of :mod:`resmlp_mt.vision.train`, or the name of a model.
        weights: ``--teacher-weights``, for the name of a model.
        classes: the student's classes; a checkpoint, or weights with the names of their classes,
            must have the same in the same order.
        data_config: mean, std and input_size of the student's images.
        by_letter: the classes are sorted by letter; else their order was given for the weights too.

    Raises:
        UserError: if the teacher cannot be loaded, has other classes, or has weights twice.
    """
    student = (data_config["mean"], data_config["std"])
    if Path(name).is_file() or Path(name).suffix.lower() in (".pth", ".pt"):
        if weights:
            raise UserError(
                f"--teacher {name} is a file of weights: leave out --teacher-weights, or give the "
                "name of a model to --teacher."
            )
        model, checkpoint = load_model(name, instead=ELSEWHERE)
        check_same(checkpoint.get("classes") or [], classes, f"--teacher {name}", SAME)
        own = checkpoint.get("data_config") or {}
        check_data_config(own, f"--teacher {name}")
        return Teacher(model, student, (own["mean"], own["std"]))
    if not weights:
        if Path(name).exists():  # a folder of the hub
            raise UserError(f"--teacher {name} is no checkpoint: {ELSEWHERE}.")
        raise UserError(f"--teacher {name} needs --teacher-weights FILE.")
    plain = model_name(name)
    check_name(plain, "--teacher")
    model = build_model(plain, num_classes=len(classes))
    try:
        stored = load_weights(model, weights, option="--teacher-weights")
    except ClassifierError as error:
        raise UserError(f"{error.found}: give weights for the classes of --data.") from error
    if stored.classes is not None:
        check_same(stored.classes, classes, f"--teacher-weights {weights}", SAME)
    elif by_letter:
        check_order(classes, f"--teacher-weights {weights}", f"{SAME}, or ")
    own = stored.data_config or timm.data.resolve_model_data_config(model)
    check_data_config(own, f"--teacher-weights {weights}")
    return Teacher(model, student, (own["mean"], own["std"]))


def distillation_loss(
    base: nn.Module, teacher: nn.Module, kind: str, alpha: float, tau: float
) -> Loss:
    """The training's loss with the teacher's term, "soft" or "hard"; see this module's docstring.

    Args:
        base: logits, labels -> scalar.
        teacher: images (batch, 3, height, width) -> logits (batch, classes).
    """

    def loss(images: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        with torch.no_grad():
            teacher_logits: Tensor = teacher(images)
        if kind == "hard":
            distillation = F.cross_entropy(logits, teacher_logits.argmax(dim=1))
        else:
            distillation = tau**2 * F.kl_div(
                F.log_softmax(logits / tau, dim=1),
                F.log_softmax(teacher_logits / tau, dim=1),
                reduction="batchmean",
                log_target=True,
            )
        total: Tensor = (1 - alpha) * base(logits, labels) + alpha * distillation
        return total

    return loss
