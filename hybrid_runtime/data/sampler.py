"""Which tokens a step trains on: a function of (seed, step) alone, so any mesh and any restart sees the same batches.

Sample number p (p = step * global_batch_size + g) comes from the source that the weights give it (mixture.py), as that
source's sample number i. The source's text is cut into windows of sequence_length tokens, and i is window
`permutation(epoch)[i mod windows]` with epoch = i div windows: every window once before any comes again.

    global batch, G = 8     g0 g1 g2 g3 | g4 g5 g6 g7
    dp 2, microbatch 2      dp 0        | dp 1           replica d takes samples [d G/D, (d+1) G/D)
                            m0    m1    | m0    m1       and cuts them into microbatches in order

Packed, a window is whole documents and parts of documents: positions begin anew in each, a token sees its own only, and
the last token of a document has no target. No token is padding, and none is left out; the ends of a window cut the two
documents that lie across them.

    window      a3 a4 a5 | b0 b1 b2 b3 | c0 c1        a's first tokens are in the window before
    positions   0  1  2    0  1  2  3    0  1
    targets     a4 a5 -    b1 b2 b3 -    c1 c2

B microbatch, S sequence, G global batch, D dp_degree.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray

from hybrid_runtime.data.corpus import DocumentSource
from hybrid_runtime.data.mixture import Mixture, mixture_of
from hybrid_runtime.data.permutation import mixed, permuted
from hybrid_runtime.data.tokens import Ids, TokenSource
from hybrid_runtime.errors import UsageError
from hybrid_runtime.models.unit import NO_TARGET, Documents, Microbatch


def window_starts(num_tokens: int, sequence_length: int, seed: int, indices: Ids) -> Ids:
    """Where in a source its samples `indices` begin; a sample's targets reach one token further than its tokens.

    Raises:
        UsageError: the source is too short for one sample.
    """
    num_windows = (num_tokens - 1) // sequence_length
    if num_windows < 1:
        raise UsageError(
            f"{num_tokens} tokens are too few for a sample of sequence_length {sequence_length} and its targets; "
            "give more text or a smaller [batch] sequence_length"
        )
    epochs, places = np.divmod(indices, num_windows)
    return permuted(places, num_windows, seed, epochs) * sequence_length


def source_seed(seed: int, source: int) -> int:
    """The seed of a source's order, by its number in the mixture; the first has the deployment's own."""
    return seed if source == 0 else int(mixed(np.array([seed ^ (source << 1)], dtype=np.uint64))[0])


class Sample(NamedTuple):
    """A source, and where in it a sample begins."""

    source: TokenSource
    start: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Batches:
    """The batches of one replica.

    Attributes:
        source: one, or a mixture of several, as `open_data` or `check_source` returned it.
        pack: keep documents apart; every source must know where they begin.
        device: where the microbatches shall be; on CUDA the host does not wait for the copy.

    Raises:
        UsageError: the global batch does not divide into dp_degree x microbatch_size.
    """

    source: TokenSource | Mixture = field(kw_only=False)
    global_batch_size: int
    microbatch_size: int
    sequence_length: int
    dp_degree: int = 1
    dp_rank: int = 0
    seed: int = 0
    pack: bool = False
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def __post_init__(self) -> None:
        assert 0 <= self.dp_rank < self.dp_degree
        if self.global_batch_size % (self.dp_degree * self.microbatch_size):
            raise UsageError(
                f"[batch] global_batch_size = {self.global_batch_size} is not a multiple of dp_degree x "
                f"microbatch_size = {self.dp_degree} x {self.microbatch_size}; change one of them"
            )

    def microbatches(self, step: int) -> list[Microbatch]:
        """This replica's microbatches of a step, in order: tokens and targets (B, S), targets one token ahead."""
        share = self.global_batch_size // self.dp_degree
        samples = self._samples(step, self.dp_rank * share, share)
        block, lengths = self._read(samples)
        on_device = block.to(self.device, non_blocking=True)
        parts = torch.chunk(on_device, share // self.microbatch_size, dim=1)
        if not self.pack:
            return [Microbatch(tokens_BS, targets_BS) for tokens_BS, targets_BS in parts]
        return [
            Microbatch(tokens_BS, targets_BS, self._documents(positions_BS, lengths[first : first + len(tokens_BS)]))
            for first, (tokens_BS, targets_BS, positions_BS) in zip(range(0, share, self.microbatch_size), parts)
        ]

    def num_targets(self, step: int) -> int:
        """How many tokens of the whole global batch have a target: over so many the mean loss is taken; at least 1.

        The index alone says it, so every rank knows it without a word from the others.
        """
        whole = self.global_batch_size * self.sequence_length
        if not self.pack:
            return whole
        samples = self._samples(step, 0, self.global_batch_size)
        return max(1, whole - sum(len(self._next_documents(sample)) for sample in samples))

    def repeats_within(self, count: int) -> tuple[str, int, int] | None:
        """The source, if any, that has too few samples for the first `count` to be all different.

        Returns:
            Its name, how many samples it has, and how many of the first `count` come from it.
        """
        mixture = mixture_of(self.source)
        needed = Counter(mixture.draw(position).source for position in range(count))
        for number, source in enumerate(mixture.sources):
            held = (len(source) - 1) // self.sequence_length
            if needed[number] > held:
                return source.name, held, needed[number]
        return None

    def _samples(self, step: int, first: int, count: int) -> list[Sample]:
        """Samples [first, first + count) of a step's global batch."""
        mixture = mixture_of(self.source)
        begin = step * self.global_batch_size + first
        drawn = [mixture.draw(position) for position in range(begin, begin + count)]
        samples: list[Sample | None] = [None] * count
        for number, source in enumerate(mixture.sources):
            places = [place for place, one in enumerate(drawn) if one.source == number]
            indices = np.array([drawn[place].number for place in places], dtype=np.int64)
            starts = window_starts(len(source), self.sequence_length, source_seed(self.seed, number), indices)
            for place, start in zip(places, starts):
                samples[place] = Sample(source, int(start))
        return cast("list[Sample]", samples)

    def _read(self, samples: Sequence[Sample]) -> tuple[torch.Tensor, list[Ids]]:
        """Tokens and targets, and when packed positions, (2 or 3, samples, S) int64; and lengths of documents.

        In page-locked memory if they are to be copied to CUDA.
        """
        length, pinned = self.sequence_length, self.device.type == "cuda"
        block = torch.empty((2 + self.pack, len(samples), length), dtype=torch.int64, pin_memory=pinned)
        rows: NDArray[np.int64] = block.numpy()
        lengths = []
        for number, sample in enumerate(samples):
            ids = sample.source.read(sample.start, length + 1)
            rows[0, number], rows[1, number] = ids[:-1], ids[1:]
            if self.pack:
                begins = self._next_documents(sample)
                rows[1, number, begins - 1] = NO_TARGET
                firsts = np.concatenate([[0], begins[begins < length]])
                lengths.append(np.diff(firsts, append=length))
                rows[2, number] = np.arange(length) - np.repeat(firsts, lengths[-1])
        return block, lengths

    def _next_documents(self, sample: Sample) -> Ids:
        """Where in a sample further documents begin, from 1 to S: the token before each has no target."""
        source = cast("DocumentSource", sample.source)
        return source.document_starts(sample.start + 1, sample.start + self.sequence_length + 1) - sample.start

    def _documents(self, positions_BS: torch.Tensor, lengths: Sequence[Ids]) -> Documents:
        flat = np.concatenate(lengths)
        bounds = torch.from_numpy(np.concatenate([[0], np.cumsum(flat)]).astype(np.int32))
        if self.device.type == "cuda":
            bounds = bounds.pin_memory()
        return Documents(positions_BS, tuple(flat.tolist()), bounds.to(self.device, non_blocking=True))
