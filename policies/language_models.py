"""Language models to begin with: tiny ones with random weights, and those in a directory, with LoRA if wanted.

Nothing here reads a pickle or runs code that comes with a model.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Family = Literal["llama", "gpt2", "qwen3"]

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt")


def tiny_model(
    vocab_size: int,
    *,
    layers: int = 2,
    width: int = 64,
    heads: int = 4,
    context: int = 256,
    family: Family = "llama",
    generator: torch.Generator,
    dtype: torch.dtype = torch.float32,
) -> PreTrainedModel:
    """A causal language model with random weights, as small as tests and experiments on a CPU need.

    Args:
        vocab_size: tokens.
        layers, width, heads: blocks, features of a token, attention heads in each block.
        context: the longest row.
        family: "llama" (arXiv 2302.13971), "gpt2", whose output layer is its embedding, or "qwen3" (arXiv 2505.09388).
        generator: decides about the weights, which are initialized as the family's are; torch's global generator is
            left as it is.

    Raises:
        ValueError: an option has no valid value.
        ImportError: transformers, of the extra ``decisionrl[llm]``, is not installed.
    """
    if family not in get_args(Family):
        raise ValueError(f"family = {family!r}; valid: {', '.join(get_args(Family))}")
    for name, value in (("vocab_size", vocab_size), ("layers", layers), ("context", context)):
        if value < 1:
            raise ValueError(f"{name} = {value}; valid: at least 1")
    if heads < 1 or width < 1 or width % (2 * heads):
        raise ValueError(f"width = {width}, heads = {heads}; valid: a width that is a multiple of 2 heads")
    transformers = _transformers()
    special: dict[str, Any] = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    if family == "gpt2":
        config = transformers.GPT2Config(
            vocab_size=vocab_size, n_positions=context, n_embd=width, n_layer=layers, n_head=heads, **special
        )
    else:
        made = transformers.LlamaConfig if family == "llama" else transformers.Qwen3Config
        config = made(
            vocab_size=vocab_size,
            hidden_size=width,
            intermediate_size=4 * width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=heads,
            head_dim=width // heads,
            max_position_embeddings=context,
            **special,
        )
    with _drawing_from(generator):
        model: PreTrainedModel = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype)
    return model


def load_model(
    directory: Path | str,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    lora_rank: int | None = None,
    lora_alpha: int = 32,
    generator: torch.Generator | None = None,
) -> tuple[PreTrainedModel | PeftModel, PreTrainedTokenizerBase]:
    """A causal language model and its tokenizer, as transformers saves them.

    Nothing is downloaded. A tokenizer that has no token for padding gets the one that ends a text: no model here reads
    padding, so it does not matter which it is.

    Args:
        directory: with ``config.json``, weights as safetensors, and a tokenizer.
        dtype, device: of the weights.
        lora_rank: see :func:`add_lora`; None trains all weights.
        lora_alpha, generator: likewise; the generator is needed with a rank.

    Raises:
        FileNotFoundError: there is no such directory, or a part is not in it.
        ValueError: the directory holds an adapter, its weights are not those of the model, or the tokenizer has neither
            token.
        ImportError: transformers, or PEFT, of the extra ``decisionrl[llm]``, is not installed.
    """
    directory = Path(directory)
    if lora_rank is not None and generator is None:
        raise ValueError("generator = None; valid with lora_rank: the generator that decides about the adapters")
    _check_files(directory)
    transformers = _transformers()
    local: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    tokenizer: PreTrainedTokenizerBase = transformers.AutoTokenizer.from_pretrained(directory, **local)
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            raise ValueError(f"{directory}: the tokenizer has neither a pad nor an eos token; valid: at least one")
        tokenizer.pad_token = tokenizer.eos_token
    with quietly():
        model, report = transformers.AutoModelForCausalLM.from_pretrained(
            directory, dtype=dtype, use_safetensors=True, output_loading_info=True, **local
        )
    if missing := sorted(report["missing_keys"]):
        raise ValueError(f"{directory} has no weights {missing[0]!r} ({len(missing)} are missing)")
    model = model.to(device)
    if lora_rank is not None and generator is not None:
        return add_lora(model, rank=lora_rank, alpha=lora_alpha, generator=generator), tokenizer
    return model, tokenizer


def add_lora(model: PreTrainedModel, *, rank: int, alpha: int = 32, generator: torch.Generator) -> PeftModel:
    """The model with low-rank adapters on every linear layer but the last (arXiv 2106.09685).

    A layer ``W x`` becomes ``W x + (alpha / rank) B A x``, B being 0 at first, so the model says what it said before. W
    and all else is frozen; adapters are float32 where the model is of 16 bits. The model itself is changed.

    Args:
        rank: rows of A.
        alpha: see above.
        generator: decides about A; torch's global generator is left as it is.

    Raises:
        ValueError: an option has no valid value.
        ImportError: PEFT, of the extra ``decisionrl[llm]``, is not installed.
    """
    if rank < 1:
        raise ValueError(f"rank = {rank}; valid: at least 1")
    if alpha < 1:
        raise ValueError(f"alpha = {alpha}; valid: at least 1")
    try:
        import peft
        from transformers.pytorch_utils import Conv1D
    except ImportError as error:
        raise ImportError(f"LoRA needs PEFT ({error}): pip install 'decisionrl[llm]'") from error
    config: Any = peft.LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=0.0,
        target_modules="all-linear",
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),  # GPT-2's, W being transposed
        task_type="CAUSAL_LM",
    )
    with _drawing_from(generator):
        adapted: PeftModel = peft.get_peft_model(model, config)
    return adapted


def _check_files(directory: Path) -> None:
    if not directory.is_dir():
        raise FileNotFoundError(f"{directory} is no directory")
    if (directory / "adapter_config.json").exists():
        raise ValueError(f"{directory} holds an adapter; valid: a whole model, into which PEFT can merge it")
    if not (directory / "config.json").exists():
        raise FileNotFoundError(f"{directory} has no config.json")
    if not any(directory.glob("*.safetensors")):
        raise FileNotFoundError(f"{directory} has no weights as *.safetensors, the only format that is read")
    if not any((directory / name).exists() for name in _TOKENIZER_FILES):
        raise FileNotFoundError(f"{directory} has no tokenizer, such as a tokenizer.json")


@contextmanager
def quietly() -> Iterator[None]:
    """Without the progress bars of transformers."""
    logging = _transformers().utils.logging
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


@contextmanager
def _drawing_from(generator: torch.Generator) -> Iterator[None]:
    """torch's global generator of the CPU is meanwhile one that this generator has seeded."""
    seed = int(torch.randint(2**63 - 1, (), generator=generator, device=generator.device))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise ImportError(f"language models need transformers ({error}): pip install 'decisionrl[llm]'") from error
    return transformers
