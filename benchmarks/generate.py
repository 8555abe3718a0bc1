"""Our greedy answers against transformers' own `generate`, on one rank in one process, from the same folder.

    scripts/bench generate [--quick] [--save] [--device cpu|cuda] [--only CASE] [--blocks PAIRS]

Both sides answer the same batch of prompts of one length, with the same type of numbers and as many threads, and must
say the same tokens before anything is measured. Then they take turns, A B B A, and the verifier's own rule for paired
blocks (verifier/decide_ratio.py) says whether we take at most as long. `prefill`: one new token per prompt.

    w256 w1024     hidden size (4 layers, and 8)
    b1 b4 b8       prompts of a batch
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.options import parser_of
from benchmarks.results import arguments_given, environment, markdown_table, save
from hybrid_runtime.comm.groups import Backend
from hybrid_runtime.comm.start import Launch, start_distributed
from hybrid_runtime.deployment import parse_deployment
from hybrid_runtime.inference.engine import build_engine
from hybrid_runtime.job_parts import build, join_mesh
from hybrid_runtime.models.build import model_costs, model_units
from hybrid_runtime.planner.make import make_plan
from hybrid_runtime.serving.batcher import batcher_of
from hybrid_runtime.serving.load import Listed
from hybrid_runtime.serving.requests import Request
from hybrid_runtime.telemetry.recorder import NullRecorder
from hybrid_runtime.verifier.decide_ratio import decide_ratio

SHAPES = {"w256": (256, 4), "w1024": (1024, 8)}  # hidden size and layers
BATCHES = (1, 4, 8)
VOCAB_SIZE, HEADS, KV_HEADS = 8192, 8, 4
_TIMEOUT = timedelta(minutes=5)

Side = Callable[[], list[tuple[int, ...]]]  # all answers, by prompt


class Sizes(NamedTuple):
    """Tokens of each prompt and of each answer."""

    prompt_tokens: int
    new_tokens: int


FULL, QUICK = Sizes(64, 32), Sizes(8, 4)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the cases, prints the table, and with --save keeps the result. Returns 1 when we are slower somewhere."""
    options = parser_of("generate", __doc__, blocks=8).parse_args(arguments)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    device = torch.device(options.device)
    torch.set_num_threads(1)
    backend: Backend = "nccl" if device.type == "cuda" else "gloo"
    start_distributed(Launch(0, 0, 1, 1), backend, device, _TIMEOUT)
    result: dict[str, Any] = {"environment": environment(arguments_given(), "generate"), "cases": {}}
    sizes, pairs = (QUICK, 5) if options.quick else (FULL, options.blocks)
    for shape in SHAPES:
        cases = {f"{shape}b{batch}": batch for batch in BATCHES}
        wanted = {name: batch for name, batch in cases.items() if options.only in (None, name)}
        if wanted and not (options.quick and shape != "w256"):
            result["cases"] |= measured(shape, wanted, sizes, pairs, device)
    if not result["cases"]:
        raise SystemExit(f"there is no case {options.only!r}; known are w256b1, w256b4, ... w1024b8")
    section = table(result["cases"])
    print(section)
    if options.save:
        print(f"kept: {save('generate', result, section, options.results)}")
    return int(any(figures["outcome"] == "FAIL" for case in result["cases"].values() for figures in case.values()))


def measured(
    shape: str, batches: dict[str, int], sizes: Sizes, pairs: int, device: torch.device
) -> dict[str, dict[str, Any]]:
    """By case, and in it by `generate` and `prefill`: seconds of every pair, and what they decide."""
    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        theirs = random_model(*SHAPES[shape], folder, device)
        for name, batch in batches.items():
            found[name] = {}
            for what, new_tokens in (("generate", sizes.new_tokens), ("prefill", 1)):
                asked = prompts(batch, sizes.prompt_tokens)
                ours = our_side(folder, asked, new_tokens, device)
                found[name][what] = compared(ours, their_side(theirs, asked, new_tokens, device), pairs, new_tokens)
    return found


def compared(ours: Side, theirs: Side, pairs: int, new_tokens: int) -> dict[str, Any]:
    """Both sides' seconds, in turns, once they have said the same.

    Raises:
        SystemExit: they have not.
    """
    answers, expected = ours(), theirs()
    if answers != expected:
        raise SystemExit(f"the sides do not say the same: {answers} and {expected}")
    times: list[tuple[float, float]] = []
    for number in range(pairs):
        order = (ours, theirs) if number % 2 == 0 else (theirs, ours)
        seconds = {side: _seconds(side) for side in order}
        times.append((seconds[ours], seconds[theirs]))
    decision = decide_ratio([Fraction(first) / Fraction(second) for first, second in times], Fraction(1))
    return {
        "seconds": times,
        "tokens": len(answers) * new_tokens,
        "ratio": [float(1 / decision.upper), float(1 / decision.point), float(1 / decision.lower)],
        "outcome": str(decision.outcome),
    }


def _seconds(side: Side) -> float:
    begin = time.perf_counter()
    side()
    return time.perf_counter() - begin


def prompts(batch: int, length: int) -> list[list[int]]:
    """The same ones in every call."""
    generator = torch.Generator().manual_seed(batch)
    found: list[list[int]] = torch.randint(0, VOCAB_SIZE, (batch, length), generator=generator).tolist()
    return found


def random_model(hidden_size: int, layers: int, folder: Path, device: torch.device) -> Any:
    """Transformers' model with random weights, which the folder holds, too."""
    import transformers

    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=hidden_size,
        intermediate_size=hidden_size * 11 // 4,
        num_hidden_layers=layers,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
    )
    model = transformers.LlamaForCausalLM(config).eval()  # type: ignore[no-untyped-call]
    model.save_pretrained(folder)
    return model.to(device)


def their_side(model: Any, asked: Sequence[Sequence[int]], new_tokens: int, device: torch.device) -> Side:
    """Transformers' own `generate`, greedy."""
    ids = torch.tensor(asked, device=device)
    mask = torch.ones_like(ids)

    def run() -> list[tuple[int, ...]]:
        with torch.inference_mode():
            out = model.generate(ids, attention_mask=mask, max_new_tokens=new_tokens, do_sample=False)
        return [tuple(row) for row in out[:, ids.shape[1] :].tolist()]

    return run


def our_side(folder: Path, asked: Sequence[Sequence[int]], new_tokens: int, device: torch.device) -> Side:
    """One round of the engine with all prompts in one microbatch."""
    batch, length = len(asked), len(asked[0]) + new_tokens
    values = {
        "name": "bench",
        "model": {"hf_config": str(folder), "weights": str(folder)},
        "batch": {"global_batch_size": batch, "microbatch_size": batch, "sequence_length": length},
        "workload": {"kind": "generate"},
        "hardware": {"device": device.type},
        "load": {"requests": batch},
    }
    deployment = parse_deployment(values, source="bench generate")
    specs = model_units(deployment.model, deployment.shape)
    plan = make_plan(deployment, model_costs(deployment, specs))
    groups = join_mesh(
        plan, specs, device=device, backend="nccl" if device.type == "cuda" else "gloo", timeout=_TIMEOUT
    )
    built = build(deployment, plan, specs, groups)
    engine = build_engine(deployment, plan, built.units, groups, NullRecorder(device), built.ledger)
    requests = [Request(number, tuple(prompt), new_tokens) for number, prompt in enumerate(asked)]

    def run() -> list[tuple[int, ...]]:
        answers = engine.serve(Listed(requests), batcher_of(deployment))
        return [answer.tokens for answer in sorted(answers, key=lambda answer: answer.request.id)]

    return run


def table(cases: dict[str, dict[str, Any]]) -> str:
    """A row per case: tokens per second of both sides, and ours / theirs with its interval."""
    rows = []
    for name, case in cases.items():
        for what, figures in case.items():
            ours, theirs = (figures["tokens"] / statistics.median(side) for side in zip(*figures["seconds"]))
            low, middle, high = figures["ratio"]
            rows.append(
                [name, what, f"{ours:.1f}", f"{theirs:.1f}", f"{middle:.3f} [{low:.3f}, {high:.3f}]",
                 f">= 1.00: {figures['outcome']}"]
            )  # fmt: skip
    header = ["case", "what", "our tokens/s", "transformers' tokens/s", "ours / theirs", "goal"]
    return markdown_table(header, rows)


if __name__ == "__main__":
    raise SystemExit(main())
