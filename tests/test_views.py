"Views of edits: what a view says is what ran, and looking on changes nothing."

import pickle
import numpy as np, pytest
from fastedit import DataError, EditRequest, FastEditor, OptionError
from fastedit.editor import EditResult
from fastedit.models import load_model, random_model
from fastedit.pictures.sources import landscape
from fastedit.show import Shown
from fastedit.views import (
    attention,
    compare,
    difference_picture,
    grid,
    names_of,
    timeline,
    trajectory,
)
from tests.test_show import ids_are_unique, nothing_from_elsewhere, read

SCENE = landscape(64, 64)
WISH = dict(prompt="a <b>blue</b> ball", source_prompt="a red ball", steps=2)


@pytest.fixture(scope="module")
def editor(tmp_path_factory):
    return FastEditor(
        load_model(
            random_model(tmp_path_factory.mktemp("m") / "m", channels=(16, 32, 32), width=16)
        )
    )


@pytest.fixture(scope="module")
def edits(editor):
    return [editor(SCENE, seed=s, **WISH) for s in (1, 2)]


def well_made(shown: Shown) -> bool:
    html = shown._repr_html_()
    assert nothing_from_elsewhere(html) and ids_are_unique(html) and "<b>" not in html
    return set(shown._repr_mimebundle_()) == {"text/html", "image/png", "text/plain"}


# --- an edit by itself


def test_an_edit_shows_itself_in_three_forms(edits):
    assert well_made(edits[0]) and "<script" not in edits[0]._repr_html_()


def test_an_edit_shows_control_map_mask_times_and_notes(editor):
    mask = np.zeros((64, 64))
    mask[8:32, 8:32] = 1
    e = editor(
        SCENE,
        mask=mask,
        control="canny",
        control_scale=0.5,
        method="ddcm",
        **{k: v for k, v in WISH.items() if k != "source_prompt"},
    )
    words = " ".join(read(e._repr_html_()).words)
    assert (
        "control map: canny" in words
        and "mask" in words
        and ", ".join(map(str, e.timesteps)) in words
        and all(n in words for n in e.notes)
        and e.notes
    )


def test_a_large_edit_stays_small_in_a_notebook():
    noise = np.random.default_rng(0).integers(0, 255, (900, 1200, 3), np.uint8)
    from PIL import Image

    big = Image.fromarray(noise)
    r = EditResult(big, big, EditRequest("x"), (1,), 1, 0, dict(total=1.0), 0.5)
    assert len(r._repr_html_()) < 330_000


def test_an_edit_forgets_its_editor_when_pickled(edits):
    again = pickle.loads(pickle.dumps(edits[0]))
    assert (
        edits[0].editor is not None and again.editor is None and again.request == edits[0].request
    )


# --- several


def test_a_grid_names_what_differs(edits):
    assert names_of(edits) == ["seed 1", "seed 2"] and well_made(grid(edits))


def test_a_grid_shows_each_source_once(edits):
    assert sum(t == "img" for t, _ in read(grid(edits).html).tags) == 3


def test_a_grid_refuses_what_is_no_edit():
    for bad in ([], [SCENE], [3]):
        with pytest.raises(OptionError, match="grid wants edits"):
            grid(bad)


def test_a_grid_wants_a_label_each(edits):
    with pytest.raises(OptionError, match="1 labels for 2"):
        grid(edits, ["x"])


def test_compare_tells_settings_and_the_largest_difference(edits):
    shown = compare(*edits)
    words = " ".join(read(shown.html).words)
    _, most = difference_picture(edits[0].image, edits[1].image)
    assert well_made(shown) and "seed" in words and f"white is {most:.0f} of 255" in words


def test_compare_takes_pictures():
    assert compare(SCENE, SCENE).words.endswith("no difference")


# --- looking into a run


def test_a_trajectory_has_a_picture_for_every_step(edits):
    shown = trajectory(edits[0])
    assert well_made(shown) and "other bytes" not in shown.words
    assert sum(t == "img" for t, _ in read(shown.html).tags) == 2 + len(edits[0].timesteps)


@pytest.mark.parametrize("method", ["img2img", "ddcm", "p2p", "masactrl", "edit_friendly"])
def test_attention_looks_on_with_any_method_and_leaves_nothing_behind(editor, method):
    e = editor(SCENE, method=method, **WISH)
    before = dict(editor.parts.unet.attn_processors)
    assert (
        well_made(attention(e, "ball"))
        and editor.parts.unet.attn_processors.keys() == before.keys()
    )
    assert not any(
        "control" in type(p).__name__.lower() or hasattr(p, "control")
        for p in editor.parts.unet.attn_processors.values()
    )
    assert (
        editor(SCENE, method=method, **WISH).image.tobytes() == e.image.tobytes()
        and not editor.parts.unet._forward_pre_hooks
    )


def test_attention_names_the_words_that_are_there(edits):
    with pytest.raises(OptionError, match="there are a"):
        attention(edits[0], "elephant")


def test_a_run_is_looked_into_with_an_editor_only(edits):
    lost = pickle.loads(pickle.dumps(edits[0]))
    with pytest.raises(OptionError, match="editor"):
        trajectory(lost)


# --- time and memory


def test_a_timeline_draws_seconds_and_memory(edits):
    rows = [("text", 10, k) for k in range(50)] + [("denoise", 20, 100 - k) for k in range(50)]
    assert well_made(timeline(edits[0])) and "peak 0.12 KiB in denoise" in timeline(rows).words


def test_a_timeline_says_what_it_wants():
    for bad, kind in ((3, OptionError), ([(1, 2)], OptionError), ([], DataError)):
        with pytest.raises(kind):
            timeline(bad)
