"""Which device a model computes on, in which number format, and whether it fits: the rules in `plan`, applied by `devices`."""
