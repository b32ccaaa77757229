"What several tests ask for alike: stock pipelines of random weights, command lines, rows."

import json
from pathlib import Path
import diffusers
from fastedit.models import clip_tokenizer, random_model, tiny_configs

DEMO_ROW = {
    "method",
    "model",
    "success",
    "ignored",
    "background_psnr",
    "target_psnr",
    "nfe",
    "seconds",
    "network_seconds",
    "n",
}


def stock_pipeline(folder, family, kind, control=False):
    """A pipeline of diffusers over a random model of a family, "sdxl" or "sd15", in a folder.

    kind: what follows the family in the pipeline's name, such as "Img2ImgPipeline"."""
    diffusers.logging.disable_progress_bar()
    random_model(folder, family, channels=(16, 32, 32), width=16)
    more = dict(safety_checker=None) if family == "sd15" else {}
    if control:
        more["controlnet"] = diffusers.ControlNetModel.from_pretrained(folder / "controlnet")
    name = "StableDiffusion" + ("XL" if family == "sdxl" else "") + kind
    pipe = getattr(diffusers, name).from_pretrained(folder, **more)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def bench_command(model, folder, *more):
    "A bench of one step over the list d.csv of a folder, into its o."
    files = "--dataset", str(folder / "d.csv"), "--out", str(folder / "o")
    asked = "--model", str(model), "--methods", "ddcm", "--set", "steps=1", "--profile", "drawn"
    return ["bench", *files, *asked, "--quiet", *more]


def instruct_folder(folder):
    "A random model that follows instructions in form: 8 input channels, many DDIM steps."
    c = tiny_configs("sdxl", vocab=clip_tokenizer(Path(folder) / "tok"))
    c["unet"] = c["unet"][0], dict(c["unet"][1], in_channels=8)
    c.pop("controlnet")
    made = Path(random_model(Path(folder) / "m", configs=c))
    for file, change in (
        ("scheduler/scheduler_config.json", dict(_class_name="DDIMScheduler")),
        ("model_index.json", dict(scheduler=["diffusers", "DDIMScheduler"])),
    ):
        said = json.loads((made / file).read_text())
        (made / file).write_text(json.dumps(said | change))
    return str(made)
