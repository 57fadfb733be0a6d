"""Which values dropout drops: the right share, by the seed alone, the same in any part of a batch."""

import subprocess
import sys

import pytest
import torch

from tap_core.model.dropout import _on_device, examples_from, kept

CPU = torch.device("cpu")


@pytest.mark.parametrize("p", [0.05, 0.3, 0.5, 0.9])
def test_each_value_is_dropped_with_probability_p_and_the_mean_stays(p: float) -> None:
    torch.manual_seed(1)
    mask, factor = kept(torch.Size((2, 8, 50, 64)), p, CPU)
    assert mask.dtype == torch.uint8 and set(mask.unique().tolist()) == {0, 1}
    share = 1 - float(mask.double().mean())
    assert abs(share - p) < 4 * (p * (1 - p) / mask.numel()) ** 0.5 + 1e-5
    assert factor == pytest.approx(1 / (1 - p), rel=1e-3)
    columns, rows = mask.double().mean((0, 1, 2)), mask.double().mean((0, 1, 3))
    assert (columns - 1 + p).abs().max() < 5 * (p * (1 - p) / 800) ** 0.5
    assert (rows - 1 + p).abs().max() < 5 * (p * (1 - p) / 1024) ** 0.5
    assert not torch.equal(mask[0], mask[1])


def test_the_seed_decides_and_nothing_else() -> None:
    code = (
        "import torch; from tap_core.model.dropout import kept; torch.manual_seed(7); "
        "print([kept(torch.Size((2, 3, 5, 6)), 0.3, torch.device('cpu'))[0].flatten().tolist() for _ in range(2)])"
    )
    runs = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True) for _ in range(2)]
    assert runs[0].stdout == runs[1].stdout and "0" in runs[0].stdout
    torch.manual_seed(7)
    first, second = (kept(torch.Size((2, 3, 5, 6)), 0.3, CPU)[0] for _ in range(2))
    assert not torch.equal(first, second)
    assert str([first.flatten().tolist(), second.flatten().tolist()]) == runs[0].stdout.strip()


def test_an_example_loses_the_same_values_in_the_whole_batch_and_in_a_part_of_it() -> None:
    torch.manual_seed(3)
    whole, _ = kept(torch.Size((2, 7, 3, 5)), 0.4, CPU)  # 15 values of an example: not a multiple of four
    parts = []
    for first, last in ((0, 2), (2, 6), (6, 7)):
        torch.manual_seed(3)
        with examples_from(first):
            parts.append(kept(torch.Size((2, last - first, 3, 5)), 0.4, CPU)[0])
    assert torch.equal(torch.cat(parts, dim=1), whole)


def test_a_device_that_draws_for_itself_does_so_example_by_example() -> None:
    shape, seeds = torch.Size((2, 6, 40, 32)), [5, 9]
    whole = _on_device(shape, seeds, 1 << 14, CPU)
    assert 0.73 < float(whole.double().mean()) < 0.77
    with examples_from(2):
        part = _on_device(torch.Size((2, 3, 40, 32)), seeds, 1 << 14, CPU)
    assert torch.equal(part, whole[:, 2:5])
    assert not torch.equal(whole[0, 0], whole[0, 1]) and not torch.equal(whole[0], whole[1])
