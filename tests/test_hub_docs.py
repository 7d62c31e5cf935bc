"""docs/hub.md: every command and every line of Python in it runs as it stands, on tiny models in the places of the real ones."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from documents import ROOT, run_page
from PIL import Image
from pretrained import save_blip, save_clip, save_pipeline, save_taef2, tiny_autoencoder
from support import photo
from test_hub_training import SETTINGS


def keep(cache: Path, name: str, folder: Path) -> None:
    """Puts a model into a hub's cache under the id ``name``."""
    commit = "3" * 40
    repository = cache / f"models--{name.replace('/', '--')}"
    shutil.copytree(folder, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)


@pytest.mark.slow
def test_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub
    import huggingface_hub.constants

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    tiny_autoencoder().save_pretrained(tmp_path / "models" / "taesd")
    save_blip(tmp_path / "models" / "blip")
    save_clip(tmp_path / "models" / "clip")
    for name, folder in (
        ("stable-diffusion-v1-5/stable-diffusion-v1-5", save_pipeline("sd1", tmp_path / "models")),
        ("stabilityai/sd-turbo", save_pipeline("turbo", tmp_path / "models")),
        ("stabilityai/sdxl-turbo", save_pipeline("sdxl", tmp_path / "models")),
        ("madebyollin/taesd", tmp_path / "models" / "taesd"),
        ("Salesforce/blip-image-captioning-base", tmp_path / "models" / "blip"),
        ("openai/clip-vit-base-patch32", tmp_path / "models" / "clip"),
    ):
        keep(tmp_path / "cache", name, folder)
    shutil.rmtree(tmp_path / "models")
    save_taef2(tmp_path / "taef2")
    shutil.copytree(ROOT / "bundles", tmp_path / "bundles")
    (tmp_path / "photos").mkdir()
    for name in ("coffee", "chelsea"):
        photo(name, 140, 130).save(tmp_path / "photos" / f"{name}.png")
    photo("chelsea", 64, 64).save(tmp_path / "photos" / "cat.png")
    (tmp_path / "tags.txt").write_text("cat\ncoffee cup\n")
    small = [part for setting in SETTINGS if not setting.startswith("data=") for part in ("--set", setting)]
    few = [f"{stage}.optimisation.steps=2" for stage in ("latents", "compressor", "enhance")]
    few += [
        "latents.count=4",
        "latents.side=64",
        "latents.optimisation.batch=2",
        "latents.optimisation.crop=64",
    ]
    small += [part for setting in few for part in ("--set", setting)]
    uploaded: list[str] = []

    class Hub:
        def create_repo(self, repository: str, private: bool, exist_ok: bool) -> str:
            return repository

        def upload_folder(self, repo_id: str, folder_path: str) -> None:
            uploaded.append(repo_id)

    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    paths = sorted((tmp_path / "photos").iterdir())
    names = run_page(
        ROOT / "docs" / "hub.md",
        {"paths": paths},
        lambda arguments: small if arguments[0] == "train" else [],
    )
    for name in (
        "steps0.png",
        "steps4.png",
        "packed.png",
        "mine.png",
        "offloaded.png",
        "flux2-machine.png",
        "turbo.png",
        "pictures/cat.png",
    ):
        assert (tmp_path / name).is_file()
    assert uploaded == ["owner/mine"]
    assert [picture.width for picture in names["pictures"]] == [Image.open(p).width for p in paths]
