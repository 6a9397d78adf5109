"""The published SynQ procedure rebuilt, with each of its inefficiencies behind a switch.

Nothing here imports ``synq_fast``: a baseline that shares code with what it is compared with would
hide a common mistake.
"""
