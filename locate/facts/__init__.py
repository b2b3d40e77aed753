"""What a model is asked: facts, the files they come in, prompts and questions."""
