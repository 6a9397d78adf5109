"""A workload of the small network, for the benchmarks of whole steps."""

from benchmarks.cases import Case, Workload
from tests.tiny import tiny_images, tiny_labels, tiny_teacher


def tiny_workload(batch: int = 4) -> Workload:
    return Workload(Case("tiny", batch), tiny_teacher(), tiny_images(batch), tiny_labels(batch))
