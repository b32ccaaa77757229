"What people, files and disks put where a path, a table or a configuration belongs."

import datetime
from pathlib import Path
import pytest
from hypothesis import given, settings, strategies as st
from fastedit.core import DataError, FastEditError, ModelError, OptionError, as_path
from fastedit.models import MODELS, Lora, cache_dir, find_spec, read_models_toml, user_models
from fastedit.schema import read_toml
from fastedit.studies.bench import make_runs, read_config

# --- paths ----------------------------------------------------------------------------------------

NO_PATHS = ["~nosuchuser/a", "a\0b", "\ud800", "x" * 300, "a/" * 3000]


def test_a_path_is_given_with_its_home_filled_in():
    assert as_path("~/a.png") == Path.home() / "a.png" and as_path(Path("a")) == Path("a")


@pytest.mark.parametrize("bad", [*NO_PATHS, 3, None])
def test_what_no_path_can_be_is_refused_in_words(bad):
    with pytest.raises(DataError, match="the table .* cannot be used: .*; correct it"):
        as_path(bad, "the table", DataError)


@pytest.mark.parametrize("bad", NO_PATHS)
def test_every_door_refuses_what_is_no_path(bad):
    from fastedit.editor import read_edits
    from fastedit.measure import load_reader, read_data
    from fastedit.methods import find_method
    from fastedit.models import load_model
    from fastedit.pictures import load_image

    for call in (
        lambda: load_image(bad),
        lambda: read_data(bad),
        lambda: read_edits(bad),
        lambda: load_reader(bad),
        lambda: find_spec(bad),
        lambda: find_method(f"{bad}.py:NAME"),
        lambda: Lora(bad),
        lambda: load_model("mini", controlnet=bad),
        lambda: load_model("mini", vae=bad),
        lambda: read_models_toml(bad),
        lambda: read_config(bad),
    ):
        with pytest.raises(FastEditError):
            call()


def test_a_machine_without_homes_has_no_models_of_its_own(monkeypatch):
    for name in ("FASTEDIT_MODELS_TOML", "FASTEDIT_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)

    def nobody(path):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "expanduser", nobody)
    assert user_models() == {}
    with pytest.raises(ModelError, match="FASTEDIT_CACHE"):
        cache_dir()


# --- tables of values -----------------------------------------------------------------------------


@pytest.fixture
def toml(tmp_path):
    def write(text):
        file = tmp_path / "t.toml"
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
        return file

    return write


@pytest.mark.parametrize(
    "text",
    [b"a = \xff", b"a = 1\0", "a = " + "[" * 5000, "a = " + "9" * 5000, "a = 1\na = 2", "[a"]
    + ["[a]\n[a]", "a.b = 1\na = 2", 'a = "\\ud800"', "a = 1979-13-45", "a = '" + "x" * (1 << 20)],
)
def test_a_file_that_is_no_toml_is_refused(toml, text):
    with pytest.raises(ModelError, match="t.toml (is not readable as TOML|has more than)"):
        read_models_toml(toml(text))
    with pytest.raises(OptionError, match="t.toml (is not readable as TOML|has more than)"):
        read_config(toml(text))


def test_toml_may_begin_with_the_mark_of_utf8(toml):
    assert read_toml(toml(b"\xef\xbb\xbfa = 1")) == {"a": 1}


@pytest.mark.parametrize(
    "line, says",
    [
        ("default_stpes = 4", r"default_stpes is unknown \(did you mean 'default_steps'\?\)"),
        ("default_steps = true", "default_steps=True: give a whole number from 1 to 1,000"),
        ("default_steps = 0x" + "f" * 900, "default_steps=a number of 1,084 digits"),
        ("guidance_default = nan", "guidance_default=nan: give a number"),
        ("guidance_range = [2, 1]", "smaller number first"),
        ("guidance_range = [1]", "list of two numbers"),
        ("base = 1979-05-27", "base=.*date.*: give the owner/name"),
        ("base = {repo = 3}", "base: repo=3: give the owner/name"),
        ("lora = {file = 'a'}", "lora: there is no repo"),
        ("lora = {repo = 'a/b', revision = '../x'}", "lora: revision='../x'"),
        ("unet = []", r"unet=\[\]: give"),
        ('controlnet = "~nosuchuser/x"', "controlnet .* cannot be used: there is no such home"),
        ("controlnet = true", "controlnet=True: give one of"),
        ("precisions = ['fp15']", r"precisions=\['fp15'\]: give a list of fp32"),
        ("scheduler = 'DDIMSchedular'", r"did you mean 'DDIMScheduler'\?"),
        ("pipeline = 'Flux2KleinPipeline'", "family='sdxl' with pipeline"),
        ("multiple = 12", "multiple=12: give a multiple of vae_factor, 8"),
        ("key = 'a'", "key is unknown"),
    ],
)
def test_a_models_table_names_file_table_key_value_and_what_is_allowed(toml, line, says):
    with pytest.raises(ModelError, match=r"t.toml \[mine\]: .*" + says):
        read_models_toml(toml(f'[mine]\nlike = "sdxl"\n{line}\n'))


def test_a_models_table_keeps_what_is_right(toml):
    text = """[mine]
        like = "sdxl"
        guidance_range = [1, 2.5]
        precisions = ["fp32"]
        vae = false
        lora = {repo = "a/b", revision = "v1.0"}
        """
    spec = read_models_toml(toml(text))["mine"]
    assert spec.guidance_range == (1, 2.5) and spec.precisions == ("fp32",) and spec.vae is None
    assert (spec.lora.file, spec.lora.revision) == ("pytorch_lora_weights.safetensors", "v1.0")
    assert spec.base == MODELS["sdxl"].base


def test_a_table_with_like_path_and_base_takes_the_path(toml, tmp_path):
    spec = read_models_toml(toml('[a]\nlike = "sdxl"\npath = "here"\nbase = "a/b"\n'))["a"]
    assert spec.path == spec.base.repo == str(tmp_path / "here")


@pytest.mark.parametrize(
    "text, says",
    [
        ("per_tpye = 1", r"per_tpye is unknown \(did you mean 'per_type'\?\)"),
        ("per_type = 1.5", "per_type=1.5: give a whole number"),
        ("seeds = 1979-05-27", "seeds=.*date"),
        ("seeds = ['a']", r"seeds=\['a'\]: give a whole number, or a list"),
        ("profile = 'drwan'", r"profile='drwan': .*did you mean 'drawn'\?"),
        ("skip_bad = 1", "skip_bad=1: give true or false"),
        ("dataset = '~nosuchuser/x'", "dataset .* no such home"),
        ("settings = []", r"settings=\[\]: give a table"),
        ("[settings]\nsteps = 1979-05-27", "settings.steps=.*date"),
        ("[settings]\nsteps = nan", "settings.steps=nan: give a finite number"),
        ("[run]\nmethod = 'ddcm'", "two brackets"),
    ],
)
def test_a_bench_file_names_file_keyword_value_and_what_is_allowed(toml, text, says):
    with pytest.raises(OptionError, match="(?s)t.toml: .*" + says):
        read_config(toml(text))


@pytest.mark.parametrize("steps", ["many", {"a": 1}, [["x"]], 1e400])
def test_a_bench_refuses_settings_of_another_type(steps):
    with pytest.raises(OptionError, match="steps="):
        make_runs("ddcm", settings=dict(ddcm=dict(steps=steps)))


def test_a_grid_has_a_bound():
    many = dict(strength=[k / 40 for k in range(1, 41)], steps=list(range(1, 41)))
    with pytest.raises(OptionError, match="makes 1,600 lines"):
        make_runs("ddcm", settings=many)


# what TOML can hold, in tables of known and unknown names
VALUES = st.recursive(
    st.one_of(
        st.text(max_size=8),
        st.integers(-(10**30), 10**30),
        st.floats(),
        st.booleans(),
        st.dates(),
        st.datetimes(),
        st.sampled_from(NO_PATHS[:2] + ["sdxl", "a/b", "own", "none", "1/2", datetime.time(1)]),
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=6,
)


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_any_table_is_used_or_refused_in_words(data):
    from fastedit.models.user import ROW, _spec_from_table
    from fastedit.studies.bench.running import CONFIG

    for schema, read in (
        (ROW, lambda t: _spec_from_table("a", {"like": "sdxl", **t}, Path("m.toml"))),
        (CONFIG, lambda t: CONFIG.check(t, "b.toml: ")),
    ):
        names = st.sampled_from([*schema.fields])
        table = data.draw(st.dictionaries(names | st.text(max_size=4), VALUES, max_size=3))
        try:
            read(table)
        except FastEditError as e:
            assert ".toml" in str(e) and len(str(e)) < 3000
