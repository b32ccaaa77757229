"The reader's verdicts on exact readings, its loading, and that it takes pictures of any size."

from dataclasses import replace
import numpy as np, pytest, torch
from hypothesis import given, settings, strategies as st
from safetensors.torch import save_file
from fastedit import world as pb
from fastedit.core import ImageError, ModelError, PromptError
from fastedit.measure import (
    GROUNDS,
    HEADS,
    LOOKS,
    Reader,
    Reading,
    judge_edit,
    labels_of,
    load_reader,
    places_of,
    read,
    read_images,
    reading_of,
)


def seen(*things, background="meadow", style="flat"):
    return Reading(tuple(things), background, style)


def thing(noun, colour="red", material="plain", size="large", pose="upright", count=1):
    return dict(noun=noun, colour=colour, material=material, size=size, pose=pose, count=count)


edits = st.builds(pb.sample_edit, st.sampled_from(list(pb.EDIT_TYPES)), st.integers(0, 10**6))


@given(edits)
@settings(max_examples=150, deadline=None)
def test_truth_succeeds_and_source_is_ignored(e):
    good, lazy = judge_edit(reading_of(e.target), e), judge_edit(reading_of(e.source), e)
    assert good == dict(success=True, ignored=False, missed=())
    assert lazy["ignored"] and not lazy["success"] and lazy["missed"]
    for r in (reading_of(e.target), reading_of(e.source)):
        assert judge_edit(r, e) == judge_edit(r, e.target_prompt, e.source_prompt)


@given(edits, st.data())
@settings(max_examples=100, deadline=None)
def test_one_wrong_attribute_that_is_asked_for_fails(e, data):
    right = reading_of(e.target)
    k = data.draw(st.sampled_from(["background", "style", "colour", "size", "count"]))
    if k in ("background", "style"):
        wrong = replace(
            right,
            **{
                k: data.draw(
                    st.sampled_from(
                        [
                            v
                            for v in (GROUNDS if k == "background" else LOOKS)
                            if v != getattr(right, k)
                        ]
                    )
                )
            },
        )
    else:
        i = data.draw(st.integers(0, len(right.things) - 1))
        values = [v for v in ((1, 2) if k == "count" else HEADS[k]) if v != right.things[i][k]]
        things = list(right.things)
        things[i] = dict(things[i], **{k: data.draw(st.sampled_from(values))})
        wrong = replace(right, things=tuple(things))
    verdict = judge_edit(wrong, e)
    assert not verdict["success"] and len(verdict["missed"]) == 1


@pytest.mark.parametrize(
    "reading, target, source, success, ignored",
    [
        (seen(thing("ball")), "a ball", None, True, False),  # nothing else is asked for
        # no source: cannot be called ignored
        (seen(thing("ball", "blue")), "a red ball", None, False, False),
        (seen(thing("ball", "blue")), "a red ball", "a blue ball", False, True),
        # something happened, not the right thing
        (seen(thing("ball", "green")), "a red ball", "a blue ball", False, False),
        (seen(thing("star", "blue")), "a red ball", "a blue star", False, True),
        # one of two changes
        (seen(thing("star", "red")), "a red ball", "a blue star", False, False),
        # the old thing has to go
        (seen(thing("ball"), thing("star")), "a red ball", "a red star", False, False),
        # a stray thing is not asked about
        (seen(thing("ball"), thing("cup")), "a red ball", "a red star", True, False),
        (seen(thing("ball")), "a ball", "a ball and a star", True, False),
        (seen(thing("ball"), thing("star")), "a ball", "a ball and a star", False, True),
        # the new one is there, the old one is lost
        (seen(thing("star")), "a ball and a star", "a ball", False, False),
        (seen(thing("ball")), "a ball and a star", "a ball", False, True),
        (seen(thing("ball", count=2)), "two balls", "a ball", True, False),
        (seen(thing("ball", count=1)), "two balls", "a ball", False, True),
        # one reading per noun: either colour will do
        (seen(thing("ball", "red", count=2)), "a red ball and a blue ball", None, True, False),
        (seen(thing("tree", pose="tilted")), "a tilted tree", "an upright tree", True, False),
        (seen(thing("tree", pose="tilted")), "a tree", None, True, False),
        (
            seen(thing("ball"), background="snow"),
            "a ball in the snow",
            "a ball on a meadow",
            True,
            False,
        ),
        (seen(thing("ball")), "a pencil sketch of a ball", "a drawing of a ball", False, True),
        # the source prompt says nothing of a background
        (seen(thing("ball")), "a ball in the snow", "a ball", False, False),
        (seen(), "a ball", "a star", False, False),
        (seen(thing("ball")), "a ball", "a ball", True, False),  # equal prompts change nothing
    ],
)
def test_verdicts(reading, target, source, success, ignored):
    v = judge_edit(reading, target, source)
    assert (v["success"], v["ignored"]) == (success, ignored) and bool(v["missed"]) != success


def test_missed_says_what():
    assert judge_edit(
        seen(thing("ball", "blue"), thing("star"), background="snow"),
        "two red balls on a beach",
        "a star",
    )["missed"] == (
        "ball: count is 1, not 2",
        "ball: colour is blue, not red",
        "the star is still there",
        "background is snow, not beach",
    )
    assert judge_edit(seen(), "a cup")["missed"] == ("no cup",)


@pytest.mark.parametrize("args", [("",), ("a bicycle",), ("a ball", "a bicycle"), (7,)])
def test_a_prompt_that_names_nothing_known_is_refused(args):
    with pytest.raises(PromptError):
        judge_edit(seen(thing("ball")), *args)


def test_reading_of_counts_and_orders_like_the_network():
    two = pb.Thing("star", "red", x=0.3), pb.Thing("star", "red", x=0.7)
    assert reading_of(pb.Scene(two)).things == (thing("star", count=2),)
    assert [
        t["noun"]
        for t in reading_of(pb.Scene((pb.Thing("cup", "red"), pb.Thing("ball", "red")))).things
    ] == ["ball", "cup"]


class Perfect(torch.nn.Module):
    "Answers with the labels of given scenes."

    def __init__(self, scenes):
        super().__init__()
        self.y = labels_of(scenes)

    def forward(self, x):
        return {
            k: torch.nn.functional.one_hot(
                v.clamp_min(0), len(HEADS.get(k, GROUNDS if k == "background" else LOOKS))
            ).float()
            for k, v in self.y.items()
        }


def test_labels_and_read_are_inverse():
    scenes = [pb.sample_scene(i) for i in range(60)]
    assert read(Perfect(scenes), torch.zeros(60, 3, 64, 64)) == [reading_of(s) for s in scenes]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    d = tmp_path_factory.mktemp("weights") / "reader"
    d.mkdir()
    torch.manual_seed(0)
    save_file(
        {k: v.half() if v.is_floating_point() else v for k, v in Reader().state_dict().items()},
        d / "model.safetensors",
    )
    return d


def test_load_and_read_any_size(folder, monkeypatch):
    r = load_reader(folder)
    assert (
        r is load_reader(str(folder))
        and not r.training
        and next(r.parameters()).dtype == torch.float32
    )
    monkeypatch.setenv("FASTEDIT_WEIGHTS", str(folder.parent))
    pics = [pb.render(pb.sample_scene(i), s) for i, s in ((1, 64), (2, 64), (3, 200), (4, 16))] + [
        np.zeros((40, 90, 3), np.uint8)
    ]
    together = read_images(pics)
    assert (
        together[:2] == [read_images(p)[0] for p in pics[:2]]
        and len(together) == 5
        and str(together[0]).count("|") == 2
    )


def test_bad_readers_and_pictures(tmp_path):
    with pytest.raises(ModelError, match="train reader"):
        load_reader(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"rubbish")
    with pytest.raises(ModelError, match="is no reader"):
        load_reader(tmp_path)
    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match="is no reader"):
        load_reader(tmp_path)
    for bad in ([], [b"no picture"]):
        with pytest.raises(ImageError):
            read_images(bad, Reader().eval())


def test_places_mark_each_thing_once():
    scenes = [pb.sample_scene(9_400_000 + i) for i in range(40)]
    m = places_of(scenes)
    for s, k in zip(scenes, m):
        cells = {(t.noun, int(t.y * 8), int(t.x * 8)) for t in s.things}
        assert k.sum() == len(cells) and all(k[pb.NOUNS.index(n), y, x] == 1 for n, y, x in cells)
    x = torch.randn(2, 3, 64, 64)
    r = Reader().eval()
    out, where = r.look(x)
    assert where.shape == (2, *m.shape[1:]) and all(torch.equal(out[k], v) for k, v in r(x).items())


def test_the_shipped_reader_tells_one_from_two():
    found = [
        s
        for s in map(pb.sample_scene, range(9_600_000, 9_600_900))
        if len(s.things) == 2 and s.things[0].noun == s.things[1].noun
    ][:60]
    alone = [replace(s, things=s.things[:1]) for s in found]
    pics = lambda scenes: [pb.render(s, 64) for s in scenes]
    two, one = (
        [max((t["count"] for t in r.things), default=0) for r in read_images(pics(s))]
        for s in (found, alone)
    )
    assert len(found) == 60 and two.count(2) >= 54 and one.count(1) >= 54
