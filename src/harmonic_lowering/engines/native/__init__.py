"""The native core: an engine in C++, with what builds, finds and calls it.

`engine` makes the calls, `library` finds and loads what `build` (or a wheel) put there, and
``csrc/`` is the source.
"""
