"""Requests that no cache can hold or no model can read: one sentence each, before they touch anything."""

from __future__ import annotations

from dataclasses import dataclass

from hybrid_runtime.deployment import Deployment
from hybrid_runtime.errors import UsageError
from hybrid_runtime.serving.requests import Request


@dataclass(frozen=True, slots=True)
class Limits:
    """What a request may ask for.

    Attributes:
        capacity: tokens of one sequence, prompt and answer together (`Batch.sequence_length`).
        vocab_size: token ids are 0 to vocab_size - 1.
    """

    capacity: int
    vocab_size: int

    def refusal(self, request: Request) -> str | None:
        """What is wrong with a request: which one, what, the limit and what to do. None where nothing is."""
        if not request.prompt:
            return f"request {request.id} has an empty prompt; send at least one token"
        if request.max_new_tokens < 1:
            return (
                f"request {request.id} asks for {request.max_new_tokens} new tokens, and an answer has at least one; "
                "set max_new_tokens to 1 or more"
            )
        return self._too_long(request) or self._unknown_token(request)

    def _too_long(self, request: Request) -> str | None:
        asked = len(request.prompt) + request.max_new_tokens
        if asked <= self.capacity:
            return None
        room = self.capacity - len(request.prompt)
        remedy = (
            f"lower max_new_tokens to {room}" if room > 0 else f"shorten the prompt to {self.capacity - 1} or fewer"
        )
        return (
            f"request {request.id} needs {asked} tokens of cache ({len(request.prompt)} of its prompt and "
            f"{request.max_new_tokens} new ones), and a sequence has {self.capacity}; {remedy}, or raise "
            f"batch.sequence_length to {asked}"
        )

    def _unknown_token(self, request: Request) -> str | None:
        if min(request.prompt) >= 0 and max(request.prompt) < self.vocab_size:
            return None
        place = next(at for at, token in enumerate(request.prompt) if not 0 <= token < self.vocab_size)
        return (
            f"request {request.id} has the token {request.prompt[place]} at place {place} of its prompt, and the model "
            f"knows 0 to {self.vocab_size - 1}; use the model's own tokenizer"
        )


def limits_of(deployment: Deployment) -> Limits:
    """What one request may ask for.

    Raises:
        UsageError: the deployment has no batch, or a model whose vocabulary is not known.
    """
    shape = deployment.shape
    if shape is None or deployment.batch is None:
        raise UsageError(
            "only models of the Llama family can be served, and with a [batch]; add [batch], or set a preset"
        )
    return Limits(deployment.batch.sequence_length, shape.vocab_size)


def used_twice(request: Request) -> str:
    """The refusal of a request whose id another one has."""
    return f"request {request.id} has the id of another request; give every request an id of its own"


def not_finite(request: Request, answer_index: int) -> str:
    """Why a request is cancelled whose next token cannot be sampled."""
    return (
        f"request {request.id}: the logits of token {answer_index} of its answer are not finite; check the weights "
        "and their data type"
    )
