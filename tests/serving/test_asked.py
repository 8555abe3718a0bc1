"""The requests of `generate`: which prompts, how they are continued; and what a training's file is made to be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer as Library
from tokenizers import models, processors

from hybrid_runtime.deployment import Deployment, parse_deployment
from hybrid_runtime.errors import UsageError
from hybrid_runtime.serving.asked import MOST_TOKENS, Way, requests_of
from hybrid_runtime.serving.assumed import served
from hybrid_runtime.serving.requests import Request, Sampling
from hybrid_runtime.serving.tokenizer import Tokenizer
from tests.commands import small
from tests.serving.deployments import serving

BYTES = Tokenizer("bytes", frozenset({0}))


def asked(deployment: Deployment, *texts: str, file: Path | None = None, **way: Any) -> list[Request]:
    return requests_of(texts, file, Way(**way), deployment, BYTES)


def training(**tables: Any) -> Deployment:
    return parse_deployment(small(**tables), source="test")


def test_prompts_of_the_command_line_come_first(tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": [7, 8], "max_new_tokens": 3}\n{"prompt": "c"}\n')
    found = asked(training(), "ab", "", file=file, max_new_tokens=9)
    assert [(one.id, one.prompt, one.max_new_tokens) for one in found] == [
        (1, (97, 98), 9),
        (2, (), 9),
        (3, (7, 8), 3),
        (4, (99,), 9),
    ]
    assert all(one.stop_tokens == {0} for one in found)


def test_an_empty_prompt_gets_no_beginning_of_text() -> None:
    """It stays empty, and is refused; most tokenizers set a token even before nothing."""
    library = Library(models.WordLevel({"<s>": 0, "a": 1}, unk_token="a"))
    library.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    beginning = Tokenizer("with a beginning", frozenset(), library)
    found = requests_of(["", "a"], None, Way(), training(), beginning)
    assert [one.prompt for one in found] == [(), (0, 1)]


def test_no_prompt() -> None:
    with pytest.raises(UsageError, match="give --prompt TEXT or --prompts FILE"):
        asked(training())


def test_what_is_not_said_is_the_loads() -> None:
    load = {"temperature": "0.5", "top_k": 4, "top_p": "0.9", "stop_tokens": [5]}
    deployment = serving(load=load, workload={"seed": 3})
    assert asked(deployment, "a")[0].sampling == Sampling(0.5, 4, 0.9, 3)
    assert asked(deployment, "a")[0].stop_tokens == {5}
    assert asked(deployment, "a", top_k=2, seed=9)[0].sampling == Sampling(0.5, 2, 0.9, 9)
    assert asked(deployment, "a", temperature=0)[0].sampling == Sampling(seed=3)
    assert asked(serving(), "a")[0].sampling == Sampling()


def test_top_k_beside_greedy_is_refused() -> None:
    with pytest.raises(UsageError, match="add --temperature 1"):
        asked(training(), "a", top_k=3)


def test_without_a_number_answers_fit_the_cache() -> None:
    """Where caches are made for the prompts they are of the usual length."""
    assert asked(serving(), "a" * 60)[0].max_new_tokens == 4
    assert asked(serving(), "a" * 64)[0].max_new_tokens == 1  # refused with the right numbers
    assert asked(training(), "a" * 60)[0].max_new_tokens == MOST_TOKENS


def test_a_file_with_a_load_serves_as_it_says() -> None:
    deployment = serving(2, 2)
    found, words = served(deployment, 9, 1000)
    assert (found.batch, found.load, found.parallel, words) == (
        deployment.batch,
        deployment.load,
        deployment.parallel,
        "",
    )
    assert served(serving(workload={"kind": "forward"}), 1, 2)[0].workload.kind == "generate"


def test_a_file_that_trains_serves_on_its_ranks() -> None:
    deployment = training(
        parallel={"tp_degree": 2, "pp_degree": 2, "dp_degree": 2, "sequence_parallel": True},
        pipeline={"schedule": "zb_v", "recompute": "full"},
        checkpoint={"folder": "somewhere"},
        targets={"utilisation_percent": 90},
    )
    found, words = served(deployment, 3, 40)
    assert words == (
        "small has no [load]: it answers as tp 2 x pp 2, with 4 caches of 40 tokens, without dp_degree = 2, "
        "sequence_parallel, schedule = 'zb_v'"
    )
    assert (found.mesh.world_size, found.num_microbatches, found.workload.kind) == (4, 2, "generate")
    assert parse_deployment(found.model_dump(mode="json"), source="test") == found  # what the ranks read


@pytest.mark.parametrize(("prompts", "caches"), [(1, 1), (2, 2), (3, 4), (100, 16)])
def test_caches_for_prompts(prompts: int, caches: int) -> None:
    found, _ = served(training(parallel={"pp_degree": 2}), prompts, 40)
    assert found.batch is not None
    assert (found.batch.global_batch_size, found.batch.sequence_length) == (caches, 40)


def test_own_cuts_stay_where_they_are_a_line() -> None:
    cuts = ["embedding..0.mlp", "1.attn..head"]
    line = training(parallel={"pp_degree": 2}, pipeline={"cuts": cuts})
    assert served(line, 1, 9)[0].pipeline.cuts == cuts
    four = [*cuts, "head..head", "head..head"]
    found, words = served(training(parallel={"pp_degree": 2}, pipeline={"cuts": four, "schedule": "zb_v"}), 1, 9)
    assert found.pipeline.cuts == "balanced"
    assert words.endswith("without schedule = 'zb_v', cuts")
