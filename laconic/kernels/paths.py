"""Shortest paths from one node of a network to all others."""

from __future__ import annotations

import numpy as np
from numba import njit


@njit(cache=True, nogil=True)
def shortest(start, first, edges, heads, lengths, by):
    """Fill ``by`` with the edge by which each node is reached from ``start``; -1 for those that are not.

    ``edges[first[v]:first[v + 1]]`` leave node v, to ``heads``. Of equally long paths the one found first stays, which
    hangs on the order of the edges alone.
    """
    nodes = first.size - 1
    far = np.full(nodes, np.inf)
    settled = np.zeros(nodes, np.bool_)
    far[start] = 0.0
    by[:] = -1
    for _ in range(nodes):
        near = -1
        for v in range(nodes):
            if not settled[v] and far[v] < np.inf and (near < 0 or far[v] < far[near]):
                near = v
        if near < 0:
            return
        settled[near] = True
        for i in range(first[near], first[near + 1]):
            edge = edges[i]
            there = far[near] + lengths[edge]
            if there < far[heads[edge]]:
                far[heads[edge]] = there
                by[heads[edge]] = edge
