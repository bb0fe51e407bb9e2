"""Learning the networks from unlabelled photographs: the self-evolving rounds of the paper, one idea a file."""
