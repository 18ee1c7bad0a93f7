"""A step on a bfloat16 parameter of more than 2^31 elements, and a z-score of its gradient.

Prints, as JSON, entries from both ends and from round 2^31, what they should be, and the peak of
memory. A process of its own, so that the peak is its own.
"""

from __future__ import annotations

import json
import math
import resource

import torch
from torch import nn

import znorm

ROWS, COLUMNS = (1 << 20) + 3, 1 << 11
BORDER = 1 << 20  # the row at whose start 2^31 elements have passed
PLACES = [(0, 0), (1, 5), (BORDER - 1, COLUMNS - 1), (BORDER, 0), (BORDER, 7), (ROWS - 1, 2047)]
# Few rows are other ones, so that a rounded sum would be wrong by more than bfloat16 is.
VALUES = {0: 8.0, BORDER - 1: -4.0, BORDER: 6.0, ROWS - 1: -8.0}
REST = 0.25


def main() -> None:
    torch.set_num_threads(2)
    weight = nn.Parameter(torch.zeros(ROWS, COLUMNS, dtype=torch.bfloat16))
    gradient = torch.full((ROWS, COLUMNS), REST, dtype=torch.bfloat16)
    for row, value in VALUES.items():
        gradient[row] = value
    weight.grad = gradient
    znorm.optim.SGD([weight], lr=1.0, transform=znorm.ZNorm()).step()
    znorm.z_score_([gradient])
    share = dict.fromkeys(VALUES.values(), 1 / ROWS) | {REST: 1 - len(VALUES) / ROWS}
    mean = math.fsum(value * part for value, part in share.items())
    std = math.sqrt(math.fsum((value - mean) ** 2 * part for value, part in share.items()))
    wanted = [-(VALUES.get(row, REST) - mean) / std for row, _ in PLACES]
    found = {
        "weights": [float(weight.detach()[place]) for place in PLACES],
        "gradients": [float(gradient[place]) for place in PLACES],
        "wanted": wanted,
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
