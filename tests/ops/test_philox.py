"""The random generator of the ops beside what its authors publish."""

import pytest
import torch

from synq_fast.reference._philox import as_seed, draws, kept, philox
from synq_fast.testing.cases._draws import drawn

ONES = 0xFFFFFFFF
# Random123, tests/kat_vectors, philox4x32 10: counter, key, result.
PUBLISHED = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((ONES,) * 4, (ONES,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "expected"), PUBLISHED)
def test_published_vectors(counter, key, expected):
    words = philox(
        tuple(torch.tensor(word) for word in counter), tuple(torch.tensor(word) for word in key)
    )
    assert tuple(map(int, words)) == expected


def test_draws_are_the_words_in_turn():
    found = draws(as_seed(0, torch.device("cpu")), 6)
    assert found[:4].tolist() == [word >> 8 for word in PUBLISHED[0][2]]
    assert len(set(found.tolist())) == 6


@pytest.mark.parametrize("offset", [1, 4, 4093, 2**34 - 2, 2**62 - 1])
def test_draws_from_a_place_on(offset):
    seed = torch.tensor(2**40 + 3)
    for count in (1, 5, 70):
        found = draws(seed, count, offset)
        expected = [draws(seed, 4, 4 * (i // 4))[i % 4] for i in range(offset, offset + count)]
        assert torch.equal(found, torch.stack(expected))
        x = torch.empty(count)
        assert torch.equal(kept(x, seed, 0.5, offset), drawn(x, seed, 0.5, offset))


@pytest.mark.parametrize("seed", [0, 1, 2**40 + 3, 2**64 - 1, -(2**63)])
@pytest.mark.parametrize("keep", [0.0, 0.25, 0.7, 1.0])
def test_what_is_kept(seed, keep):
    x = torch.empty(7, 11, 13, 2)
    for given in (x, x.to(memory_format=torch.channels_last), x.transpose(0, 2), x[::2, 1:]):
        found = kept(given, seed, keep)
        assert torch.equal(found, drawn(given, seed, keep))
        assert abs(found.double().mean() - keep) < 0.06


def test_no_two_words_of_a_stream_agree_in_more_than_chance():
    """Bits are even, and neighbours, words and seeds independent."""
    count = 2**16
    values = torch.stack([draws(torch.tensor(seed), count) for seed in (0, 1, 2**32)])
    bits = values[..., None] >> torch.arange(24) & 1
    assert (bits.double().mean(1) - 0.5).abs().max() < 5 * 0.5 / count**0.5
    centred = (values.double() / 2**24 - 0.5) * 12**0.5
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert abs((centred[one] * centred[other]).mean()) < 5 / count**0.5
    for lag in (1, 2, 3, 4, 8):
        assert (centred[:, lag:] * centred[:, :-lag]).mean(1).abs().max() < 5 / count**0.5
