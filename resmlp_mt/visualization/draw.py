"""Draws all pictures of a checkpoint into a folder."""

import json

from resmlp_mt.files import make_folder, output_file
from resmlp_mt.visualization.figures import heat_map, patch_figure, png, sparsity_plot
from resmlp_mt.visualization.matrices import (
    a_of,
    central,
    grid_of,
    matrices,
    read_checkpoint,
    row_images,
    sparsities,
    state_dict,
)
from resmlp_mt.visualization.options import Options
from resmlp_mt.visualization.page import page


def draw(options: Options) -> int:
    """Write the pictures, sparsity.json and index.html; returns the number of files.

    Raises:
        UserError: if the checkpoint has no mixing matrices, or the folder cannot be written.
    """
    checkpoint, threshold = options.checkpoint, options.threshold
    source = read_checkpoint(checkpoint)
    name = str(checkpoint)
    layers = matrices(state_dict(source, name), name, options.positions)
    files: dict[str, bytes] = {}
    for stack, members in layers.items():
        for index, layer in enumerate(members):
            if stack == "image":
                shape = grid_of(source, len(layer["A"]), options.grid)
                title = f"Layer {index}: the rows of A that belong to the patches in the middle"
                images = row_images(layer["A"], shape, options.patches)
                figure = patch_figure(images, *central(shape, options.patches), title)
            else:
                title = f"{stack.capitalize()}, layer {index}"
                figure = heat_map(a_of(layer), title, causal=stack == "decoder")
            files[f"{stack}_layer_{index:02d}.png"] = png(figure)
    numbers = sparsities(layers, threshold)
    files["sparsity.png"] = png(sparsity_plot(numbers, threshold))
    report: dict[str, object] = {"checkpoint": checkpoint.name, "threshold": threshold}
    if "image" not in layers:
        report["positions"] = len(next(iter(a_of(next(iter(layers.values()))[0]).values())))
    files["sparsity.json"] = (json.dumps(report | {"layers": numbers}, indent=1) + "\n").encode()
    heads = {stack: len(a_of(members[0])) for stack, members in layers.items()}
    files["index.html"] = page(files, checkpoint.name, heads, threshold).encode(errors="replace")
    make_folder(options.output, "--output")
    for file, content in files.items():
        with output_file(options.output / file, "--output") as partial:
            partial.write_bytes(content)
    return len(files)
