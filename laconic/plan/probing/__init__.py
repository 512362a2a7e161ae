"""Measures machines and the links between them: what a plan reads, found by trying.

``schedule`` says what is measured in which order and what may be left out, ``curve`` what rate a flow had, ``talk`` is
each worker's part of it and ``conduct`` worker 0's, ``machine`` what is measured without a network; ``refine`` makes
cluster files of it, ``start`` starts the workers, and ``worker`` is one.
"""
