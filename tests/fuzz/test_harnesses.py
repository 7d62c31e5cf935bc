"""The fuzzer's harnesses, without the fuzzer: their corpus, sound inputs, and some hundred seeded mutations."""

from __future__ import annotations

import random
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from fuzz import harnesses
from fuzz.harnesses import HARNESSES
from fuzz.mutator import any_bytes
from fuzz.seeds import corpus, seeds

from slimcodec.entropy.coder import SymbolDecoder
from slimcodec.errors import FormatError

#: mutated inputs of each harness: a picture costs milliseconds
MUTATED = {"picture": 30, "entropy": 150}


@pytest.mark.parametrize("name", HARNESSES)
def test_corpus_and_sound_inputs(name: str) -> None:
    accepted = [HARNESSES[name](data) for data in seeds(name)]
    assert corpus(name)
    assert any(accepted) and (name == "caption" or not all(accepted))


@pytest.mark.parametrize("name", HARNESSES)
def test_mutations_find_nothing(name: str) -> None:
    inputs, rng = seeds(name), random.Random(name)
    for _ in range(MUTATED.get(name, 400)):
        HARNESSES[name](any_bytes(rng.choice(inputs), rng))


def test_a_decoder_that_reads_other_symbols_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    sound = next(data for data in seeds("entropy") if HARNESSES["entropy"](data) and len(data) > 12)
    read = SymbolDecoder.decode
    monkeypatch.setattr(SymbolDecoder, "decode", lambda self, indices: -read(self, indices))
    with pytest.raises(AssertionError, match="other symbols"):
        harnesses.entropy(sound)


def test_a_decoder_that_refuses_sound_bytes_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise FormatError("no")

    monkeypatch.setattr(SymbolDecoder, "decode", refuse)
    with pytest.raises(AssertionError, match="refuses"):
        harnesses.entropy(seeds("entropy")[-1])


def test_the_fuzzer_says_what_it_needs(tmp_path: Path) -> None:
    script = Path(__file__).parent / "run_atheris.py"
    done = subprocess.run(
        [sys.executable, str(script), "nothing"], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    wanted = "container, behind_checksum" if find_spec("atheris") else "pip install atheris"
    assert done.returncode == 1 and wanted in done.stderr
