"""Tiny language models from a generator, models from a directory, and what is refused of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("peft")

import transformers
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from decisionrl.policies.language_models import add_lora, load_model, tiny_model

FAMILIES = ("llama", "gpt2", "qwen3")
IDS = torch.tensor([[1, 2, 3, 4]])


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def tokenizer(**special: str) -> Any:
    words = {word: i for i, word in enumerate(["<eos>", "<pad>", "a", "b", "c", "d", "e", "f", "g", "h"])}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel(words, "a")), **special)


def saved(directory: Path, family: Any = "llama", **special: str) -> torch.Tensor:
    """A model and a tokenizer in a directory; returns the model's logits."""
    model: Any = tiny_model(10, width=8, heads=2, family=family, generator=rng())
    model.save_pretrained(directory)
    tokenizer(**(special or {"eos_token": "<eos>", "pad_token": "<pad>"})).save_pretrained(directory)
    with torch.no_grad():
        logits: torch.Tensor = model.eval()(IDS).logits
    return logits


@pytest.mark.parametrize("family", FAMILIES)
def test_weights_are_those_of_the_generator(family: Any) -> None:
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = tiny_model(10, family=family, generator=rng())
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    same, other = (tiny_model(10, family=family, generator=rng(seed)) for seed in (0, 1))
    for name, weight in first.state_dict().items():
        assert torch.equal(weight, same.state_dict()[name])
    assert any(not torch.equal(weight, other.state_dict()[name]) for name, weight in first.state_dict().items())


@pytest.mark.parametrize("family", FAMILIES)
def test_sizes(family: Any) -> None:
    model: Any = tiny_model(
        11, layers=3, width=24, heads=2, context=40, family=family, generator=rng(), dtype=torch.float64
    )
    config = model.config
    assert (config.vocab_size, config.hidden_size, config.num_hidden_layers) == (11, 24, 3)
    assert (config.num_attention_heads, config.max_position_embeddings) == (2, 40)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float64}
    logits = model.eval()(torch.arange(11)[None]).logits
    assert logits.shape == (1, 11, 11)
    # causal: the last token changes only its own place
    changed = model(torch.tensor([[*range(10), 0]])).logits
    torch.testing.assert_close(changed[0, :10], logits[0, :10], rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"family": "bert"}, r"family = 'bert'; valid: llama, gpt2, qwen3"),
        ({"layers": 0}, r"layers = 0; valid: at least 1"),
        ({"context": 0}, r"context = 0; valid: at least 1"),
        ({"width": 12, "heads": 4}, r"width = 12, heads = 4; valid: a width that is a multiple of 2 heads"),
        ({"heads": 0}, r"width = 64, heads = 0"),
    ],
)
def test_options_without_a_valid_value(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_model(10, generator=rng(), **options)
    with pytest.raises(ValueError, match=r"vocab_size = 0; valid: at least 1"):
        tiny_model(0, generator=rng())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_comes_back_from_its_directory(family: Any, tmp_path: Path) -> None:
    expected = saved(tmp_path, family)
    model, words = load_model(tmp_path)
    assert torch.equal(model.eval()(IDS).logits, expected)
    assert words.convert_tokens_to_ids(["a", "h"]) == [2, 9]
    assert words.pad_token_id == 1
    half, _ = load_model(str(tmp_path), dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("family", FAMILIES)
def test_lora_changes_nothing_at_first_and_trains_adapters_only(family: Any, tmp_path: Path) -> None:
    expected = saved(tmp_path, family)
    state = torch.get_rng_state()
    model, _ = load_model(tmp_path, lora_rank=2, lora_alpha=6, generator=rng())
    assert torch.equal(torch.get_rng_state(), state)
    torch.testing.assert_close(model.eval()(IDS).logits, expected)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert trained
    assert all("lora_" in name for name in trained)
    same, _ = load_model(tmp_path, lora_rank=2, lora_alpha=6, generator=rng())
    for name, parameter in same.named_parameters():
        if name in trained:
            assert torch.equal(parameter, trained[name])
    (name, a) = next((name, p) for name, p in trained.items() if "lora_A" in name)
    b = trained[name.replace("lora_A", "lora_B")]
    torch.nn.init.ones_(b)
    layer = model.get_submodule(name.split(".lora_A")[0])
    x = torch.randn(3, a.shape[1], generator=rng(1))
    torch.testing.assert_close(layer(x) - layer.base_layer(x), 6 / 2 * x @ a.T @ b.T)


def test_padding_is_eos_where_there_is_none(tmp_path: Path) -> None:
    saved(tmp_path, eos_token="<eos>")
    _, words = load_model(tmp_path)
    assert words.pad_token_id == words.eos_token_id == 0


def test_neither_padding_nor_eos(tmp_path: Path) -> None:
    saved(tmp_path, unk_token="a")
    with pytest.raises(ValueError, match=r"the tokenizer has neither a pad nor an eos token"):
        load_model(tmp_path)


def test_a_directory_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"gpt2 is no directory"):
        load_model(tmp_path / "gpt2")


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("config.json", r"has no config.json"),
        ("model.safetensors", r"has no weights as \*\.safetensors, the only format that is read"),
        ("tokenizer*", r"has no tokenizer, such as a tokenizer.json"),
    ],
)
def test_a_part_that_is_not_there(tmp_path: Path, missing: str, message: str) -> None:
    saved(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    for path in list(tmp_path.glob(missing)):
        path.unlink()
    with pytest.raises(FileNotFoundError, match=message):
        load_model(tmp_path)


def test_an_adapter(tmp_path: Path) -> None:
    saved(tmp_path)
    (tmp_path / "adapter_config.json").write_text(json.dumps({}))
    with pytest.raises(ValueError, match=r"holds an adapter; valid: a whole model"):
        load_model(tmp_path)


def test_weights_of_another_model(tmp_path: Path) -> None:
    saved(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    with pytest.raises(ValueError, match=r"has no weights 'model\.layers\.2\..*' \(9 are missing\)"):
        load_model(tmp_path)


def test_code_that_comes_with_a_model_is_not_run(tmp_path: Path) -> None:
    saved(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "own.py").write_text("raise SystemExit('code was run')")
    with pytest.raises(ValueError, match="trust_remote_code"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, r"rank = 0; valid: at least 1"),
        ({"rank": 2, "alpha": 0}, r"alpha = 0; valid: at least 1"),
    ],
)
def test_adapters_without_a_valid_value(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        add_lora(tiny_model(10, generator=rng()), generator=rng(), **options)


def test_adapters_need_a_generator(tmp_path: Path) -> None:
    saved(tmp_path)
    with pytest.raises(ValueError, match=r"generator = None; valid with lora_rank"):
        load_model(tmp_path, lora_rank=2)
