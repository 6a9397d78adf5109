"""Compares the CPU kernels with the reference in a process of its own; prints what it did."""

from synq_fast import _C, ops, reference
from tests.ops.backends import assert_same
from tests.ops.cases import ALL, axes, channel_ranges, layouts, special_values, ties


def main() -> None:
    """Runs every op over every case and over special values."""
    count = 0
    for shape, dtype in ALL:
        for x in layouts(shape, dtype).values():
            for axis in axes(x):
                low, high = channel_ranges(x, axis)
                leaf, twin = (x.detach().clone().requires_grad_() for _ in range(2))
                y = ops.fake_quantize(leaf, low, high, 5, axis=axis, ste="clip")
                expected = reference.fake_quantize(twin, low, high, 5, axis=axis, ste="clip")
                assert_same(y.detach(), expected.detach())
                y.sum().backward()
                expected.sum().backward()
                assert_same(leaf.grad, twin.grad)
                for actual, wanted in zip(
                    (
                        *ops.fake_quantize_dynamic(x, 4, axis=axis),
                        *ops.quantize_codes(x, low, high, 9, axis=axis),
                    ),
                    (
                        *reference.fake_quantize_dynamic(x, 4, axis=axis),
                        *reference.quantize_codes(x, low, high, 9, axis=axis),
                    ),
                    strict=True,
                ):
                    assert_same(actual, wanted)
                count += 1
        x = special_values().to(dtype)
        assert_same(ops.fake_quantize(x, -1.0, 1.0, 8), reference.fake_quantize(x, -1.0, 1.0, 8))
    for bits in range(2, 17):
        x = ties(bits, -1.3, 2.1)
        assert_same(
            ops.fake_quantize(x, -1.3, 2.1, bits), reference.fake_quantize(x, -1.3, 2.1, bits)
        )
    print(f"{_C.cpu_isa()}: {count} cases equal the reference")


if __name__ == "__main__":
    main()
