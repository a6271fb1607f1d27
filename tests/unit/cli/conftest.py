"""The command line called in this process as a shell would call it: arguments in, exit code and text out."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from scaler_wizard.cli.main import main
from scaler_wizard.specs.yaml_io import dump_yaml
from scaler_wizard.store.workspace import Workspace


@dataclass(frozen=True)
class Called:
    code: int
    out: str
    err: str

    @property
    def last(self) -> dict[str, Any]:
        """The JSON object on the last line of standard output."""
        value = json.loads(self.out.splitlines()[-1])
        assert isinstance(value, dict)
        return value


Scaler = Callable[..., Called]


@pytest.fixture
def scaler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Scaler:
    """scaler("plan", "job.yaml") in a folder of its own, with a workspace of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SCALER_WORKSPACE", str(tmp_path / "space"))
    monkeypatch.setenv("COLUMNS", "200")
    Workspace.create(tmp_path / "space")

    def call(*arguments: str) -> Called:
        monkeypatch.setattr(sys, "argv", ["scaler", *arguments])
        capsys.readouterr()
        code: Any = 0
        try:
            main()
        except SystemExit as left:
            code = left.code or 0
        text = capsys.readouterr()
        assert isinstance(code, int)
        return Called(code, text.out, text.err)

    return call


ROWS = [
    {
        "messages": [
            {"role": "user", "content": f"what is {n} plus {n}"},
            {"role": "assistant", "content": f"{2 * n}"},
        ]
    }
    for n in range(700)
]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    return path


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(base)
    for key, value in changes.items():
        both = isinstance(value, Mapping) and isinstance(result.get(key), Mapping)
        result[key] = merged(result[key], value) if both else value
    return result


@pytest.fixture
def write_job(tmp_path: Path, data: Path) -> Callable[..., str]:
    """write_job(scaling={...}) -> "job.yaml": a small job that is right, with these changes."""

    def write(**changes: Any) -> str:
        job = {
            "recipe": "grow",
            "name": "small",
            "model": {"base_model": "seedling"},
            "scaling": {"strategy": "lora", "target_context": 256, "lora": {"rank": 4}},
            "training": {"max_steps": 4, "context_steps": 4},
            "dataset": {"identifier": data.name},
        }
        (tmp_path / "job.yaml").write_text(dump_yaml(merged(job, changes)), encoding="utf-8")
        return "job.yaml"

    return write


def write_model(folder: Path, config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> Path:
    """A model directory with a real header and no weights behind it: a sparse file of the right size."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    header: dict[str, Any] = {}
    position = 0
    for name, shape in shapes.items():
        size = 2
        for length in shape:
            size *= length
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [position, position + size]}
        position += size
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + position)
    return folder


LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "num_hidden_layers": 1,
    "num_attention_heads": 4, "num_key_value_heads": 4, "intermediate_size": 128, "vocab_size": 512,
    "max_position_embeddings": 128, "rope_theta": 10000.0, "tie_word_embeddings": True,
}  # fmt: skip


def llama_shapes(hidden: int, layers: int, mlp: int, vocab: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (vocab, hidden),
        "model.norm.weight": (hidden,),
    }
    for index in range(layers):
        base = f"model.layers.{index}."
        shapes |= {base + f"self_attn.{name}_proj.weight": (hidden, hidden) for name in "qkvo"}
        shapes |= {base + f"mlp.{name}_proj.weight": (mlp, hidden) for name in ("gate", "up")}
        shapes |= {base + "mlp.down_proj.weight": (hidden, mlp)}
        shapes |= {base + f"{name}_layernorm.weight": (hidden,) for name in ("input", "post_attention")}
    return shapes


@pytest.fixture
def tiny_model(tmp_path: Path) -> Callable[..., Path]:
    """tiny_model(max_position_embeddings=...) -> a Llama-shaped directory with these changes."""

    def make(**changes: Any) -> Path:
        return write_model(tmp_path / "tiny", {**LLAMA, **changes}, llama_shapes(64, 1, 128, 512))

    return make


@pytest.fixture
def huge_model(tmp_path: Path) -> Path:
    """The header of a 200-billion-parameter Llama with the embedded model's tokenizer; no disk is used."""
    config = LLAMA | {
        "hidden_size": 16384, "num_hidden_layers": 80, "num_attention_heads": 128, "num_key_value_heads": 128,
        "intermediate_size": 32768, "vocab_size": 32000,
    }  # fmt: skip
    return write_model(tmp_path / "huge", config, llama_shapes(16384, 80, 32768, 32000))


@pytest.fixture
def gpt2_model(tmp_path: Path) -> Path:
    """A GPT-2-shaped directory: positions are a learned table."""
    config = {
        "architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "n_embd": 64, "n_layer": 1, "n_head": 4,
        "n_positions": 128, "n_ctx": 128, "vocab_size": 512, "tie_word_embeddings": True,
    }  # fmt: skip
    shapes: dict[str, tuple[int, ...]] = {
        "wte.weight": (512, 64),
        "wpe.weight": (128, 64),
        "ln_f.weight": (64,),
    }
    shapes |= {"h.0.attn.c_attn.weight": (64, 192), "h.0.attn.c_proj.weight": (64, 64)}
    shapes |= {"h.0.mlp.c_fc.weight": (64, 256), "h.0.mlp.c_proj.weight": (256, 64)}
    return write_model(tmp_path / "gpt2", config, shapes)
