"""The blocks of a backbone that FSDP2 gives their own collectives."""

import pytest
import timm

from adde.training.strategies.fsdp import SMALLEST_BLOCK, blocks


@pytest.mark.parametrize(
    ("backbone", "kind", "count"),
    [
        ("resnet18", "BasicBlock", 8),
        ("vit_tiny_patch16_224", "Block", 12),
        ("convnext_atto", "ConvNeXtBlock", None),
        ("test_resnet", None, None),
    ],
)
def test_blocks_are_the_repeated_ones(backbone, kind, count):
    model = timm.create_model(backbone, num_classes=0)
    found = blocks(model)
    assert len(found) == len(set(map(id, found))) >= 1
    if kind is not None:
        named = [b for b in found if type(b).__name__ == kind]
        assert named
        assert count is None or len(named) == count
    # Innermost first, as fully_shard requires.
    for at, block in enumerate(found):
        assert not any(inner in found[at + 1 :] for inner in list(block.modules())[1:])
        assert sum(p.numel() for p in block.parameters()) >= SMALLEST_BLOCK


def test_layers_in_a_row_are_left_to_the_whole():
    from adde.model.alexnet import AlexNet

    assert blocks(AlexNet()) == []
