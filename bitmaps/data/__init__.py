"""Text, cut into sentences, tokenized and masked."""
