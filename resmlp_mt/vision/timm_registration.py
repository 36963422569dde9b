"""Registers our models with timm, when :mod:`resmlp_mt.vision.timm_models` imports this module."""

from typing import Any

from torch import Tensor, nn

from resmlp_mt.vision.factory import FIRST_CONV, create_model, default_config
from resmlp_mt.vision.libraries import timm
from resmlp_mt.vision.model import ResMLP
from resmlp_mt.vision.presets import HUB_NAMES, MODELS
from resmlp_mt.vision.state_dicts import checkpoint_grid, own_names, state_dict
from resmlp_mt.vision.weights import adapt

#: timm's ``global_pool`` -> our ``pooling``
POOLINGS = {"avg": "mean", "token": "class_mlp"}


def _weights_of(name: str) -> dict[str, dict[str, Any]]:
    """Where timm has weights for a model of ours, by our name with the weights' tag."""
    timm_name = HUB_NAMES.get(name)
    if timm_name is None:
        return {name: {}}
    found = timm.models.get_arch_pretrained_cfgs(timm_name).items()
    return {
        tagged.replace(timm_name, name): {
            "hf_hub_id": f"timm/{tagged}",
            "url": config.url,
            "license": config.license,
        }
        for tagged, config in found
    }


default_cfgs: Any = timm.models.generate_default_cfgs(
    {
        tagged: default_config(name) | weights
        for name in MODELS
        for tagged, weights in _weights_of(name).items()
    }
)


def _create(variant: str, pretrained: bool, **kwargs: Any) -> nn.Module:
    def build(**arguments: Any) -> nn.Module:
        pool = arguments.pop("global_pool", None)
        if pool:
            if pool not in POOLINGS:
                raise ValueError(f"global_pool must be 'avg', 'token' or '', but is {pool!r}.")
            if arguments.setdefault("pooling", POOLINGS[pool]) != POOLINGS[pool]:
                raise ValueError(f"global_pool {pool!r} is pooling {POOLINGS[pool]!r}: give one.")
        if "drop_path_rate" in arguments:
            arguments["drop_path"] = arguments.pop("drop_path_rate")
        model = create_model(variant, **arguments)
        model.register_load_state_dict_pre_hook(_rename)
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
    """Pre-trained weights under our names, for the grid of the model.

    The patches are embedded by a kernel, whose channels timm adapts.
    """
    assert isinstance(model, ResMLP)
    found = own_names(state_dict(state, model.state_dict(), "the checkpoint"))
    adapt(found, model, checkpoint_grid(state), "the checkpoint")
    kernel = f"{FIRST_CONV}.weight"
    found[kernel] = found[kernel].unflatten(1, (-1, model.patch_size, model.patch_size))
    return found


def _rename(model: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Let ``load_state_dict`` take the names of timm and of the authors: timm's loaders call it."""
    ours = [key for key in state if key.startswith(prefix)]
    named = own_names({key.removeprefix(prefix): state.pop(key) for key in ours})
    state.update({prefix + key: value for key, value in named.items()})


def _register(name: str) -> None:
    def entry(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        return _create(name, pretrained, **kwargs)

    entry.__name__ = entry.__qualname__ = name
    entry.__doc__ = f"{name}, see :func:`resmlp_mt.vision.factory.create_model`."
    timm.models.register_model(entry)


for _name in MODELS:
    _register(_name)
