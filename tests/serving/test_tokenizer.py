"""Which tokenizer prompts get, and where answers end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer as Library
from tokenizers import models, pre_tokenizers

from hybrid_runtime.errors import UsageError
from hybrid_runtime.serving.tokenizer import tokenizer_of
from tests.serving.deployments import serving

CONFIG = {
    "model_type": "llama",
    "vocab_size": 10,
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 8,
}


def folder(path: Path, **files: object) -> Path:
    words = Library(models.WordLevel({"<unk>": 0, "once": 1, "more": 2, "</s>": 3}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.save(str(path / "tokenizer.json"))
    for name, content in {"config": CONFIG, **files}.items():
        (path / f"{name}.json").write_text(json.dumps(content))
    return path


def test_bytes_where_there_is_none() -> None:
    tokenizer = tokenizer_of(serving())
    assert (tokenizer.name, tokenizer.end_tokens) == ("bytes", {0})
    assert tokenizer.decode(tokenizer.encode("zwölf")) == "zwölf"
    assert tokenizer.decode([104, 105, 255, 300]) == "hi\ufffd"


def test_that_of_the_model_folder(tmp_path: Path) -> None:
    tokenizer = tokenizer_of(serving(model={"preset": None, "hf_config": str(folder(tmp_path))}))
    assert tokenizer.encode("once more") == (1, 2)
    assert tokenizer.decode([1, 2]) == "once more"
    assert tokenizer.end_tokens == {3}  # by its name


@pytest.mark.parametrize(
    ("files", "ends"),
    [
        ({"config": CONFIG | {"eos_token_id": 7}}, {7}),
        ({"config": CONFIG | {"eos_token_id": 7}, "generation_config": {"eos_token_id": [8, 9]}}, {8, 9}),
        ({"generation_config": {}}, {3}),
    ],
)
def test_where_answers_end(tmp_path: Path, files: dict[str, object], ends: set[int]) -> None:
    model = {"preset": None, "hf_config": str(folder(tmp_path, **files) / "config.json")}
    assert tokenizer_of(serving(model=model)).end_tokens == ends


def test_a_named_one_comes_first(tmp_path: Path) -> None:
    tokenizer = tokenizer_of(serving(data={"tokenizer": str(folder(tmp_path) / "tokenizer.json")}))
    assert tokenizer.encode("more once") == (2, 1)


def test_a_broken_config_is_named(tmp_path: Path) -> None:
    (folder(tmp_path) / "generation_config.json").write_text("[")
    with pytest.raises(UsageError, match=r"generation_config.json: is no readable JSON table"):
        tokenizer_of(serving(model={"preset": None, "hf_config": str(tmp_path)}))


def test_text_for_a_folder_without_a_tokenizer_is_not_taken_for_bytes(tmp_path: Path) -> None:
    (folder(tmp_path, config=CONFIG | {"vocab_size": 32000}) / "tokenizer.json").unlink()
    tokenizer = tokenizer_of(serving(model={"preset": None, "hf_config": str(tmp_path)}))
    with pytest.raises(
        UsageError, match=r"has no tokenizer.json, and a vocabulary of 32000 tokens is not one of bytes"
    ):
        tokenizer.encode("once")
    assert tokenizer.decode([104, 105]) == "hi"
