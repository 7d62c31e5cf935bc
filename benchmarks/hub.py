"""Milliseconds and memory of a bundle on a full-size Stable Diffusion 1.5 with random weights: what encode and decode cost.

    python benchmarks/hub.py [--bundle FOLDER] [--side 512] [--device cpu] [--batch-size 1] [--offload] [--out results/speed-hub.json]

A pipeline of the shape of Stable Diffusion 1.5 (860 M parameters in the UNet, 84 M in the autoencoder, 123 M in the text encoder)
is built and saved (2.1 GB, half precision), a bundle is made on it, and a picture goes through it in fresh processes, one for each
operation. What the weights say costs nothing, so random ones tell the time of trained ones. On a CPU: one thread, and its processor
time (``first_ms``, with loading and checking of the weights, is on the wall's clock). Times are those of a picture: with
``--batch-size`` many go through at once, and their time is divided. ``--bundle``: another bundle, which takes no denoising steps.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

OPERATIONS = ("encode", "decode 0", "decode 1", "decode 4")
#: "encode" is at effort 0, "encode 3" at effort 3
WITHOUT_STEPS = ("encode", "encode 3", "decode 0", "decode machine")

WORK = """
import json, re, sys, time
import torch
torch.set_num_threads(1)
import slimcodec
from slimcodec.batches import decode_many, encode_many
from slimcodec.data.sources import generated_rows
bundle, data, operation, side, device, batch, offload = sys.argv[1:]
batch = int(batch)
began = time.perf_counter()
codec = slimcodec.load(bundle, device=device, offload=bool(int(offload)))
import io
from PIL import Image
picture = Image.open(io.BytesIO(generated_rows(1)[0]["image"]["bytes"])).resize((int(side), int(side)))

def run():
    name, _, way = operation.partition(" ")
    if name == "encode":
        options = {"batch_size": batch, "effort": int(way or 0)}
        made = list(encode_many(codec, [picture] * batch, 50, "a photo of a tabby", **options))
        open(data, "wb").write(made[0])
    else:
        options = {"preset": way} if way == "machine" else {"steps": int(way)}
        made = list(decode_many(codec, [data] * batch, batch_size=batch, **options))
    for one in made:
        if isinstance(one, Exception):
            raise one
    if device != "cpu":
        torch.cuda.synchronize()

run()
first = time.perf_counter() - began
# on a CPU the time that one thread works, which others on the machine change little
clock = time.process_time if device == "cpu" else time.perf_counter
times = []
for _ in range(1 if device == "cpu" else 10):
    began = clock()
    run()
    times.append((clock() - began) / batch)
# not getrusage: its peak begins with that of the process that started this one
peak = int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) // 1024
result = {"ms": round(1000 * sorted(times)[len(times) // 2], 1), "first_ms": round(1000 * first, 1), "peak_mb": peak}
if device != "cpu":
    result["device_peak_mb"] = torch.cuda.max_memory_allocated() // 2**20
print(json.dumps(result | {"dtype": str(codec.bundle.parts.dtype).removeprefix("torch.")}))
"""


def build(folder: Path) -> None:
    """Saves a pipeline of Stable Diffusion 1.5's configuration with random weights in half precision."""
    import torch
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    words = folder.with_name("words")
    words.mkdir(parents=True)
    letters = [chr(code) for code in range(33, 127)]
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (words / "vocab.json").write_text(json.dumps({token: number for number, token in enumerate(tokens)}))
    (words / "merges.txt").write_text("#version: 0.2\n")
    tokenizer: Any = CLIPTokenizer
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    StableDiffusionPipeline(
        vae=AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=2,
            sample_size=512,
        ),
        unet=UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8),
        text_encoder=CLIPTextModel(
            CLIPTextConfig(
                hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12
            )
        ),
        tokenizer=tokenizer.from_pretrained(words, model_max_length=77),
        scheduler=DDIMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    torch.set_default_dtype(torch.float32)


def processor() -> str:
    """The name of the machine's processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "unknown")


def main() -> None:
    """Measures, prints a table, and writes it as JSON where asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--side", type=int, default=512, help="side of the picture in pixels")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch-size", type=int, default=1, help="pictures that go through at once")
    parser.add_argument("--offload", action="store_true", help="one part at a time on the device")
    parser.add_argument(
        "--bundle", type=Path, help="folder of a bundle (default: one on Stable Diffusion's shape)"
    )
    parser.add_argument("--work", type=Path, help="folder for the model (default: a temporary one)")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    options = parser.parse_args()
    result: dict[str, Any] = {"side": options.side, "device": options.device, "processor": processor()}
    result |= {"batch_size": options.batch_size, "offload": options.offload}
    with tempfile.TemporaryDirectory() as made:
        folder = options.work or Path(made)
        model, bundle, data = folder / "model", options.bundle or folder / "bundle", folder / "photo.slim"
        if not bundle.exists():
            if not model.exists():
                build(model)
            command = [sys.executable, "-m", "slimcodec.cli", "bundle", "create", "--ldm", str(model)]
            subprocess.run([*command, "--captioner", "none", "-o", str(bundle)], check=True)
        for operation in WITHOUT_STEPS if options.bundle else OPERATIONS:
            command = [sys.executable, "-c", WORK, str(bundle), str(data), operation, str(options.side)]
            command += [options.device, str(options.batch_size), str(int(options.offload))]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            result[operation] = json.loads(done.stdout.splitlines()[-1])
            print(operation, result[operation], flush=True)
        result["file_bytes"] = data.stat().st_size
    if options.out:
        options.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
