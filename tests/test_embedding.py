"""The gradient of an embedding that is also the output projection."""

import copy

import pytest
import torch
from torch import Tensor

from resmlp_mt.model import embedding
from resmlp_mt.models.resmlp_mt import ResMLPModel
from tests.models import PAD, build

SOURCE = torch.tensor([[5, 7, 5, 2], [9, 2, PAD, PAD]])
TARGET = torch.tensor([[2, 7, 8], [2, 7, PAD]])


def loss(model: ResMLPModel, *, features_only: bool = False) -> Tensor:
    output: Tensor = model(SOURCE, None, TARGET, features_only=features_only)[0]
    return output.square().sum()


@pytest.mark.parametrize("shared", ["share_all_embeddings", "share_decoder_input_output_embed"])
@pytest.mark.parametrize("features_only", [False, True])
def test_it_is_dense_and_that_of_torch(
    shared: str, features_only: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for is_plain in (True, False):
        monkeypatch.setattr(embedding, "are_plain", lambda *_, is_plain=is_plain: is_plain)
        model = build(**{shared: True})
        for times in (1, 2):  # gradients are added up
            loss(model, features_only=features_only).backward()
            of_both = [side.embed_tokens.weight.grad for side in (model.encoder, model.decoder)]
            assert not any(grad.is_sparse for grad in of_both)
            found.append(torch.stack(of_both) / times)
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-12, atol=1e-12)


def test_it_is_sparse_until_the_output_projection_is_added() -> None:
    model = build(share_all_embeddings=True)
    weight = model.decoder.embed_tokens.weight
    (of_features,) = torch.autograd.grad(loss(model, features_only=True), weight)
    (of_scores,) = torch.autograd.grad(loss(model), weight)
    assert (of_features.is_sparse, of_scores.is_sparse) == (True, False)
    # a copy has no hook that would make it dense
    (of_copy,) = torch.autograd.grad(
        loss(copied := copy.deepcopy(model), features_only=True), copied.decoder.embed_tokens.weight
    )
    torch.testing.assert_close(of_copy, of_features.to_dense())
    separate = build()
    loss(separate, features_only=True).backward()
    assert not separate.encoder.embed_tokens.weight.grad.is_sparse
