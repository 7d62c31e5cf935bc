"""The wheel in a fresh environment without torch: it encodes and decodes, and says what needs an extra."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support import photo

ROOT = Path(__file__).parent.parent
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
#: commands without torch, and what each says and its exit status
COMMANDS = {
    "encode photo.png -o photo.slim": (0, "1 file"),
    "decode photo.slim -o plain.png --steps 0": (0, "1 file"),
    "decode photo.slim -o machine.png --steps 0 --preset machine": (0, "1 file"),
    "verify photo.slim": (0, "1 file good"),
    "map photo.png -o map.png": (0, "bytes in the latent"),
    "bundle show slim-tiny": (0, "slim-tiny"),
    "doctor": (0, "pip install 'slimcodec[torch]'"),
    "decode photo.slim -o denoised.png --steps 1": (
        1,
        "denoising, steps above 0, needs torch: pip install 'slimcodec[torch]'",
    ),
    "encode photo.png -o other.slim --runtime torch": (
        1,
        "the runtime torch needs torch: pip install 'slimcodec[torch]'",
    ),
    "encode photo.png -o other.slim --model owner/name": (1, "pip install 'slimcodec[torch]'"),
    "bundle export networks": (1, "pip install 'slimcodec[torch]'"),
    "train all --config smoke": (2, "pip install 'slimcodec[train]'"),
}
PLUGIN = """
import slimcodec.integrations.pillow
from PIL import Image
Image.open("photo.png").save("plugin.slim", quality=40)
assert Image.open("plugin.slim").size == (96, 80)
try:
    import slimcodec.integrations.torch_dataset
except slimcodec.SlimError as error:
    assert "slimcodec[torch]" in str(error)
else:
    raise AssertionError
"""


def interpreter(version: str) -> str | None:
    """A Python of a version on this machine."""
    if sys.version.startswith(f"{version}."):
        return sys.executable
    found = sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python"))
    return str(found[-1]) if found else None


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(folder), str(ROOT)]
    subprocess.run(command, check=True)
    (built,) = folder.glob("*.whl")
    assert built.stat().st_size <= 26_000_000
    return built


@pytest.mark.slow
@pytest.mark.parametrize("version", PYTHONS)
def test_a_fresh_environment_needs_no_torch(version: str, wheel: Path, tmp_path: Path) -> None:
    python = interpreter(version)
    if python is None:
        pytest.skip(f"no Python {version} here")
    subprocess.run([python, "-m", "venv", tmp_path / "venv"], check=True)
    binaries = tmp_path / "venv" / "bin"
    constraints = ["-c", str(ROOT / "constraints.txt")]
    subprocess.run([binaries / "python", "-m", "pip", "install", "-q", *constraints, str(wheel)], check=True)
    photo("coffee", 96, 80).save(tmp_path / "photo.png")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    for command, (status, said) in COMMANDS.items():
        done = subprocess.run(
            [binaries / "slim", *command.split()],
            capture_output=True,
            text=True,
            check=False,
            cwd=tmp_path,
            env=environment,
        )
        output = done.stdout + done.stderr
        assert (done.returncode, said in output, "Traceback" in output) == (status, True, False), (
            command,
            output,
        )
    subprocess.run([binaries / "python", "-c", PLUGIN], check=True, cwd=tmp_path, env=environment)
