"""The prompt-tune command: few-shot tuning of CLIP's prompts under label noise."""
