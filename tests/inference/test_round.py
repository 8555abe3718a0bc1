"""A round on rank 0, with a pipeline that a test plays."""

from __future__ import annotations

from hybrid_runtime.inference.round import STOPPED_READING, Round
from hybrid_runtime.serving.batcher import Batcher
from hybrid_runtime.serving.requests import Answer, Request
from tests.inference.served import Given
from tests.serving.traffic import LIMITS, asked, said


class Clock:
    """A thousand nanoseconds a look."""

    now_ns = 5_000_000

    def __call__(self) -> int:
        self.now_ns += 1000
        return self.now_ns


class Heard:
    def __init__(self, until: dict[int, int] | None = None) -> None:
        self.tokens: list[tuple[int, int]] = []
        self.answers: list[Answer] = []
        self._until = until or {}

    def token(self, request: Request, token: int) -> bool:
        self.tokens.append((request.id, token))
        return sum(heard == request.id for heard, _ in self.tokens) < self._until.get(request.id, 100)

    def ended(self, answer: Answer) -> None:
        self.answers.append(answer)


def play(now: Round) -> None:
    while not now.is_over:
        item = now.next_item()
        assert item is not None
        now.back(item, said(item))


def test_everybody_hears_every_token_and_the_end() -> None:
    heard = Heard()
    now = Round(Given([asked(0), asked(1, new_tokens=1)]), Batcher(2, 1, LIMITS), heard, Clock())
    play(now)
    assert heard.answers == now.answers
    assert [answer.request.id for answer in now.answers] == [1, 0]
    assert all(answer.tokens == tuple(t for n, t in heard.tokens if n == answer.request.id) for answer in now.answers)
    assert all(0 < answer.ended_ns < 1_000_000 for answer in now.answers), "after the begin of the round"


def test_one_who_stops_reading_ends_at_that_token() -> None:
    heard = Heard({1: 2})
    now = Round(Given([asked(0), asked(1), asked(2)]), Batcher(1, 2, LIMITS), heard, Clock())
    play(now)
    ends = {answer.request.id: (answer.end, len(answer.tokens), answer.why) for answer in now.answers}
    assert ends == {0: ("length", 3, ""), 1: ("cancelled", 2, STOPPED_READING), 2: ("length", 3, "")}


def test_one_who_stops_reading_at_the_last_token_has_the_whole_answer() -> None:
    now = Round(Given([asked(0)]), Batcher(1, 1, LIMITS), Heard({0: 3}), Clock())
    play(now)
    assert [(answer.end, len(answer.tokens)) for answer in now.answers] == [("length", 3)]


def test_one_client_whose_requests_are_refused_asks_on() -> None:
    now = Round(
        Given([asked(0, 90), asked(1, 0), asked(2), asked(3, 90)], clients=1), Batcher(1, 1, LIMITS), None, Clock()
    )
    for _ in range(3):
        item = now.next_item()
        assert item is not None
        assert not now.is_over
        now.back(item, said(item))
    assert now.next_item() is None
    assert now.is_over
    assert [answer.end for answer in now.answers] == ["refused", "refused", "length", "refused"]


def test_when_the_next_one_comes() -> None:
    clock = Clock()
    now = Round(Given([asked(0), asked(1)], every_ns=2_000_000), Batcher(1, 1, LIMITS), None, clock)
    for _ in range(3):
        item = now.next_item()
        assert item is not None
        now.back(item, said(item))
    assert now.next_item() is None
    left_s = now.until_next_s
    assert left_s is not None
    assert 0.0019 < left_s < 0.002
    assert not now.is_over
    clock.now_ns += 2_000_000
    assert now.until_next_s == 0
    play(now)
    assert now.until_next_s is None
    assert [answer.request.id for answer in now.answers] == [0, 1]
