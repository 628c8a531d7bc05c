"""The Triton engine: kernels for NVIDIA cards, with what plans, launches and tests them.

`engine` makes the calls and `core` the kernels', `launches` launches them, `plan` is a geometry as
tables, `cards` says where all that runs, and `kernels` is what runs on the card. The package of the
same name is optional, and imported at the first use.
"""
