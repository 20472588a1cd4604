"""Text: tokenizers, conversations, fusion with vision tokens, adapters."""
