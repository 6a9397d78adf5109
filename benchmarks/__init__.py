"""Benchmarks of synq-fast: its ops and steps against what a user would run instead."""
