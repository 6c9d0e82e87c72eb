"""What one distillation step is made of: batches of speech and text, the frozen teacher, the objective."""
