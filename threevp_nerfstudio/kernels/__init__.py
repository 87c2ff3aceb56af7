"""Warp kernels, each beside a torch twin of the same name that is the oracle of its tests.

Warp is imported when a kernel is first needed, never when the plugin is imported.
"""
