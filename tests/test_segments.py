"""Segmentation maps by a model of transformers that lies here, and what is said where none does."""

import numpy as np, pytest, torch
from PIL import Image
from fastedit import FastEditor
from fastedit.core import ModelError
from fastedit.pictures import ADE20K, segmentation_map
from fastedit.world import render, sample_scene

A = Image.fromarray(render(sample_scene(5), 64)).resize((96, 64))


def segmenter(folder, kinds=150):
    from transformers import (
        SegformerConfig,
        SegformerForSemanticSegmentation,
        SegformerImageProcessor,
    )

    sizes = dict(hidden_sizes=[8] * 4, num_attention_heads=[1] * 4, depths=[1] * 4)
    torch.manual_seed(0)
    config = SegformerConfig(decoder_hidden_size=8, num_labels=kinds, **sizes)
    SegformerForSemanticSegmentation(config).save_pretrained(folder)
    SegformerImageProcessor(size=dict(height=64, width=64)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return segmenter(tmp_path_factory.mktemp("seg"))


def test_colours_are_a_table():
    assert ADE20K.shape == (150, 3) and ADE20K.dtype == np.uint8
    wall, sky = ADE20K[0], ADE20K[2]
    assert tuple(wall) == (120, 120, 120) and tuple(sky) == (6, 230, 230)
    assert len(np.unique(ADE20K, axis=0)) == 149  # two kinds share a grey


def test_a_map_is_in_these_colours_and_of_the_pictures_size(folder):
    from transformers import SegformerForSemanticSegmentation, SegformerImageProcessor

    found = segmentation_map(A, folder)
    assert found.size == A.size and found.mode == "RGB"
    net = SegformerForSemanticSegmentation.from_pretrained(folder).eval()
    reader = SegformerImageProcessor.from_pretrained(folder)
    with torch.no_grad():
        seen = net(**reader(images=A, return_tensors="pt"))
    kinds = reader.post_process_semantic_segmentation(seen, target_sizes=[A.size[::-1]])[0]
    assert (np.asarray(found) == ADE20K[kinds.numpy()]).all()


def test_it_is_a_control_like_any_other(folder):
    how = dict(method="img2img", steps=2, control_scale=1.0)
    e = FastEditor("mini")(A, "a cup", control={"seg": segmentation_map(A, folder)}, **how)
    assert e.control_nfe and e.request.control.startswith("seg:picture:")


def test_a_model_of_other_kinds_is_refused(tmp_path):
    with pytest.raises(ModelError, match="tells 19 kinds of things apart"):
        segmentation_map(A, segmenter(tmp_path / "other", 19))
