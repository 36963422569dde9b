"""Distillation: the loss against DeiT's equations, and a student that moves to its teacher."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from resmlp_mt.errors import UserError
from resmlp_mt.vision import checkpoints, distill, factory, train
from resmlp_mt.vision.libraries import timm

IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
#: how the images of the student, and those of a teacher, are prepared
CONFIG: dict[str, Any] = {
    "input_size": [3, 32, 32], "mean": IMAGENET[0], "std": IMAGENET[1], "interpolation": "bicubic",
    "crop_pct": 0.9,
}  # fmt: skip
OTHER = ([0.5, 0.4, 0.3], [0.2, 0.3, 0.4])
NAME = "timm:test_convnext"


class Constant(nn.Module):
    """A teacher that always says the same."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, images: Tensor) -> Tensor:
        return self.logits


def softmax(logits: list[float], tau: float) -> list[float]:
    powers = [math.exp(value / tau) for value in logits]
    return [power / sum(powers) for power in powers]


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 1000),
    batch=st.integers(1, 4),
    classes=st.integers(2, 5),
    alpha=st.floats(0, 1),
    tau=st.floats(0.5, 5),
)
def test_the_loss_is_that_of_the_equations(
    seed: int, batch: int, classes: int, alpha: float, tau: float
) -> None:
    """Equations 2 (soft) and 3 (hard) of arXiv:2012.12877, entry by entry."""
    generator = torch.Generator().manual_seed(seed)
    student, teacher = torch.randn(2, batch, classes, generator=generator, dtype=torch.float64)
    labels = torch.randint(classes, (batch,), generator=generator)
    soft = hard = 0.0
    for z_s, z_t, y in zip(student.tolist(), teacher.tolist(), labels.tolist(), strict=True):
        cross_entropy = -math.log(softmax(z_s, 1)[y])
        pairs = zip(softmax(z_t, tau), softmax(z_s, tau), strict=True)
        kl = sum(p * math.log(p / q) for p, q in pairs)
        teacher_label = max(range(classes), key=lambda c: z_t[c])
        soft += ((1 - alpha) * cross_entropy + alpha * tau**2 * kl) / batch
        hard += (
            (1 - alpha) * cross_entropy - alpha * math.log(softmax(z_s, 1)[teacher_label])
        ) / batch
    for kind, expected in (("soft", soft), ("hard", hard)):
        loss = distill.distillation_loss(nn.CrossEntropyLoss(), Constant(teacher), kind, alpha, tau)
        found = loss(torch.zeros(batch, 3, 1, 1), student, labels).item()
        assert found == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_a_teacher_sees_its_own_normalisation_and_stays_frozen() -> None:
    images = torch.rand(2, 3, 32, 32)
    model = factory.build_model(NAME, num_classes=3)

    def normalised(mean: list[float], std: list[float]) -> Tensor:
        return (images - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)

    teacher = distill.Teacher(model, student=IMAGENET, teacher=OTHER).train()
    assert not any(module.training for module in teacher.modules())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    found = teacher(normalised(*IMAGENET))
    torch.testing.assert_close(found, model(normalised(*OTHER)), rtol=1e-4, atol=1e-5)


def test_teachers_come_from_timm_weights_and_from_checkpoints(tmp_path: Path) -> None:
    images = torch.rand(2, 3, 32, 32)
    model = factory.build_model(NAME, num_classes=2)
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    teacher = distill.load_teacher(NAME, str(tmp_path / "weights.pth"), ["a", "b"], CONFIG)
    own = model.pretrained_cfg
    expected = distill.Teacher(model, IMAGENET, (own["mean"], own["std"]))(images)
    torch.testing.assert_close(teacher(images), expected)
    state = {
        "model": model.state_dict(),
        "model_args": {"name": NAME, "num_classes": 2},
        "classes": ["a", "b"],
        "data_config": CONFIG,
    }
    checkpoints.save(state, tmp_path / "best.pth")
    teacher = distill.load_teacher(str(tmp_path / "best.pth"), None, ["a", "b"], CONFIG)
    torch.testing.assert_close(teacher(images), model.eval()(images))
    with pytest.raises(UserError, match="is a file of weights: leave out --teacher-weights, or"):
        distill.load_teacher(str(tmp_path / "best.pth"), "w.pth", ["a", "b"], CONFIG)
    with pytest.raises(UserError, match="knows 2 classes that are not the 2 of --data"):
        distill.load_teacher(str(tmp_path / "best.pth"), None, ["a", "c"], CONFIG)


def test_the_weights_of_a_teacher_have_the_classes_of_the_data(tmp_path: Path) -> None:
    model = factory.build_model(NAME, num_classes=2)
    plain, named = str(tmp_path / "plain.pth"), str(tmp_path / "named.pth")
    torch.save(model.state_dict(), plain)
    torch.save({"model": model.state_dict(), "classes": ["10", "2"]}, named)
    distill.load_teacher(NAME, named, ["10", "2"], CONFIG)
    distill.load_teacher(NAME, plain, ["10", "2"], CONFIG, by_letter=False)
    with pytest.raises(UserError, match=r"plain.pth has no names of classes, and timm sorts"):
        distill.load_teacher(NAME, plain, ["10", "2"], CONFIG)
    with pytest.raises(UserError, match=r"--teacher-weights .*named.pth knows 2 classes that are"):
        distill.load_teacher(NAME, named, ["2", "10"], CONFIG, by_letter=False)


def test_a_teacher_of_a_thousand_classes_without_names_is_imagenets(tmp_path: Path) -> None:
    """As in evaluate; numbers are in their order."""
    path = str(tmp_path / "w.pth")
    torch.save(factory.build_model(NAME, num_classes=1000).state_dict(), path)
    for classes in (timm.data.ImageNetInfo().label_names(), [f"{n:03}" for n in range(1000)]):
        distill.load_teacher(NAME, path, classes, CONFIG)
    words = [f"word {n:03}" for n in range(1000)]
    with pytest.raises(UserError, match=r"taken for ImageNet's .* word 000, .*: give a teacher"):
        distill.load_teacher(NAME, path, words, CONFIG)
    distill.load_teacher(NAME, path, words, CONFIG, by_letter=False)


def test_weights_bring_the_normalisation_of_their_training(tmp_path: Path) -> None:
    own = CONFIG | {"mean": OTHER[0], "std": OTHER[1]}
    model = factory.build_model(NAME, num_classes=2)
    path = str(tmp_path / "w.pth")
    images = torch.rand(2, 3, 32, 32)
    timms = model.pretrained_cfg
    for stored, used in ((own, own), ({**own, "std": [0]}, timms), ("of another trainer", timms)):
        torch.save({"model": model.state_dict(), "data_config": stored}, path)
        teacher = distill.load_teacher(NAME, path, ["a", "b"], CONFIG)
        expected = distill.Teacher(model, IMAGENET, (used["mean"], used["std"]))(images)
        torch.testing.assert_close(teacher(images), expected)


def test_a_teacher_in_a_folder_of_the_hub_has_its_names_and_normalisation(tmp_path: Path) -> None:
    model = timm.create_model("test_convnext", num_classes=2).eval()
    model.pretrained_cfg |= {"mean": OTHER[0], "std": OTHER[1]}
    timm.models.save_for_hf(model, str(tmp_path), model_config={"label_names": ["b", "a"]})
    teacher = distill.load_teacher(NAME, str(tmp_path), ["b", "a"], CONFIG)
    images = torch.rand(2, 3, 32, 32)
    expected = distill.Teacher(model, IMAGENET, OTHER)(images)
    torch.testing.assert_close(teacher(images), expected)
    with pytest.raises(UserError, match="knows 2 classes that are not the 2 of --data"):
        distill.load_teacher(NAME, str(tmp_path), ["a", "b"], CONFIG)
    written = json.loads((tmp_path / "config.json").read_text())
    written["pretrained_cfg"]["std"] = [0, 0, 0]
    (tmp_path / "config.json").write_text(json.dumps(written))
    with pytest.raises(UserError, match=r"--teacher-weights .*: its data_config .* is not usable"):
        distill.load_teacher(NAME, str(tmp_path), ["b", "a"], CONFIG)


def test_a_student_goes_on_where_its_teacher_is_now(tmp_path: Path) -> None:
    small = ["--epochs=2", "--batch-size=512", "--max-updates=1"]
    teachers = [
        train_on_digits(tmp_path / name, *small, f"--seed={seed}")
        for seed, name in enumerate(("old", "other"))
    ]
    options = [*small, f"--teacher={teachers[0]}", "--distillation-type=hard"]
    last = train_on_digits(tmp_path / "student", *options)
    (tmp_path / "old").rename(tmp_path / "new")
    with pytest.raises(UserError, match=r"learned from another teacher than --teacher names"):
        train.main([f"--resume={last}", f"--teacher={teachers[1]}"])
    train.main([f"--resume={last}", f"--teacher={tmp_path / 'new/last.pth'}"])
    assert checkpoints.load(last)["position"]["epoch"] == 2
    assert "teacher" not in checkpoints.load(last.with_name("best.pth"))


def test_teachers_that_cannot_be_loaded_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="needs --teacher-weights FILE"):
        distill.load_teacher(NAME, None, ["a"], CONFIG)
    with pytest.raises(UserError, match="--teacher nonsense: there is no such model"):
        distill.load_teacher("nonsense", "w.pth", ["a"], CONFIG)
    with pytest.raises(UserError, match=r"no\.pth cannot be read"):  # the model is known
        distill.load_teacher("hf-hub:timm/resmlp_12_224", str(tmp_path / "no.pth"), ["a"], CONFIG)
    with pytest.raises(UserError, match=r"no\.pth cannot be read: No such file"):
        distill.load_teacher(NAME, str(tmp_path / "no.pth"), ["a"], CONFIG)
    elsewhere = "weights from elsewhere go to --teacher-weights FILE, with --teacher NAME"
    torch.save({"head.weight": torch.zeros(1)}, tmp_path / "timm.pth")
    for path in (tmp_path / "timm.pth", tmp_path):  # a folder of the hub
        with pytest.raises(UserError, match=rf"{path}.* {elsewhere}\.$"):
            distill.load_teacher(str(path), None, ["a"], CONFIG)
    with pytest.raises(UserError, match=r"timm\.pth is a file of weights: leave out --teacher-w"):
        distill.load_teacher(str(tmp_path / "timm.pth"), "w.pth", ["a"], CONFIG)
    message = r"^--teacher-weights timm:nothing: timm's .* and give the file to --teacher-weights\."
    with pytest.raises(UserError, match=message):
        distill.load_teacher(NAME, "timm:nothing", ["a"], CONFIG)
    other = factory.build_model(NAME, num_classes=5)
    for name, content, message in (
        (
            "w.pth",
            other.state_dict(),
            r"w\.pth: its classifier has 5 classes and the model 1: give w",
        ),
        ("x.pth", [1], r"x\.pth holds a list"),
    ):
        torch.save(content, tmp_path / name)
        with pytest.raises(UserError, match=message):
            distill.load_teacher(NAME, str(tmp_path / name), ["a"], CONFIG)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--teacher", "x.pth"], "--teacher needs --distillation-type"),
        (["--distillation-type", "hard"], "--distillation-type hard needs --teacher"),
    ],
)
def test_half_an_order_is_refused(options: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        train.main([*options, "--output", str(tmp_path)])


@pytest.mark.parametrize("kind", ["soft", "hard"])
def test_the_student_moves_towards_its_teacher(kind: str, tmp_path: Path) -> None:
    """The teacher calls every digit d by the name d + 1: only its word can lead there."""
    torch.manual_seed(0)
    teacher = train_on_digits(tmp_path / "teacher", "--epochs=8")
    state = checkpoints.load(teacher)
    for name in ("head.weight", "head.bias"):
        state["model"][name] = state["model"][name].roll(1, dims=0)
    checkpoints.save(state, teacher)
    options = [f"--teacher={teacher}", f"--distillation-type={kind}", "--epochs=4"]
    agreement = {}
    for alpha in (0, 1):
        student = train_on_digits(
            tmp_path / f"student{alpha}", *options, f"--distillation-alpha={alpha}"
        )
        agreement[alpha] = agree(teacher, student)
    assert agreement[0] < 0.2
    assert agreement[1] > 0.5


def train_on_digits(output: Path, *options: str) -> Path:
    train.main([f"--output={output}", "--patch-size=4", "--warmup-epochs=0",
                "--model-kwargs", "layer_scale_init=1.0", *options])  # fmt: skip
    return output / "last.pth"


def agree(teacher: Path, student: Path) -> float:
    from resmlp_mt.vision.data import create_dataset
    from resmlp_mt.vision.transforms import create_transform

    models = [factory.load_model(path) for path in (teacher, student)]
    transform = create_transform(models[0][1]["data_config"])
    dataset = create_dataset(["digits"], "val", transform)
    images = torch.stack([image for image, _ in dataset])
    with torch.no_grad():
        first, second = (model(images).argmax(1) for model, _ in models)
    return (first == second).float().mean().item()
