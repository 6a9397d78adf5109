"""Packing and unpacking: what the streams are, that nothing is lost, and the messages."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from synq_fast import ops
from tests.ops.backends import BACKENDS, require

BITS = range(2, 9)


@given(st.integers(2, 8), st.integers(0, 300), st.integers(0, 5), st.integers(0, 2**32 - 1))
def test_packing_round_trips(bits, length, rows, seed):
    generator = torch.Generator().manual_seed(seed)
    half = 2 ** (bits - 1)
    codes = torch.randint(-half, half, (rows, length), generator=generator).to(torch.int8)
    packed = ops.pack_codes(codes, bits)
    assert packed.shape == (rows, -(-length * bits // 8)) and packed.dtype == torch.uint8
    assert torch.equal(ops.unpack_codes(packed, bits, length), codes)


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
@pytest.mark.parametrize("bits", BITS)
def test_the_stream_is_little_endian(bits, backend, device):
    """Against whole numbers of Python, which have as many bits as they need."""
    require(backend)
    half = 2 ** (bits - 1)
    for length in (21, 64, 200):
        codes = [(7 * i + 3) % (2 * half) - half for i in range(length)]
        number = sum((code + half) << (i * bits) for i, code in enumerate(codes))
        wanted = number.to_bytes(-(-length * bits // 8), "little")
        given = torch.tensor([codes, codes[::-1]], dtype=torch.int8, device=device)
        with ops.backend(backend):
            packed = ops.pack_codes(given, bits)
            assert bytes(packed[0].tolist()) == wanted
            assert torch.equal(ops.unpack_codes(packed, bits, length), given)


@pytest.mark.parametrize("bits", BITS)
def test_every_code_has_its_place(bits):
    """Each value of a width, at each place of a group, among neighbours of all zeros and ones."""
    half = 2 ** (bits - 1)
    for neighbour in (-half, half - 1):
        codes = torch.full((8 * 2**bits, 11), neighbour, dtype=torch.int8)
        values = torch.arange(-half, half, dtype=torch.int8).repeat(8)
        places = torch.arange(8).repeat_interleave(2**bits) + 1
        codes[torch.arange(len(codes)), places] = values
        assert torch.equal(ops.unpack_codes(ops.pack_codes(codes, bits), bits, 11), codes)


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
@pytest.mark.parametrize("bits", BITS)
def test_a_code_outside_its_range_leaves_its_neighbours_alone(bits, backend, device):
    require(backend)
    half = 2 ** (bits - 1)
    codes = torch.zeros(256, 9, dtype=torch.int8, device=device)
    codes[:, 4] = torch.arange(-128, 128, device=device).to(torch.int8)
    with ops.backend(backend):
        found = ops.unpack_codes(ops.pack_codes(codes, bits), bits, 9)
    lowest = (codes[:, 4].int() + half) % (2 * half) - half
    assert torch.equal(found[:, 4].int(), lowest)
    assert not found[:, :4].any() and not found[:, 5:].any()


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
def test_the_end_of_a_row_is_zero_and_is_ignored(backend, device):
    require(backend)
    codes = torch.full((2, 3), 3, dtype=torch.int8, device=device)
    with ops.backend(backend):
        packed = ops.pack_codes(codes, 3)
        assert packed.tolist() == [[0b11111111, 1], [0b11111111, 1]]
        packed[:, 1] |= 0b11111110
        assert torch.equal(ops.unpack_codes(packed, 3, 3), codes)


def test_a_length_may_be_symbolic():
    function = torch.compile(
        lambda codes: ops.unpack_codes(ops.pack_codes(codes, 3), 3, codes.shape[1]),
        fullgraph=True,
        dynamic=True,
        backend="aot_eager",
    )
    for length in (21, 40, 43):
        codes = torch.randint(-4, 4, (3, length)).to(torch.int8)
        assert torch.equal(function(codes), codes)


CODES, PACKED = torch.zeros(2, 8, dtype=torch.int8), torch.zeros(2, 3, dtype=torch.uint8)
REFUSED = {
    "codes must be a torch.Tensor, got list": (TypeError, lambda: ops.pack_codes([1], 3)),
    "codes must be torch.int8, got torch.int16": (
        TypeError,
        lambda: ops.pack_codes(CODES.short(), 3),
    ),
    r"codes must have shape \(C, N\), got \(8,\)": (
        ValueError,
        lambda: ops.pack_codes(CODES[0], 3),
    ),
    "bits must be from 2 to 8, got 1": (ValueError, lambda: ops.pack_codes(CODES, 1)),
    "bits must be from 2 to 8, got 9": (ValueError, lambda: ops.unpack_codes(PACKED, 9, 8)),
    "bits must be an int, got True": (TypeError, lambda: ops.pack_codes(CODES, True)),
    "bits must be an int, got 3.0": (TypeError, lambda: ops.unpack_codes(PACKED, 3.0, 8)),
    "packed must be a torch.Tensor, got bytes": (
        TypeError,
        lambda: ops.unpack_codes(b"abc", 3, 8),
    ),
    "packed must be torch.uint8, got torch.int8": (
        TypeError,
        lambda: ops.unpack_codes(CODES, 3, 8),
    ),
    r"packed must have shape \(C, bytes\), got \(3,\)": (
        ValueError,
        lambda: ops.unpack_codes(PACKED[0], 3, 8),
    ),
    "packed must have 4 bytes a row, as 9 codes of 3 bits fill, got": (
        ValueError,
        lambda: ops.unpack_codes(PACKED, 3, 9),
    ),
    "packed must have 2 bytes a row, as 5 codes of 3 bits fill, got": (
        ValueError,
        lambda: ops.unpack_codes(PACKED, 3, 5),
    ),
    "length must be at least 0, got -1": (ValueError, lambda: ops.unpack_codes(PACKED, 3, -1)),
    "length must be an int, got True": (TypeError, lambda: ops.unpack_codes(PACKED, 3, True)),
    "length must be an int, got 8.5": (TypeError, lambda: ops.unpack_codes(PACKED, 3, 8.5)),
    "packed must have 3458764513820540928 bytes a row": (
        ValueError,
        lambda: ops.unpack_codes(PACKED, 3, 2**63 - 1),
    ),
}


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("message", REFUSED)
def test_what_is_refused(message, backend):
    require(backend)
    error, call = REFUSED[message]
    with ops.backend(backend), pytest.raises(error, match=message):
        call()
