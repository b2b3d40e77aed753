"""The residual stream read in the vocabulary: what each part writes to an answer, and what each layer would say."""
