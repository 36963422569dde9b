"""Registers our models with timm, when this module is imported.

    import resmlp_mt.vision.timm_models
    model = timm.create_model("resmlp_s12", pretrained=True, num_classes=10)

For timm's own scripts, ``python -m`` registers the models and then runs the script:

    python -m resmlp_mt.vision.timm_models train.py DATA --model resmlp_s12
    python -m resmlp_mt.vision.timm_models validate.py DATA --model resmlp_s12 --checkpoint FILE

Pre-trained weights are those of timm's own ResMLP, from timm's hub.
"""

import runpy
import sys
from typing import Any

from torch import Tensor, nn

from resmlp_mt.errors import UserError
from resmlp_mt.vision.factory import MODELS, create_model, default_config
from resmlp_mt.vision.libraries import timm
from resmlp_mt.vision.model import ResMLP
from resmlp_mt.vision.parameter_names import own_names
from resmlp_mt.vision.state_dicts import state_dict
from resmlp_mt.vision.weights import adapt, checkpoint_grid

#: tags of timm's weights: trained on ImageNet alone, and with a teacher
TAGS = ("fb_in1k", "fb_distilled_in1k")
#: timm's ``global_pool`` -> our ``pooling``
POOLINGS = {"avg": "mean", "token": "class_mlp"}

default_cfgs: Any = timm.models.generate_default_cfgs(
    {
        f"{name}{tag}": {
            **default_config(name),
            **({"hf_hub_id": f"timm/{preset.timm_name}{tag}"} if tag else {}),
        }
        for name, preset in MODELS.items()
        for tag in ([f".{tag}" for tag in TAGS] if preset.timm_name else [""])
    }
)


def _create(variant: str, pretrained: bool, **kwargs: Any) -> nn.Module:
    def build(**arguments: Any) -> nn.Module:
        pool = arguments.pop("global_pool", None)
        if pool:
            if pool not in POOLINGS:
                raise ValueError(f"global_pool must be 'avg', 'token' or '', but is {pool!r}.")
            arguments["pooling"] = POOLINGS[pool]
        if "drop_path_rate" in arguments:
            arguments["drop_path"] = arguments.pop("drop_path_rate")
        model = create_model(variant, **arguments)
        if pool == "":
            model.global_pool = ""
        return model

    model: nn.Module = timm.models.build_model_with_cfg(
        build,
        variant,
        pretrained,
        pretrained_filter_fn=_filter,
        feature_cfg={"out_indices": 3, "feature_cls": "getter"},
        **kwargs,
    )
    return model


def _filter(state: dict[str, Any], model: nn.Module) -> dict[str, Tensor]:
    """Pre-trained weights under our names, for the channels and the grid of the model."""
    assert isinstance(model, ResMLP)
    found = own_names(state_dict(state, model.state_dict(), "the checkpoint"))
    patches = found["patch_embed.proj.weight"].unflatten(1, (-1, *[model.patch_size] * 2))
    if patches.size(1) != model.in_chans:
        patches = timm.models.adapt_input_conv(model.in_chans, patches)
    found["patch_embed.proj.weight"] = patches.flatten(1)
    adapt(found, model, checkpoint_grid(state), "the checkpoint")
    return found


def _register(name: str) -> None:
    def entry(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        return _create(name, pretrained, **kwargs)

    entry.__name__ = entry.__qualname__ = name
    entry.__doc__ = f"{name}, see :func:`resmlp_mt.vision.factory.create_model`."
    timm.models.register_model(entry)


for _name in MODELS:
    _register(_name)


def main() -> None:
    """Run a script of timm with our models registered.

    Raises:
        UserError: if no script is named.
    """
    if len(sys.argv) < 2 or not sys.argv[1].endswith(".py"):
        raise UserError(
            "python -m resmlp_mt.vision.timm_models SCRIPT.py ...: name timm's train.py or "
            "validate.py, with its options."
        )
    sys.argv = sys.argv[1:]
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
