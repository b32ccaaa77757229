"""Depth maps by a model of transformers that lies here, and what is said where none does."""

import numpy as np, pytest, torch
from PIL import Image
from fastedit import FastEditor
from fastedit.core import ModelError, OptionError
from fastedit.pictures import depth_map, segmentation_map
from fastedit.world import render, sample_scene

A = Image.fromarray(render(sample_scene(5), 64)).resize((96, 64))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    from transformers import GLPNConfig, GLPNForDepthEstimation, GLPNImageProcessor

    d = tmp_path_factory.mktemp("depth")
    sizes = dict(hidden_sizes=[8] * 4, num_attention_heads=[1] * 4, depths=[1] * 4)
    torch.manual_seed(0)
    GLPNForDepthEstimation(GLPNConfig(decoder_hidden_size=8, **sizes)).save_pretrained(d)
    GLPNImageProcessor().save_pretrained(d)
    return d


def test_a_map_has_the_pictures_size_and_the_whole_range(folder):
    near = np.asarray(depth_map(A, folder)).astype(int)
    assert near.shape == (64, 96, 3) and (near[..., 0] == near[..., 2]).all()
    assert near.min() < 30 and near.max() > 225
    far = np.asarray(depth_map(A, folder, far_is_white=True)).astype(int)
    assert np.abs(near + far - 255).max() <= 1


def test_it_is_a_control_like_any_other(folder):
    editor = FastEditor("mini")
    how = dict(method="img2img", steps=2, control_scale=1.0)
    e = editor(A, "a cup", control=depth_map(A, folder), **how)
    assert e.control_nfe and e.request.control.startswith("picture:")


@pytest.mark.parametrize("make", [depth_map, segmentation_map])
def test_a_model_that_is_not_here_is_named(tmp_path, make):
    with pytest.raises(ModelError, match="hf download nobody/maps"):
        make(A, "nobody/maps")
    with pytest.raises(ModelError, match="folder with one of transformers'"):
        make(A, tmp_path)


def test_far_is_white_is_a_switch(folder):
    with pytest.raises(OptionError, match="far_is_white"):
        depth_map(A, folder, far_is_white="yes")
