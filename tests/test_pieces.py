"""Pieces of units by name."""

from __future__ import annotations

import pytest

from hybrid_runtime.pieces import Piece, read_piece, unit_of


def test_a_piece_is_read_as_it_is_written() -> None:
    piece = Piece("21.mlp", 0, 2816)
    assert read_piece(str(piece)) == piece == read_piece("21.mlp[0:2816]")
    assert piece.parts == 2816
    assert unit_of("21.mlp[0:2816]") == "21.mlp" == unit_of("21.mlp")


@pytest.mark.parametrize("name", ["21.mlp", "21.mlp[:3]", "21.mlp[3:]", "[0:3]", "21.mlp[0:3", "21.mlp[-1:3]", ""])
def test_other_names_are_no_pieces(name: str) -> None:
    assert read_piece(name) is None
