"""The equations of the paper as loops over single numbers, in plain Python floats.

Slow on purpose and independent of the project: nothing here imports resmlp_mt. Hidden states are
nested lists x[position][channel] of one sentence without padding.
"""

import math
from collections.abc import Sequence

Matrix = Sequence[Sequence[float]]
Vector = Sequence[float]


def affine(x: Matrix, alpha: Vector, beta: Vector) -> list[list[float]]:
    """Aff(x) = diag(alpha) x + beta for every token."""
    return [[alpha[c] * token[c] + beta[c] for c in range(len(token))] for token in x]


def mix(x: Matrix, matrix: Matrix, bias: Vector, causal: bool) -> list[list[float]]:
    """Position t becomes bias_t + sum over s of A_ts x_s, over s <= t only if causal."""
    length, dim = len(x), len(x[0])
    mixed = []
    for t in range(length):
        seen = range(t + 1) if causal else range(length)
        mixed.append(
            [bias[t] + math.fsum(matrix[t][s] * x[s][c] for s in seen) for c in range(dim)]
        )
    return mixed


def linear(x: Matrix, weight: Matrix, bias: Vector) -> list[list[float]]:
    """W x + b for every token."""
    return [
        [
            bias[row] + math.fsum(weight[row][c] * token[c] for c in range(len(token)))
            for row in range(len(weight))
        ]
        for token in x
    ]


def gelu(value: float) -> float:
    """x Phi(x) (Hendrycks and Gimpel 2016), with the exact normal distribution."""
    return value * 0.5 * (1 + math.erf(value / math.sqrt(2)))


def feed_forward(x: Matrix, b: Matrix, b_bias: Vector, c: Matrix, c_bias: Vector) -> Matrix:
    """C GELU(B x)."""
    hidden = [[gelu(value) for value in token] for token in linear(x, b, b_bias)]
    return linear(hidden, c, c_bias)


def attention(
    queries: Matrix, memory: Matrix, projections: dict[str, tuple[Matrix, Vector]], heads: int
) -> tuple[Matrix, list[list[list[float]]]]:
    """Multi-head attention (Vaswani et al. 2017, section 3.2) of queries over memory.

    Returns the output and the weights[head][query][key].
    """
    q = linear(queries, *projections["q"])
    k = linear(memory, *projections["k"])
    v = linear(memory, *projections["v"])
    dim = len(q[0])
    width = dim // heads
    weights = []
    concatenated = [[0.0] * dim for _ in q]
    for head in range(heads):
        channels = range(head * width, (head + 1) * width)
        rows = []
        for i, query in enumerate(q):
            scores = [
                math.fsum(query[c] * key[c] for c in channels) / math.sqrt(width) for key in k
            ]
            top = max(scores)
            exponentials = [math.exp(score - top) for score in scores]
            total = math.fsum(exponentials)
            row = [value / total for value in exponentials]
            rows.append(row)
            for c in channels:
                concatenated[i][c] = math.fsum(row[j] * v[j][c] for j in range(len(v)))
        weights.append(rows)
    return linear(concatenated, *projections["out"]), weights


def add(x: Matrix, y: Matrix) -> list[list[float]]:
    """x + y, element by element."""
    return [[a + b for a, b in zip(s, t, strict=True)] for s, t in zip(x, y, strict=True)]
