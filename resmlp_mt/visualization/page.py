"""The HTML page with all pictures of a checkpoint and explanations."""

import base64
import html
from collections.abc import Mapping

LETTERS = """<dl>
<dt>A</dt><dd>{a}</dd>
<dt>B, C</dt><dd>the two matrices of the feed-forward layer, C GELU(B x): they mix over channels,
the same for every {token}.</dd>
<dt>Sparsity</dt><dd>the share of the entries of a matrix whose size is below {share:g}% of the
size of its largest entry.</dd>
</dl>"""
IMAGE = """the matrix that mixes over the patches of an image, the same for every channel. Row t
of A holds the weights with which all patches contribute to patch t. Each small picture is one row,
laid out as the patches lie in the image, for one of the patches in the middle; it is scaled by its
largest weight."""
TRANSLATION = """the matrix that mixes over the positions of a sentence{heads}. Row t of A holds the
weights with which all positions contribute to position t. In the decoder, a position receives only
from itself and the positions before it. On the right, some rows are drawn against the distance:
weights left of 0 belong to earlier words."""


def page(
    files: Mapping[str, bytes], title: str, stacks: Mapping[str, int], threshold: float
) -> str:
    """An HTML page that holds all PNG files and links to every file by name.

    ``stacks`` has the number of heads of each stack ("image", "encoder" or "decoder").
    """
    image = "image" in stacks
    heads = max(stacks.values())
    several = ", one for each of its heads, which are groups of channels" if heads > 1 else ""
    a = IMAGE if image else TRANSLATION.format(heads=several or ", the same for every channel")
    letters = LETTERS.format(a=a, token="patch" if image else "position", share=100 * threshold)
    parts = []
    for name, content in files.items():
        link = f'<a href="{name}">{name}</a>'
        if name.endswith(".png"):
            data = base64.b64encode(content).decode()
            parts.append(
                f'<figure><img src="data:image/png;base64,{data}" alt="{name}">'
                f"<figcaption>{link}</figcaption></figure>"
            )
        else:
            parts.append(f"<p>{link}</p>")
    body = "\n".join(parts)
    return (
        '<!DOCTYPE html>\n<html lang="en"><meta charset="utf-8">\n'
        f"<title>{html.escape(title)}</title>\n"
        "<style>body{font-family:sans-serif;max-width:80em;margin:auto} "
        "figure{display:inline-block;margin:8px} img{max-width:100%} dt{font-weight:bold}</style>\n"
        f"<h1>{html.escape(title)}</h1>\n"
        "<p>What the layers of a ResMLP have learned. Weights below zero are blue, above zero red."
        f"</p>\n{letters}\n{body}\n</html>\n"
    )
