"""The Triton engine: kernels for NVIDIA cards, with what plans, launches and tests them.

`engine` makes the calls, `core` launches, `plan` is a geometry as tables, and `kernels` is what
runs on the card. The package of the same name is optional, and imported at the first use.
"""
