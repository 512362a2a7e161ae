"""How it is combined: one rule a file. A name in ``__all__`` is public and has a spelling in recipes."""

from laconic.aggregate.majority import majority
from laconic.aggregate.mean import Rule, mean, weighted_mean

__all__ = ["Rule", "majority", "mean", "weighted_mean"]
