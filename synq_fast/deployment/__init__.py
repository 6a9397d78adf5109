"""Quantized models as other runtimes take them: frozen to integers, packed, exported, checked."""
