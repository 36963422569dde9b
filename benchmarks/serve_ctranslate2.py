"""The peer of benchmarks/serve.py: CTranslate2 behind FastAPI, as its users write it.

    MODEL=folder PIECES=sentencepiece.model LENGTH=20 THREADS=2 TYPE=float32 \\
        uvicorn --app-dir benchmarks serve_ctranslate2:app
"""

import os

import ctranslate2
import sentencepiece
from fastapi import FastAPI
from pydantic import BaseModel

app = FastAPI()
pieces = sentencepiece.SentencePieceProcessor(model_file=os.environ["PIECES"])
translator = ctranslate2.Translator(
    os.environ["MODEL"],
    inter_threads=int(os.environ["THREADS"]),
    intra_threads=1,
    compute_type=os.environ["TYPE"],
)
length = int(os.environ["LENGTH"])  # random weights end a sentence at no sensible place


class Request(BaseModel):
    q: str
    source: str
    target: str


@app.post("/translate")
def translate(request: Request) -> dict[str, str]:
    source = pieces.encode(request.q, out_type=str)
    found = translator.translate_batch(
        [source], beam_size=5, min_decoding_length=length, max_decoding_length=length
    )
    return {"translatedText": pieces.decode(found[0].hypotheses[0])}
