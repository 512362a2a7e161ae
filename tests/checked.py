"""The checker of annotations while testing: a whole number is a float too, as everywhere in Python."""

from functools import partial

from beartype import BeartypeConf, beartype

check = partial(beartype, conf=BeartypeConf(is_pep484_tower=True))
