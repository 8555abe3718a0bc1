"""The command `generate`: prompts in, text out, while it is made."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from hybrid_runtime.cli_output import PlanFile
from hybrid_runtime.errors import PlanError, UsageError
from hybrid_runtime.tokenizer_file import BYTES

if TYPE_CHECKING:
    from hybrid_runtime.deployment import Deployment
    from hybrid_runtime.plan import Plan
    from hybrid_runtime.serving.requests import Request
    from hybrid_runtime.serving.shown import Reading, Shown
    from hybrid_runtime.serving.tokenizer import Tokenizer


def generate(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="deployment file, TOML or JSON; also one that trains")],
    prompt: Annotated[list[str] | None, typer.Option(metavar="TEXT", help="may be given several times")] = None,
    prompts: Annotated[
        Path | None, typer.Option(metavar="FILE", help='one on every line; .jsonl: {"prompt": text or token ids}')
    ] = None,
    max_new_tokens: Annotated[int | None, typer.Option(min=1, help="of each answer; default: 64")] = None,
    temperature: Annotated[
        float | None,
        typer.Option(min=0, max=10**9, help="0: the most likely token; default: that of the file's load, or 0"),
    ] = None,
    top_k: Annotated[int | None, typer.Option(min=1, max=10**9, help="only so many most likely tokens")] = None,
    top_p: Annotated[float | None, typer.Option(help="only the most likely with this probability together")] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, max=2**63 - 1, help="of sampling; default: the file's workload.seed")
    ] = None,
    plan_file: PlanFile = None,
    weights: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="a checkpoint, a folder of them, or a Hugging Face folder")
    ] = None,
    tokenizer: Annotated[
        str | None, typer.Option(metavar="FILE", help="a `tokenizers` JSON file, or bytes; default: the model's own")
    ] = None,
    output: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="write answer n to FOLDER/n.txt, which may be a named pipe")
    ] = None,
    json_lines: Annotated[
        bool, typer.Option("--json", help="JSON lines on stdout: every token, then every answer")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="only answers, and what is wrong")] = False,
) -> None:
    """Continue prompts with a deployed model; text is shown while it is made.

    Exit code 0: every prompt has its answer; 2: one was refused (empty, too long, an unknown token); 4: one was
    cancelled (nobody read it, or the model's numbers were not finite), or a rank failed. A bad prompt harms no other.
    """
    if json_lines and output is not None:
        raise UsageError("--json and --output both say where answers go; drop one of them")
    if top_p is not None and not 0 < top_p <= 1:
        raise UsageError(f"--top-p {top_p:g}: it is a probability above 0, and at most 1")
    from hybrid_runtime.serving.asked import Way, requests_of
    from hybrid_runtime.serving.tokenizer import tokenizer_of

    deployment, plan = _planned(file, plan_file)
    deployment, checkpoint, words = _with_weights(deployment, weights)
    deployment = _with_tokenizer(deployment, tokenizer)
    known = tokenizer_of(deployment)
    if tokenizer is None:
        _refuse_other_ids(deployment, known)
    requests = requests_of(
        prompt or [], prompts, Way(temperature, top_k, top_p, seed, max_new_tokens), deployment, known
    )
    deployment, assumed = _possible(deployment, requests, plan)
    shown = _shown(requests, output, json_lines=json_lines)
    if not quiet:
        for line in filter(None, (assumed, words)):
            _say(line)
    reading = _answered(deployment, plan, checkpoint, requests, shown, known, quiet=quiet)
    reading.finish()
    if not quiet:
        _say(reading.summary)
    raise typer.Exit(reading.exit_code)


def _planned(file: Path, plan_file: Path | None) -> tuple[Deployment, Plan | None]:
    """The deployment that answers, and the plan that it follows.

    Raises:
        UsageError: a file is unusable.
        PlanError: the plan is for other work, serves nothing, or is for other devices than the file's.
    """
    from hybrid_runtime.planner.given import deployment_and_plan
    from hybrid_runtime.verdict import Outcome
    from hybrid_runtime.verifier.static import static_checks

    deployment, plan = deployment_and_plan(file, plan_file)
    if plan is None:
        return deployment, None
    if not deployment.serves:
        raise PlanError(f"--plan {plan_file}: is a plan of a training; plan a file with [load], or drop --plan")
    wrong = next((row for row in static_checks(deployment) if row.outcome is Outcome.FAIL), None)
    if wrong is not None:
        raise PlanError(f"--plan {plan_file}: cannot be served: {wrong.detail}")
    return deployment, plan


def _answered(
    deployment: Deployment,
    plan: Plan | None,
    checkpoint: Path | None,
    requests: Sequence[Request],
    shown: Mapping[int, Shown],
    tokenizer: Tokenizer,
    *,
    quiet: bool,
) -> Reading:
    """Every request's answer, shown while it is made."""
    from hybrid_runtime.ask import ask
    from hybrid_runtime.serving.line import Asking
    from hybrid_runtime.serving.shown import Reading

    def made(asking: Asking) -> Reading:
        return Reading(requests, shown, tokenizer, _say, asking.cancel)

    console = Console(stderr=True, quiet=quiet)
    with console.status(f"starting {deployment.mesh.world_size} rank(s)") as waiting:
        return ask(deployment, checkpoint, requests, made, waiting.stop, plan)


def _with_weights(deployment: Deployment, given: Path | None) -> tuple[Deployment, Path | None, str]:
    """The deployment with its weights, or the checkpoint that they come from; and which they are, in words.

    By what is there first: --weights, the newest of [checkpoint], what [export] wrote, [model] weights, random ones.
    """
    from hybrid_runtime.checkpoint.folders import find

    model, own, exported = deployment.model, deployment.checkpoint, deployment.export
    if model is None:
        raise UsageError(f"{deployment.name}: has no [model]; add the table, for example with hf_config and weights")
    trained = given if own is None or given is not None else Path(own.folder)
    if trained is not None and (checkpoint := find(trained)) is not None:
        return deployment, checkpoint, f"weights: {checkpoint}"
    if given is not None and not any(given.glob("*.safetensors")):
        raise UsageError(
            f"--weights {given}: holds neither a whole checkpoint nor safetensors files; name the folder of a model"
        )
    written = Path(exported.folder) if exported is not None and Path(exported.folder).is_dir() else None
    folder = given or written or model.weights
    if folder is None:
        return deployment, None, "weights are random, so the text is noise; name trained ones with --weights"
    found = deployment.model_copy(update={"model": model.model_copy(update={"weights": str(folder)})})
    return found, None, f"weights: {folder}"


def _with_tokenizer(deployment: Deployment, given: str | None) -> Deployment:
    """The deployment with the tokenizer of the command line, else with that of one of its [[data.sources]]."""
    named = given or next((one.tokenizer for one in deployment.data.sources if one.tokenizer != BYTES), None)
    if named is None or (given is None and deployment.data.tokenizer != BYTES):
        return deployment
    return deployment.model_copy(update={"data": deployment.data.model_copy(update={"tokenizer": named})})


def _refuse_other_ids(deployment: Deployment, known: Tokenizer) -> None:
    """Bytes are not what a model reads that was trained on a corpus of other tokens.

    Raises:
        UsageError: it was, and its tokenizer is not known.
    """
    from hybrid_runtime.data.corpus import is_corpus, read_header

    corpora = [one.path for one in deployment.data.train_sources if one.source == "corpus" and one.path]
    for path in map(Path, corpora if known.name == BYTES else ()):
        if is_corpus(path.expanduser()) and (made_by := read_header(path.expanduser()).tokenizer) != BYTES:
            raise UsageError(
                f"{path}: the corpus that the model is trained on was made with {made_by}, so it does not read text as "
                "bytes; name that file by --tokenizer"
            )


def _possible(deployment: Deployment, requests: Sequence[Request], plan: Plan | None) -> tuple[Deployment, str]:
    """The deployment that answers, and what was assumed; whatever rules it out is said before ranks start.

    Args:
        plan: that it follows; None where it plans itself.

    Raises:
        PlanError: no plan can be made for it.
        UsageError: it cannot serve.
    """
    from hybrid_runtime.planner.costs import unit_costs
    from hybrid_runtime.planner.make import make_plan
    from hybrid_runtime.serving.assumed import served
    from hybrid_runtime.serving.refusals import limits_of

    longest = max(len(request.prompt) + request.max_new_tokens for request in requests)
    found, assumed = served(deployment, len(requests), longest)
    limits_of(found)
    if plan is not None:
        return found, assumed
    assert found.shape is not None, "as limits_of has found"
    assert found.batch is not None, "likewise"
    costs = unit_costs(
        found.shape,
        microbatch_size=found.batch.microbatch_size,
        sequence_length=found.batch.sequence_length,
        workload=found.workload.passes,
    )
    make_plan(found, costs)
    return found, assumed


def _shown(requests: Sequence[Request], output: Path | None, *, json_lines: bool) -> dict[int, Shown]:
    """How each request's answer is shown, by its id."""
    from hybrid_runtime.serving.clients import file_client, standard_output
    from hybrid_runtime.serving.shown import JsonLines, Labelled, Plain

    if output is not None:
        return {request.id: Plain(file_client(path)) for request, path in zip(requests, _files(requests, output))}
    client = standard_output()
    if json_lines:
        return {request.id: JsonLines(client, request.id) for request in requests}
    if len(requests) == 1:
        return {requests[0].id: Plain(client)}
    return {request.id: Labelled(client, request.id) for request in requests}


def _files(requests: Sequence[Request], output: Path) -> list[Path]:
    """A file for each answer in a folder, which is made; what is there already may be a pipe, but no answer.

    Raises:
        UsageError: the folder cannot be written, or holds answers.
    """
    from hybrid_runtime.cli_output import refuse_unwritable

    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise UsageError(f"--output {output}: cannot be made ({problem.strerror}); name another folder") from None
    files = [output / f"{request.id}.txt" for request in requests]
    there = next((file for file in files if file.is_file()), None)
    if there is not None:
        raise UsageError(f"--output {output}: already holds {there.name}; name a new folder")
    refuse_unwritable("--output", output / ".answer")
    return files


def _say(words: str) -> None:
    print(f"hybrid-runtime: {words}", file=sys.stderr, flush=True)
