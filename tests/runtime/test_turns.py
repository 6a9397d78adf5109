"""Measuring in turn."""

from synq_fast.runtime.turns import in_turns


def test_a_round_begins_one_later_than_the_last():
    order, after = [], []

    def taker(name: str):
        def take() -> float:
            order.append(name)
            return float(len(order))

        return take

    found = in_turns({name: taker(name) for name in "abc"}, 4, after.append)
    assert "".join(order) == "abc" + "bca" + "cab" + "abc"
    assert found == {
        "a": [1.0, 6.0, 8.0, 10.0],
        "b": [2.0, 4.0, 9.0, 11.0],
        "c": [3.0, 5.0, 7.0, 12.0],
    }
    assert after == [1, 2, 3, 4]
