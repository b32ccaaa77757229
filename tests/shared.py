"What several tests ask for alike: stock pipelines of random weights, command lines, rows."

import diffusers
from fastedit.models import random_model

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
