"""LIBERO (Liu et al., 2023): four suites of ten tasks each with a Panda arm, through hf-libero and robosuite."""
