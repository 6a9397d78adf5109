"""Fine-tuning of the quantized model: losses, the step, the trainer, checkpoints."""
