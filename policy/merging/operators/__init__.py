"""Merging operators: task vectors in, one merged change out (task arithmetic, TIES, EMR, TSV, KnOTS, WUDI, Iso-C ...)."""
